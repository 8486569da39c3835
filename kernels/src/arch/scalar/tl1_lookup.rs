//! `scalar-tl1-lookup`, and `-lossy`: one table lookup per two weights, plain loops.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::tl1::{self, CODES, GROUP, TILE_K, TILE_ROWS};
use crate::tables;
use crate::trit::TernaryMatrix;

/// With tables of `H` bytes per entry.
pub struct Tl1<const H: usize>(#[allow(dead_code, reason = "the proof of support")] Scalar);

/// Exact.
pub type Tl1Lookup = Tl1<2>;
/// With tables requantised to int8.
pub type Tl1LookupLossy = Tl1<1>;

impl<const H: usize> Tl1<H> {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: if H == 2 { "scalar-tl1-lookup" } else { "scalar-tl1-lookup-lossy" },
        summary: if H == 2 { "a lookup per 2 weights, plain loops" } else { "the same, tables requantised to int8" },
        features: Scalar::FEATURES,
        layout: "tl1",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: tables::exactness::<GROUP, H>(),
        source: "bitnet.cpp TL1 (arXiv 2502.11880)",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

impl<const H: usize> TernaryKernel for Tl1<H> {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        tl1::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        tables::fill::<GROUP, H>(&CODES, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        for tile in 0..n_rows / TILE_ROWS {
            let steps = tl1::tile(w, rows.start / TILE_ROWS + tile);
            for token in 0..x.m {
                let tables = tables::of::<H>(x, token).as_chunks::<2>().0;
                let mut sums = [0; TILE_ROWS];
                for (step, [low, high]) in steps.iter().zip(tables) {
                    for (sum, byte) in sums.iter_mut().zip(step) {
                        *sum += tables::entry(low, byte & 15) + tables::entry(high, byte >> 4);
                    }
                }
                acc[token * n_rows + tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&sums);
            }
        }
        tables::rescale::<H>(x, acc);
    }
}
