//! Proof before timing: kernels against the oracle, on inputs made to break them.

use std::fmt;

use rayon::prelude::*;

use crate::activation::QuantizedActivations;
use crate::kernel::{PackedMatrix, Prepared, TernaryKernel};
use crate::oracle;
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// A matrix and activations with a name that says what they are after.
pub struct Case {
    /// What is tried.
    pub name: &'static str,
    /// The weights.
    pub w: TernaryMatrix,
    /// The activations.
    pub x: QuantizedActivations,
}

/// A sum that is not the oracle's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// `n, k, m` of the shape.
    pub shape: [usize; 3],
    /// The case's name.
    pub case: &'static str,
    /// Where.
    pub token: usize,
    /// Where.
    pub row: usize,
    /// The oracle's sum.
    pub expected: i32,
    /// The kernel's sum.
    pub got: i32,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [n, k, m] = self.shape;
        let Self { case, token, row, expected, got, .. } = self;
        write!(f, "{n} x {k}, {m} tokens, {case}: token {token}, row {row} is {got}, not {expected}")
    }
}

/// A small seeded generator (xorshift64*), so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number, 48 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// In `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_bits() % n as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Nearly normal, of variance 4: a sum of twelve.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.float()).sum()
    }
}

/// The matrix with `trit(row, column)`.
pub fn matrix(n: usize, k: usize, mut trit: impl FnMut(usize, usize) -> i8) -> TernaryMatrix {
    let trits = (0..n).flat_map(|row| (0..k).map(move |column| (row, column))).map(|(r, c)| trit(r, c)).collect();
    TernaryMatrix::new(n, k, trits, 0.75).expect("the cases are made of trits")
}

/// The activations with `value(token, column)`.
pub fn activations(m: usize, k: usize, mut value: impl FnMut(usize, usize) -> i8) -> QuantizedActivations {
    let values = (0..m * k).map(|i| value(i / k, i % k)).collect();
    QuantizedActivations { m, k, values, scales: (0..m).map(|token| 1.0 + token as f32 / 8.0).collect() }
}

/// Maps any number into -127..=127.
pub fn legal(i: usize) -> i8 {
    ((i % 255) as i16 - 127) as i8
}

/// How many cases there are, see [`cases`].
pub const N_CASES: usize = 10;

/// The cases of a shape, made one at a time: extremes that overflow narrow sums, lone spikes that expose a wrong place, cycles
/// whose prime lengths fit no tile, and random ones.
pub fn cases(n: usize, k: usize, m: usize) -> impl Iterator<Item = Case> {
    (0..N_CASES).map(move |case| {
        let (name, w) = weights(case, n, k);
        Case { name, w, x: input(case, m, k) }
    })
}

fn sign(i: usize) -> i8 {
    if i.is_multiple_of(2) { 1 } else { -1 }
}

/// The name and the weights of a case.
fn weights(case: usize, n: usize, k: usize) -> (&'static str, TernaryMatrix) {
    let all = |trit| matrix(n, k, |_, _| trit);
    // One non-zero weight a row, moved so that all columns are met over the rows.
    let spikes = || matrix(n, k, |row, column| i8::from(column == row * 7 % k));
    match case {
        0 => ("all +1 by +127", all(1)),
        1 => ("all +1 by -127", all(1)),
        2 => ("all -1 by +127", all(-1)),
        3 => ("all -1 by -127", all(-1)),
        4 => ("alternating signs", matrix(n, k, |row, k| sign(row + k))),
        5 => ("spikes in the weights", spikes()),
        6 => ("spikes in the activations", matrix(n, k, |row, k| ((row * 5 + k * 3) % 7 % 3) as i8 - 1)),
        7 => ("spikes in both", spikes()),
        8 => ("prime cycles", matrix(n, k, |row, k| ((row * 13 + k) % 11 % 3) as i8 - 1)),
        _ => {
            let mut random = Random::new((n * 1_000_003 + k * 1009) as u64);
            ("random", matrix(n, k, |_, _| random.below(3) as i8 - 1))
        }
    }
}

/// The activations of a case.
fn input(case: usize, m: usize, k: usize) -> QuantizedActivations {
    match case {
        0 | 2 => activations(m, k, |_, _| 127),
        1 | 3 => activations(m, k, |_, _| -127),
        4 => activations(m, k, |token, k| 127 * sign(token + k)),
        5 => activations(m, k, |token, k| legal(token * 31 + k * 17)),
        // One non-zero activation a token, moved as the weights are.
        6 | 7 => activations(m, k, |token, column| if column == token * 7 % k { -127 } else { 0 }),
        8 => activations(m, k, |token, k| legal((token * 29 + k) % 251)),
        _ => {
            let mut random = Random::new((m * 999_983 + k) as u64);
            activations(m, k, |_, _| legal(random.below(255)))
        }
    }
}

/// Compares every kernel with the oracle on all cases of a matrix's shape, with `batches` tokens each: per kernel, the number of
/// cases passed or the first wrong sum. Kernels take turns on all of rayon's threads: packing is most of the work.
pub fn verify(kernels: &[&dyn TernaryKernel], n: usize, k: usize, batches: &[usize]) -> Vec<Result<u64, Mismatch>> {
    let mut results = vec![Ok(0); kernels.len()];
    for case in 0..N_CASES {
        let (name, w) = weights(case, n, k);
        let inputs = batches.iter().map(|&m| input(case, m, k));
        let inputs: Vec<_> = inputs.map(|x| (oracle::gemm(&w, &x), x)).collect();
        kernels.par_iter().zip(&mut results).for_each(|(kernel, result)| {
            if let Ok(passed) = result {
                let packed = kernel.pack(&w);
                let checked = inputs.iter().try_for_each(|(expected, x)| check(*kernel, name, &packed, x, expected));
                *result = checked.map(|()| *passed + batches.len() as u64);
            }
        });
    }
    results
}

fn check(
    kernel: &dyn TernaryKernel,
    case: &'static str,
    packed: &PackedMatrix,
    x: &QuantizedActivations,
    expected: &[i32],
) -> Result<(), Mismatch> {
    let (n, k, m) = (packed.n, packed.k, x.m);
    let mut prepared = Prepared::default();
    kernel.prepare(&Team::alone(), x, &mut prepared);
    let n_rows = n.next_multiple_of(kernel.info().row_tile);
    // What no kernel writes by chance.
    let mut acc = vec![0x5EED_5EED; m * n_rows];
    kernel.compute(packed, &prepared, 0..n_rows, &mut acc);
    let allowed = kernel.info().exactness.allowed(k);
    for (at, &got) in acc.iter().enumerate() {
        let (token, row) = (at / n_rows, at % n_rows);
        let expected = if row < n { expected[token * n + row] } else { 0 };
        if got.wrapping_sub(expected).unsigned_abs() > allowed {
            return Err(Mismatch { shape: [n, k, m], case, token, row, expected, got });
        }
    }
    Ok(())
}
