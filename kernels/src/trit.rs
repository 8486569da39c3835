//! The canonical ternary matrix: what every loader produces and every kernel packs from.

use thiserror::Error;

/// A validated `n x k` matrix of trits (-1, 0, +1), row-major, with one scale for the whole tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TernaryMatrix {
    n: usize,
    k: usize,
    scale: f32,
    trits: Vec<i8>,
}

/// Why a buffer is not a ternary matrix.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum TritError {
    /// The buffer does not hold `n * k` values.
    #[error("{len} trits given for a {n} x {k} matrix")]
    Length {
        /// Values given.
        len: usize,
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// A value other than -1, 0, +1.
    #[error("value {value} at row {row}, column {column} is not -1, 0 or +1")]
    Value {
        /// The offending value.
        value: i8,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The scale is NaN or infinite.
    #[error("the scale {0} is not a finite number")]
    Scale(f32),
}

impl TernaryMatrix {
    /// Takes `n * k` trits in row-major order and the factor that turns them into weights.
    pub fn new(n: usize, k: usize, trits: Vec<i8>, scale: f32) -> Result<Self, TritError> {
        if n.checked_mul(k) != Some(trits.len()) {
            return Err(TritError::Length { len: trits.len(), n, k });
        }
        if !scale.is_finite() {
            return Err(TritError::Scale(scale));
        }
        // A branch-free pass first: it runs at memory speed, and models have billions of trits.
        if trits.iter().fold(false, |bad, &t| bad | ((t as u8).wrapping_add(1) > 2))
            && let Some(at) = trits.iter().position(|t| !(-1..=1).contains(t))
        {
            return Err(TritError::Value { value: trits[at], row: at / k, column: at % k });
        }
        Ok(Self { n, k, scale, trits })
    }

    /// Quantises float weights as BitNet b1.58 does (absmean): `clamp(round(w / mean|w|), -1, 1)`, round half to even,
    /// all in f32; the scale is `mean|w|` (at least 1e-5). The mean is summed in f64 so that it does not depend on order.
    pub fn from_absmean(n: usize, k: usize, weights: &[f32]) -> Result<Self, TritError> {
        let sum: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
        let mean = ((sum / weights.len().max(1) as f64) as f32).max(1e-5);
        if !mean.is_finite() {
            return Err(TritError::Scale(mean));
        }
        let inverse = 1.0 / mean;
        let trits = weights.iter().map(|w| (w * inverse).round_ties_even().clamp(-1.0, 1.0) as i8).collect();
        Self::new(n, k, trits, 1.0 / inverse)
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs per row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The weight of a trit of +1.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// All trits, row-major.
    pub fn trits(&self) -> &[i8] {
        &self.trits
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &[i8] {
        &self.trits[row * self.k..][..self.k]
    }
}
