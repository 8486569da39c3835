//! `scalar-i8-blocked`: one byte per weight, in blocks that stay in the L1 cache: 4 rows x 1024 columns meet every token before
//! the next block, and 4 rows share each load of activations.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::i8;
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// See the module.
pub struct I8Blocked(#[allow(dead_code, reason = "the proof of support")] Scalar);

impl I8Blocked {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-i8-blocked",
        summary: "one byte per weight, 4 rows x 1024 columns at a time",
        features: Scalar::FEATURES,
        layout: "i8",
        bits_per_weight: 8.0,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "every int8 GEMM",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

/// Rows that share a load of activations.
const ROWS: usize = 4;
/// Columns of a block: 4 KB of weights.
const COLUMNS: usize = 1024;

impl TernaryKernel for I8Blocked {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        i8::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(team, x, 1);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let (k, n_rows) = (w.k, rows.len());
        acc.fill(0);
        for (group, weights) in w.data.as_i8()[rows.start * k..rows.end * k].chunks((ROWS * k).max(1)).enumerate() {
            for first in (0..k).step_by(COLUMNS) {
                let len = COLUMNS.min(k - first);
                for token in 0..x.m {
                    let x = &x.row(token)[first..][..len];
                    let acc = &mut acc[token * n_rows + group * ROWS..];
                    if weights.len() == ROWS * k {
                        let mut block = [x; ROWS];
                        for (r, row) in block.iter_mut().enumerate() {
                            *row = &weights[r * k + first..][..len];
                        }
                        for (acc, sum) in acc.iter_mut().zip(dot_rows(block, x)) {
                            *acc += sum;
                        }
                    } else {
                        for (acc, row) in acc.iter_mut().zip(weights.chunks_exact(k)) {
                            *acc += dot_rows([&row[first..][..len]], x)[0];
                        }
                    }
                }
            }
        }
    }
}

/// `Σ w x` of several rows as long as `x`.
fn dot_rows<const R: usize>(rows: [&[i8]; R], x: &[i8]) -> [i32; R] {
    let rows = rows.map(|row| &row[..x.len()]);
    let mut sums = [0; R];
    for (i, &x) in x.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum += i32::from(i16::from(row[i]) * i16::from(x));
        }
    }
    sums
}
