//! Every ternary kernel of the list against the oracle: equality, on shapes around every tile edge.

mod support;

use std::ops::Range;

use support::{inputs, sample};
use ternbench_kernels::driver::{Scratch, multiply};
use ternbench_kernels::verify::{Random, activations, legal, matrix};
use ternbench_kernels::{
    Exactness, Linear, PackedMatrix, Pool, Prepared, QuantizedActivations, TernaryKernel, TernaryMatrix, oracle,
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
    let mut acc = vec![POISON; x.m * rows.len()];
    kernel.compute(packed, x, rows.clone(), &mut acc);
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
        kernel.prepare(&activations(x.m + 1, x.k + 64, |_, _| 127), &mut prepared);
        kernel.prepare(x, &mut prepared);
        check(*kernel, &packed, &prepared, 0..n_tiles * tile, &expected, what);
        check(*kernel, &packed, &prepared, n_tiles / 2 * tile..n_tiles * tile, &expected, what);
        check(*kernel, &packed, &prepared, n_tiles / 3 * tile..(n_tiles / 3 + 1) * tile, &expected, what);
    }
}

#[test]
fn every_kernel_equals_the_oracle_around_every_edge() {
    let kernels = support::ternary_kernels();
    let shapes = N.iter().flat_map(|&n| K.iter().flat_map(move |&k| M.iter().map(move |&m| (n, k, m))));
    for (n, k, m) in sample(shapes) {
        for (what, w, x) in inputs(n, k, m) {
            check_input(&kernels, &w, &x, what);
        }
    }
}

#[test]
fn every_kernel_equals_the_oracle_on_long_rows() {
    let kernels = support::ternary_kernels();
    let shapes =
        [(33, 6912, 9), (33, 640, 5), (65, 2560, 1), (40, 2560, 9), (33, 6912, 1), (1, 6912, 2), (2, 6912, 33)];
    for (n, k, m) in sample(shapes) {
        for (what, w, x) in inputs(n, k, m) {
            check_input(&kernels, &w, &x, what);
        }
    }
}

#[test]
fn every_kernel_equals_the_oracle_on_large_batches() {
    let kernels = support::ternary_kernels();
    for (n, k, m) in sample([(33, 257, 128), (1, 1, 512), (65, 129, 512), (97, 33, 511)]) {
        for (what, w, x) in inputs(n, k, m) {
            check_input(&kernels, &w, &x, what);
        }
    }
}

/// A spike in every place of a tile, one at a time: the only input on which two swapped weights cannot cancel out.
#[test]
fn every_single_weight_counts_once() {
    let kernels = support::ternary_kernels();
    let (n, k) = (33, 35);
    let x = activations(2, k, |token, column| legal(token * 100 + column * 3 + 130));
    for at in sample(0..n * k) {
        let w = matrix(n, k, |row, column| i8::from(row * k + column == at));
        check_input(&kernels, &w, &x, "one weight");
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
            let scaled = |(i, &sum): (usize, &i32)| (sum as f32 / quantized.scales[i / n] * w.scale()).to_bits();
            let expected: Vec<u32> = oracle::gemm(&w, &quantized).iter().enumerate().map(scaled).collect();
            let linear = Linear::ternary(kernel, &w);
            for pool in &pools {
                let mut y = vec![f32::NAN; m * n];
                pool.run(|team| multiply(team, &mut Scratch::default(), &x, m, &mut [(&linear, &mut y)]));
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

/// The inputs are strong enough: a kernel that widens its int16 sums too late fails on them.
#[test]
fn a_careless_int16_sum_is_found_out() {
    let careless = |w: &TernaryMatrix, x: &QuantizedActivations, row: usize, token: usize| {
        let pairs = w.row(row).chunks(2).zip(x.row(token).chunks(2));
        let code_sum = pairs.fold(0i16, |sum, (w, x)| {
            let products = w.iter().zip(x).map(|(&w, &x)| i16::from(w + 1) * i16::from(x));
            sum.wrapping_add(products.sum())
        });
        i32::from(code_sum) - x.row(token).iter().map(|&x| i32::from(x)).sum::<i32>()
    };
    let caught = |k| {
        let wrong = |(what, w, x): (_, TernaryMatrix, QuantizedActivations)| {
            (oracle::gemm(&w, &x)[0] != careless(&w, &x, 0, 0)).then_some(what)
        };
        inputs(1, k, 1).into_iter().filter_map(wrong).collect::<Vec<&str>>()
    };
    assert!(caught(128).is_empty(), "64 pairs of at most 508 fit into int16");
    assert_eq!(caught(2560)[..2], ["all +1 by +127", "all +1 by -127"]);
    assert_eq!(caught(6912)[..2], ["all +1 by +127", "all +1 by -127"]);
}

/// The lossy kernels do lose, by no more than they say (every test above checks that), and not by much less: an input of odd
/// entries that all round the same way reaches nearly the whole bound. All of one layout agree with each other.
#[test]
fn a_lossy_kernel_reaches_its_bound_and_no_more() {
    let lossy = |layout: &str| {
        let wanted =
            |kernel: &&dyn TernaryKernel| kernel.info().layout == layout && kernel.info().exactness != Exactness::Exact;
        support::ternary_kernels().into_iter().filter(wanted).collect::<Vec<_>>()
    };
    let run = |kernel: &dyn TernaryKernel, w: &TernaryMatrix, x: &QuantizedActivations| {
        let mut prepared = Prepared::default();
        kernel.prepare(x, &mut prepared);
        let n_rows = w.n().next_multiple_of(kernel.info().row_tile);
        let mut acc = vec![POISON; x.m * n_rows];
        kernel.compute(&kernel.pack(w), &prepared, 0..n_rows, &mut acc);
        acc.chunks_exact(n_rows).flat_map(|acc| acc[..w.n()].to_vec()).collect::<Vec<i32>>()
    };
    let worst =
        |got: &[i32], expected: &[i32]| got.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    // The first group has the largest entry, 254 or 380, and the others half of it: 63.5 steps.
    let adverse = [
        ("tl1", matrix(3, 2560, |_, _| 1), activations(2, 2560, |_, k| if k < 2 { 127 } else { [126, 1][k % 2] })),
        (
            "tl2",
            matrix(3, 2550, |_, _| 1),
            activations(2, 2550, |_, k| if k < 3 { [127, 127, 126][k] } else { [64, 63, 63][k % 3] }),
        ),
    ];
    for (layout, w, x) in adverse {
        let kernels = lossy(layout);
        assert!(!kernels.is_empty(), "the scalar ones run everywhere");
        for kernel in &kernels {
            let allowed = kernel.info().exactness.allowed(w.k());
            let error = worst(&run(*kernel, &w, &x), &oracle::gemm(&w, &x));
            assert!(error <= allowed && error * 10 >= allowed * 9, "{}: {error} of {allowed}", kernel.info().name);
            // Zeros in place of sums would not pass.
            assert!(worst(&[0], &oracle::gemm(&w, &x)[..1]) > 10 * allowed);
        }
        let mut random = Random::new(3);
        let w = matrix(65, 2561, |_, _| random.below(3) as i8 - 1);
        let x = activations(5, 2561, |_, _| legal(random.below(255)));
        let (first, expected) = (run(kernels[0], &w, &x), oracle::gemm(&w, &x));
        let error = worst(&first, &expected);
        assert!(
            error > 0 && error * 5 < kernels[0].info().exactness.allowed(2561),
            "{layout}: {error} on random input"
        );
        for kernel in &kernels[1..] {
            assert_eq!(run(*kernel, &w, &x), first, "{}", kernel.info().name);
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
        use ternbench_kernels::layout::{b3, bitplane, i2s, t5, tl1, tl2, tq1, tq2, vlut};
        let mut random = Random::new(seed);
        let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
        assert_eq!(i2s::unpack(&i2s::pack(&w)), w.trits());
        assert_eq!(b3::unpack(&b3::pack(&w)), w.trits());
        assert_eq!(t5::unpack(&t5::pack(&w)), w.trits());
        assert_eq!(tq1::unpack(&tq1::pack(&w)), w.trits());
        assert_eq!(tq2::unpack(&tq2::pack(&w)), w.trits());
        assert_eq!(tl1::unpack(&tl1::pack(&w)), w.trits());
        assert_eq!(tl2::unpack(&tl2::pack(&w)), w.trits());
        assert_eq!(bitplane::unpack(&bitplane::pack(&w)), w.trits());
        assert_eq!(vlut::unpack(&vlut::pack(&w)), w.trits());
    }
}
