//! The example of README.md, compiled and run: a kernel is one file like this, one `mod` line and one line of the list.
//! (A kernel inside the crate also stores its ISA token; this one needs nothing.)

mod support;

// example: start
use std::ops::Range;

use ternbench_kernels::*;

/// `scalar-i8-signs`: adds or subtracts, never multiplies.
pub struct I8Signs;

impl I8Signs {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-i8-signs",
        summary: "one byte per weight, adds and subtracts",
        features: &[],
        layout: "i8",
        bits_per_weight: 8.0,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "the example of README.md",
    };

    /// The kernel, where it can run: here, everywhere.
    pub fn new() -> Option<Self> {
        Some(Self)
    }
}

impl TernaryKernel for I8Signs {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        let mut data = AlignedBytes::zeroed(w.n() * w.k());
        data.as_i8_mut().copy_from_slice(w.trits());
        PackedMatrix { n: w.n(), k: w.k(), data: data.into() }
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(team, x, 1);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        for token in 0..x.m {
            for row in rows.clone() {
                let weights = &w.data.as_i8()[row * w.k..][..w.k];
                let terms = weights.iter().zip(x.row(token)).map(|(w, &x)| match w {
                    1 => i32::from(x),
                    -1 => -i32::from(x),
                    _ => 0,
                });
                acc[token * rows.len() + row - rows.start] = terms.sum();
            }
        }
    }
}
// example: end

#[test]
fn the_example_equals_the_oracle() {
    let kernel = I8Signs::new().expect("needs nothing");
    assert_eq!(kernel.info().isa(), "scalar");
    for (n, k, m) in [(1, 1, 1), (33, 65, 3), (64, 256, 9)] {
        for (what, w, x) in support::inputs(n, k, m) {
            let (packed, mut prepared) = (kernel.pack(&w), Prepared::default());
            kernel.prepare(&Team::alone(), &x, &mut prepared);
            let mut acc = vec![0; m * n];
            kernel.compute(&packed, &prepared, 0..n, &mut acc);
            assert_eq!(acc, oracle::gemm(&w, &x), "{what}");
        }
    }
}

#[test]
fn the_readme_shows_this_example() {
    let here = include_str!("example_kernel.rs")
        .split("// example: start\n")
        .nth(1)
        .and_then(|s| s.split("// example: end").next());
    let readme = include_str!("../README.md").split("```rust\n").nth(1).and_then(|s| s.split("```").next());
    assert!(here.is_some() && here == readme, "copy the example between the marks into README.md");
}

/// The table of README.md lists what the list lists.
#[test]
fn the_readme_names_every_kernel() {
    let readme = include_str!("../README.md");
    let ternary = registry::KERNELS.iter().map(|entry| entry.info.name);
    for name in ternary.chain(dense::DENSE_KERNELS.iter().map(|entry| entry.info.name)) {
        assert!(readme.contains(&format!("`{name}`")), "README.md does not name {name}");
    }
}
