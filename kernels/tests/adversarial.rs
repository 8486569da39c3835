//! Inputs on which careless engines are wrong, with the sums that pencil and paper give; and careless engines, on which
//! [`verify`](ternbench_kernels::verify) must cry out: a proof is worth as much as the mistakes it finds.

mod support;

use std::ops::Range;

use ternbench_kernels::verify::{activations, matrix, verify};
use ternbench_kernels::*;

fn sign(i: usize) -> i8 {
    if i.is_multiple_of(2) { 1 } else { -1 }
}

/// A function of row or token, and column.
type Values = fn(usize, usize) -> i8;

/// Name, weights by row and column, activations by token and column, and the sum of every row and token for an even `k`.
type Adversary = (&'static str, Values, Values, fn(k: i32) -> i32);

const ADVERSARIES: &[Adversary] = &[
    // As codes 0 to 2 the products are up to 254 and all of one sign: int16 pairs overflow after 64 of them, saturating or not.
    ("all +1 by +127", |_, _| 1, |_, _| 127, |k| 127 * k),
    ("all +1 by -127", |_, _| 1, |_, _| -127, |k| -127 * k),
    ("all -1 by +127", |_, _| -1, |_, _| 127, |k| -127 * k),
    ("all -1 by -127", |_, _| -1, |_, _| -127, |k| 127 * k),
    // The codes' sum and the correction for them both overflow, and cancel out in the result.
    ("zeros by +127", |_, _| 0, |_, _| 127, |_| 0),
    // A plain Σ x is 0 here, so a wrong correction does not show elsewhere; the sum does.
    ("signs that agree", |_, k| sign(k), |_, k| 127 * sign(k), |k| 127 * k),
    ("signs that disagree", |_, k| sign(k), |_, k| -127 * sign(k), |k| -127 * k),
    // Half of the lanes carry everything.
    ("every other weight", |_, k| (k % 2) as i8, |_, _| 127, |k| 127 * k / 2),
    ("every other activation", |_, _| 1, |_, k| 127 * (k % 2) as i8, |k| 127 * k / 2),
    // Runs longer than a widening block, with a turn in the middle: a sum that overflows on the way and comes back.
    ("up, then down", |_, k| if k < 1280 { 1 } else { -1 }, |_, _| 127, |k| 127 * (1280 - (k - 1280))),
    // One product in the whole row, in the last column of the shorter shape.
    ("a spike", |_, k| i8::from(k == 2559), |_, k| if k == 2559 { -127 } else { 0 }, |_| -127),
    ("a spike among +127", |_, k| if k == 1281 { -1 } else { 1 }, |_, _| 127, |k| 127 * (k - 2)),
];

#[test]
fn sums_that_overflow_int16_are_exact() {
    for kernel in support::ternary_kernels() {
        let allowed = |k| kernel.info().exactness.allowed(k);
        // The shorter first: under emulation it is the only one.
        for k in support::sample([2560, 6912]) {
            for (name, w, x, expected) in ADVERSARIES {
                let w = matrix(33, k, *w);
                let packed = kernel.pack(&w);
                let n_rows = w.n().next_multiple_of(kernel.info().row_tile);
                for m in [1, 9, 12] {
                    let mut prepared = Prepared::default();
                    kernel.prepare(&Team::alone(), &activations(m, k, *x), &mut prepared);
                    let mut acc = vec![0x5EED_5EED; m * n_rows];
                    kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
                    for (at, &got) in acc.iter().enumerate() {
                        let want = if at % n_rows < w.n() { expected(k as i32) } else { 0 };
                        let info = kernel.info();
                        assert!(
                            got.wrapping_sub(want).unsigned_abs() <= allowed(k),
                            "{}: {name}, k = {k}, {m} tokens: row {}, token {} is {got}, not {want}",
                            info.name,
                            at % n_rows,
                            at / n_rows
                        );
                    }
                }
            }
        }
    }
}

/// An engine with a mistake in it.
struct Careless(fn(w: &PackedMatrix, x: &Prepared, row: usize, token: usize) -> i32);

impl TernaryKernel for Careless {
    fn info(&self) -> &'static KernelInfo {
        &KernelInfo {
            name: "careless-i8-wrong",
            summary: "wrong",
            features: &[],
            layout: "i8",
            bits_per_weight: 8.0,
            row_tile: 1,
            exactness: Exactness::Exact,
            source: "experience",
        }
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
                acc[token * rows.len() + row - rows.start] = self.0(w, x, row, token);
            }
        }
    }
}

fn weights(w: &PackedMatrix, row: usize) -> &[i8] {
    &w.data.as_i8()[row * w.k..][..w.k]
}

fn dot(w: &[i8], x: &[i8]) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum()
}

/// `vpmaddubsw` on codes 0 to 2, its pairs added up by `add` in int16 lanes, as many as a 256-bit register has, widened at the end.
fn int16_lanes(w: &PackedMatrix, x: &Prepared, row: usize, token: usize, add: fn(i16, i16) -> i16) -> i32 {
    let mut lanes = [0i16; 16];
    for (w, x) in weights(w, row).chunks(32).zip(x.row(token).chunks(32)) {
        for (lane, (w, x)) in lanes.iter_mut().zip(w.chunks(2).zip(x.chunks(2))) {
            let pair = w.iter().zip(x).map(|(&w, &x)| i16::from(w + 1) * i16::from(x)).sum();
            *lane = add(*lane, pair);
        }
    }
    lanes.iter().map(|&lane| i32::from(lane)).sum::<i32>() - x.sums[token]
}

/// Name, engine, a shape (`n, k, m`) on which the mistake shows, and the case by which it is found first.
type Mistake = (&'static str, Careless, [usize; 3], &'static str);

const MISTAKES: &[Mistake] = &[
    (
        "int16 lanes that wrap, never widened",
        Careless(|w, x, row, token| int16_lanes(w, x, row, token, i16::wrapping_add)),
        [2, 6912, 1],
        "all +1 by +127",
    ),
    (
        "int16 lanes that wrap, at the shorter k",
        Careless(|w, x, row, token| int16_lanes(w, x, row, token, i16::wrapping_add)),
        [2, 2560, 1],
        "all +1 by +127",
    ),
    (
        "int16 lanes that saturate",
        Careless(|w, x, row, token| int16_lanes(w, x, row, token, i16::saturating_add)),
        [2, 2560, 1],
        "all +1 by +127",
    ),
    ("an empty body", Careless(|_, _, _, _| 0), [1, 1, 1], "all +1 by +127"),
    (
        "every token is the first",
        Careless(|w, x, row, _| dot(weights(w, row), x.row(0))),
        [4, 16, 2],
        "alternating signs",
    ),
    (
        "every row is the first",
        Careless(|w, x, _, token| dot(weights(w, 0), x.row(token))),
        [2, 16, 1],
        "alternating signs",
    ),
    (
        "a tail is left out",
        Careless(|w, x, row, token| dot(&weights(w, row)[..w.k / 16 * 16], x.row(token))),
        [1, 17, 1],
        "all +1 by +127",
    ),
    (
        "two columns are swapped",
        Careless(|w, x, row, token| {
            let mut w = weights(w, row).to_vec();
            w.swap(3, 4);
            dot(&w, x.row(token))
        }),
        [9, 16, 3],
        "alternating signs",
    ),
    (
        "the last row is one column off",
        Careless(|w, x, row, token| {
            let mut weights = weights(w, row).to_vec();
            weights.rotate_right(usize::from(row + 1 == w.n));
            dot(&weights, x.row(token))
        }),
        [33, 64, 1],
        "alternating signs",
    ),
    (
        "-1 counts as 0",
        Careless(|w, x, row, token| {
            let w: Vec<i8> = weights(w, row).iter().map(|&w| w.max(0)).collect();
            dot(&w, x.row(token))
        }),
        [1, 1, 1],
        "all -1 by +127",
    ),
];

#[test]
fn every_careless_engine_is_found_out() {
    for (mistake, engine, [n, k, m], case) in MISTAKES {
        let found = verify(&[engine], *n, *k, &[*m]).remove(0).expect_err(mistake);
        assert_eq!(found.case, *case, "{mistake}: {found}");
    }
}

/// The int16 engine is right where its lanes hold the sums: it is the length of the row that breaks it, nothing else.
#[test]
fn a_careless_engine_is_right_on_short_rows() {
    let engine = Careless(|w, x, row, token| int16_lanes(w, x, row, token, i16::wrapping_add));
    // 64 pairs of at most 508 in each of 16 lanes.
    for k in [1, 31, 32, 33, 1024, 2048] {
        assert_eq!(verify(&[&engine], 3, k, &[2]), [Ok(10)], "k = {k}");
    }
}
