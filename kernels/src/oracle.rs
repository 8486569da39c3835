//! The definition of correct: a naive integer triple loop. It shares code with nothing, so a bug elsewhere cannot hide here.

use crate::activation::QuantizedActivations;
use crate::trit::TernaryMatrix;

/// `acc[token * n + row] = Σ_k w[row, k] · x[token, k]`, one multiplication at a time.
pub fn gemm(w: &TernaryMatrix, x: &QuantizedActivations) -> Vec<i32> {
    assert_eq!(w.k(), x.k, "the matrix and the activations disagree on k");
    let mut acc = Vec::with_capacity(x.m * w.n());
    for token in 0..x.m {
        for row in 0..w.n() {
            let mut sum = 0i32;
            for k in 0..w.k() {
                sum += i32::from(w.trits()[row * w.k() + k]) * i32::from(x.values[token * x.k + k]);
            }
            acc.push(sum);
        }
    }
    acc
}
