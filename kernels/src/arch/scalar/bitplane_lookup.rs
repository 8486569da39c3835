//! `scalar-bitplane-lookup`: one table lookup per four bits of a plane, one plane added, the other subtracted, plain loops.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::bitplane::{self, CODES, TILE_K, TILE_ROWS};
use crate::tables;
use crate::trit::TernaryMatrix;

/// See the module.
pub struct BitplaneLookup(#[allow(dead_code, reason = "the proof of support")] Scalar);

impl BitplaneLookup {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-bitplane-lookup",
        summary: "a lookup per 4 weights of a bit plane, plain loops",
        features: Scalar::FEATURES,
        layout: "bitplane",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "T-MAC (arXiv 2407.00088), planes of +1 and -1",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

impl TernaryKernel for BitplaneLookup {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        bitplane::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        tables::fill::<TILE_K, 2>(&CODES, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        for tile in 0..n_rows / TILE_ROWS {
            let steps = bitplane::tile(w, rows.start / TILE_ROWS + tile);
            for token in 0..x.m {
                let tables = tables::of::<2>(x, token);
                let mut sums = [0; TILE_ROWS];
                for (step, table) in steps.iter().zip(tables) {
                    for (sum, byte) in sums.iter_mut().zip(step) {
                        *sum += tables::entry(table, byte & 15) - tables::entry(table, byte >> 4);
                    }
                }
                acc[token * n_rows + tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&sums);
            }
        }
    }
}
