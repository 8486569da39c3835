//! Every ternary kernel of the list against the oracle: equality, on shapes around every tile edge.

mod support;

use std::ops::Range;

use rayon::prelude::*;
use support::{inputs, sample};
use ternbench_kernels::dense::Activations;
use ternbench_kernels::driver::{Input, Output, Scratch, multiply};
use ternbench_kernels::layout::LAYOUTS;
use ternbench_kernels::ops::{Products, Sums};
use ternbench_kernels::team::SharedMut;
use ternbench_kernels::verify::{Random, activations, legal, matrix};
use ternbench_kernels::{
    AlignedBytes, DenseMatrix, DenseType, Exactness, Linear, PackedMatrix, Pool, Prepared, QuantizedActivations, Team,
    TernaryKernel, TernaryMatrix, ops, oracle,
};

/// Rows around the tile of 32, and more than one tile.
const N: &[usize] = &[1, 2, 31, 32, 33, 63, 64, 65, 97];
/// Inputs around 16 (a tile) and 128, 256 (a widening).
const K: &[usize] = &[1, 3, 15, 16, 17, 31, 33, 127, 128, 129, 255, 256, 257];
/// Tokens around register tiles of 2, 3, 4, 8.
const M: &[usize] = &[1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33];

/// What no kernel writes by chance.
const POISON: i32 = 0x5EED_5EED_u32 as i32;

/// Computes `rows`, or as much of the padded matrix, and checks every sum, those of padded rows included.
fn check(
    kernel: &dyn TernaryKernel,
    packed: &PackedMatrix,
    x: &Prepared,
    rows: Range<usize>,
    expected: &[i32],
    what: &str,
) {
    let (name, allowed) = (kernel.info().name, kernel.info().exactness.allowed(packed.k));
    // Sanitizers do not see what asm writes.
    let around = 17 * rows.len().max(64);
    let mut memory = vec![POISON; around + x.m * rows.len() + around];
    let (before, rest) = memory.split_at_mut(around);
    let (acc, behind) = rest.split_at_mut(x.m * rows.len());
    kernel.compute(packed, x, rows.clone(), acc);
    assert!(
        [before, behind].iter().all(|part| part.iter().all(|&n| n == POISON)),
        "{name}: {what} writes beside its sums"
    );
    for (at, &got) in acc.iter().enumerate() {
        let (token, row) = (at / rows.len(), rows.start + at % rows.len());
        let want = if row < packed.n { expected[token * packed.n + row] } else { 0 };
        assert!(
            got.wrapping_sub(want).unsigned_abs() <= allowed,
            "{name}: {what}, {} x {}, {} tokens, rows {rows:?}: token {token}, row {row} is {got}, not {want}",
            packed.n,
            packed.k,
            x.m
        );
    }
}

fn check_input(kernels: &[&dyn TernaryKernel], w: &TernaryMatrix, x: &QuantizedActivations, what: &str) {
    let expected = oracle::gemm(w, x);
    for kernel in kernels {
        let tile = kernel.info().row_tile;
        let n_tiles = w.n().div_ceil(tile);
        let packed = kernel.pack(w);
        // Prepared from a larger input before, so that stale bytes are there to be read by mistake.
        let mut prepared = Prepared::default();
        kernel.prepare(&Team::alone(), &activations(x.m + 1, x.k + 64, |_, _| 127), &mut prepared);
        kernel.prepare(&Team::alone(), x, &mut prepared);
        check(*kernel, &packed, &prepared, 0..n_tiles * tile, &expected, what);
        check(*kernel, &packed, &prepared, n_tiles / 2 * tile..n_tiles * tile, &expected, what);
        check(*kernel, &packed, &prepared, n_tiles / 3 * tile..(n_tiles / 3 + 1) * tile, &expected, what);
    }
}

#[test]
fn every_kernel_equals_the_oracle_around_every_edge() {
    let kernels = support::ternary_kernels();
    let shapes = N.iter().flat_map(|&n| K.iter().flat_map(move |&k| M.iter().map(move |&m| (n, k, m))));
    // By all cores: this takes longer than all other tests here.
    sample(shapes).collect::<Vec<_>>().into_par_iter().for_each(|(n, k, m)| {
        for (what, w, x) in inputs(n, k, m) {
            check_input(&kernels, &w, &x, what);
        }
    });
}

#[test]
fn every_kernel_equals_the_oracle_on_long_rows() {
    let kernels = support::ternary_kernels();
    let shapes = [
        // The only one under emulation.
        (65, 2560, 1),
        (33, 6912, 9),
        (33, 640, 5),
        (40, 2560, 9),
        (33, 6912, 1),
        (1, 6912, 2),
        (2, 6912, 33),
        // 11 tiles of 32 rows: two at each of four places, three are left.
        (321, 640, 1),
        (337, 257, 2),
    ];
    for (n, k, m) in sample(shapes) {
        for (what, w, x) in inputs(n, k, m) {
            check_input(&kernels, &w, &x, what);
        }
    }
}

#[test]
fn every_kernel_equals_the_oracle_on_large_batches() {
    let kernels = support::ternary_kernels();
    // The last has more rows than any kernel takes at once.
    for (n, k, m) in sample([(33, 257, 128), (1, 1, 512), (65, 129, 512), (97, 33, 511), (2700, 17, 40)]) {
        for (what, w, x) in inputs(n, k, m) {
            check_input(&kernels, &w, &x, what);
        }
    }
}

/// Inputs that no L2 cache holds: the kernel for tiles takes them in two batches then, the first in several lists of passes of which one ends
/// within a row tile.
#[test]
fn tiles_equal_the_oracle_on_inputs_beyond_a_cache() {
    let kernels: Vec<_> =
        support::ternary_kernels().into_iter().filter(|kernel| kernel.info().isa() == "amx").collect();
    if kernels.is_empty() {
        return;
    }
    let mut random = Random::new(12);
    let w = matrix(161, 2340, |_, _| random.below(3) as i8 - 1);
    let x = activations(481, 2340, |_, _| legal(random.below(255)));
    check_input(&kernels, &w, &x, "a large input");
}

/// A spike in every place of a tile, one at a time: the only input on which two swapped weights cannot cancel out.
#[test]
fn every_single_weight_counts_once() {
    let kernels = support::ternary_kernels();
    let (n, k) = (33, 35);
    let x = activations(3, k, |token, column| legal(token * 100 + column * 3 + 130));
    for at in sample(0..n * k) {
        let w = matrix(n, k, |row, column| i8::from(row * k + column == at));
        check_input(&kernels, &w, &x, "one weight");
    }
}

/// What becomes of products while they are in the cache has the bits of doing it afterwards, also where a gate's two matrices have tiles
/// of different heights, and with biases.
#[test]
fn gates_and_residuals_have_the_bits_of_products_stored_first() {
    const SCALE: f32 = 0.7;
    let pools = [1, 3].map(|n_threads| Pool::new(n_threads).unwrap());
    let low = ternbench_kernels::registry::find("scalar-tq2-unpack").unwrap();
    for kernel in support::ternary_kernels() {
        for (n, k, m) in sample([(97, 129, 2), (33, 64, 1), (257, 256, 40)]) {
            let mut random = Random::new((n * m) as u64);
            let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
            let mut halves = AlignedBytes::zeroed(2 * n * k);
            halves.as_chunks_mut().0.fill_with(|| half::f16::from_f32(random.float()).to_le_bytes());
            let floats = DenseMatrix::new(n, k, DenseType::F16, halves.into()).unwrap();
            let mut bias = || Some((0..n).map(|_| random.float()).collect::<Vec<f32>>());
            let gate = Linear { bias: bias(), ..Linear::ternary(kernel, &w) };
            let ups = [Linear::ternary(low, &w), Linear { bias: bias(), ..Linear::dense(floats, Activations::F32) }];
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let residual: Vec<f32> = (0..m * n).map(|_| random.float()).collect();
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>();
            for (up, pool) in ups.iter().flat_map(|up| pools.iter().map(move |pool| (up, pool))) {
                let run = |output: Output<'_>| {
                    pool.run(|team| multiply(team, &mut Scratch::default(), Input::Rows(&x), m, &mut [output]))
                };
                let (mut of_gate, mut of_up) = (vec![0.0; m * n], vec![0.0; m * n]);
                run(Output::store(&gate, &mut of_gate));
                run(Output::store(up, &mut of_up));
                let (mut added, mut expected) = (residual.clone(), residual.clone());
                run(Output::add(&gate, SCALE, &mut added));
                ops::axpy(SCALE, &of_gate, &mut expected);
                let what = format!("{} {n} x {k}, m = {m}, {} threads", kernel.info().name, pool.n_threads());
                assert!(bits(&added) == bits(&expected), "{what}: residual");
                let mut gated = vec![f32::NAN; m * n];
                run(Output::gated(&gate, up, ops::silu_gate, &mut gated));
                let [of_gate, of_up] = [&of_gate, &of_up].map(|products| bits(products));
                let [of_gate, of_up] =
                    [&of_gate, &of_up].map(|sums| Products { sums, stride: n, kind: Sums::F32, bias: None });
                let mut expected = vec![f32::NAN; m * n];
                let shared = SharedMut::new(&mut expected);
                // SAFETY: nobody else has a part of it.
                ops::silu_gate(&of_gate, &of_up, &mut unsafe { shared.columns(n, 0..n) });
                assert!(bits(&gated) == bits(&expected), "{what}: gate");
            }
        }
    }
}

/// Through the driver: identical f32 for any number of threads, and what the oracle's sums give when scaled.
#[test]
fn the_driver_gives_the_same_floats_on_any_number_of_threads() {
    let pools = [1, 2, 3].map(|n_threads| Pool::new(n_threads).unwrap());
    for kernel in support::ternary_kernels() {
        let shapes =
            [(97, 129, 2), (1, 1, 1), (33, 17, 1), (640, 256, 3), (257, 640, 1), (100, 257, 33), (65, 64, 512)];
        for (n, k, m) in sample(shapes) {
            let mut random = Random::new((n + k + m) as u64);
            let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let quantized = QuantizedActivations::quantize(&x, m, k);
            let scaled = |(i, &sum): (usize, &i32)| (sum as f32 * (w.scale() / quantized.scales[i / n])).to_bits();
            let expected: Vec<u32> = oracle::gemm(&w, &quantized).iter().enumerate().map(scaled).collect();
            let linear = Linear::ternary(kernel, &w);
            for pool in &pools {
                let mut y = vec![f32::NAN; m * n];
                pool.run(|team| {
                    multiply(team, &mut Scratch::default(), Input::Rows(&x), m, &mut [Output::store(&linear, &mut y)])
                });
                let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                if kernel.info().exactness == Exactness::Exact {
                    assert!(
                        bits == expected,
                        "{} {n} x {k}, m = {m}, {} threads",
                        kernel.info().name,
                        pool.n_threads()
                    );
                }
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_small_product_is_right(n in 1usize..100, k in 1usize..300, m in 1usize..20, seed: u64) {
        let mut random = Random::new(seed);
        let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
        let x = activations(m, k, |_, _| legal(random.below(255)));
        check_input(&support::ternary_kernels(), &w, &x, "proptest");
    }

    #[test]
    fn every_layout_keeps_every_trit(n in 1usize..100, k in 1usize..300, seed: u64) {
        let mut random = Random::new(seed);
        let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
        for (name, pack, unpack) in LAYOUTS {
            assert!(unpack(&pack(&w)) == w.trits(), "{name}, {n} x {k}");
        }
    }
}

/// A layout that a kernel names is in the list, so that its round trip is tested. (`i8` is the trits themselves.)
#[test]
fn every_layout_of_a_kernel_is_listed() {
    for entry in ternbench_kernels::registry::KERNELS {
        let layout = entry.info.layout;
        assert!(
            layout == "i8" || LAYOUTS.iter().any(|(name, ..)| *name == layout),
            "{layout} is not in layout::LAYOUTS"
        );
    }
}
