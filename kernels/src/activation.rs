//! The per-token int8 activation quantiser that every ternary kernel shares.

use crate::bytes::Aligned;

/// `m x k` activations as int8 with one factor per token: `x ≈ value / scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedActivations {
    /// Tokens.
    pub m: usize,
    /// Inputs per token.
    pub k: usize,
    /// `m * k` values in -127..=127, row-major.
    pub values: Aligned<i8>,
    /// One per token: `127 / max(absmax, 1e-5)`.
    pub scales: Vec<f32>,
}

impl QuantizedActivations {
    /// Quantises `m` rows of `k` floats (absmax to 127, round half to even), the BitLinear input of BitNet b1.58.
    pub fn quantize(x: &[f32], m: usize, k: usize) -> Self {
        let mut quantized = Self::default();
        quantized.resize(m, k);
        let rows = x.chunks_exact(k).zip(quantized.values.chunks_exact_mut(k));
        for ((row, values), scale) in rows.zip(&mut quantized.scales) {
            *scale = crate::ops::quantize_row(row, values);
        }
        quantized
    }

    /// Makes room for `m` rows of `k` values, which are unspecified afterwards, without giving memory back.
    pub fn resize(&mut self, m: usize, k: usize) {
        (self.m, self.k) = (m, k);
        self.values.resize(m * k);
        self.scales.resize(m, 0.0);
    }

    /// The values of token `token`.
    pub fn row(&self, token: usize) -> &[i8] {
        &self.values[token * self.k..][..self.k]
    }
}
