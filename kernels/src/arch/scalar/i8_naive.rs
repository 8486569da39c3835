//! `scalar-i8-naive`: one byte per weight, one loop. What the oracle computes, in the shape of a kernel, so that a whole model
//! can run on it.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::i8;
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// See the module.
pub struct I8Naive(#[allow(dead_code, reason = "the proof of support")] Scalar);

impl I8Naive {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-i8-naive",
        summary: "one byte per weight, one plain loop",
        features: Scalar::FEATURES,
        layout: "i8",
        bits_per_weight: 8.0,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "the definition",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

impl TernaryKernel for I8Naive {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        i8::pack(w)
    }

    fn prepare(&self, _: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        (out.m, out.stride) = (x.m, x.k);
        out.bytes.ensure_len(x.values.len());
        out.bytes.as_i8_mut().copy_from_slice(&x.values);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let (k, n_rows) = (w.k, rows.len());
        for (row, weights) in w.data.as_i8()[rows.start * k..rows.end * k].chunks_exact(k).enumerate() {
            for (token, values) in x.bytes.as_i8().chunks_exact(k).take(x.m).enumerate() {
                let products = weights.iter().zip(values).map(|(&w, &x)| i32::from(i16::from(w) * i16::from(x)));
                acc[token * n_rows + row] = products.sum();
            }
        }
    }
}
