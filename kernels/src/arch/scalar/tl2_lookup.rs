//! `scalar-tl2-lookup`, and `-lossy`: one table lookup per three weights, negated where the sign bit says so, plain loops.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::tl2::{self, CODES, GROUP, GROUPS, INDEX_VECTORS, TILE_K, TILE_ROWS};
use crate::tables;
use crate::trit::TernaryMatrix;

/// With tables of `H` bytes per entry.
pub struct Tl2<const H: usize>(#[allow(dead_code, reason = "the proof of support")] Scalar);

/// Exact.
pub type Tl2Lookup = Tl2<2>;
/// With tables requantised to int8.
pub type Tl2LookupLossy = Tl2<1>;

impl<const H: usize> Tl2<H> {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: if H == 2 { "scalar-tl2-lookup" } else { "scalar-tl2-lookup-lossy" },
        summary: if H == 2 { "a lookup per 3 weights, plain loops" } else { "the same, tables requantised to int8" },
        features: Scalar::FEATURES,
        layout: "tl2",
        bits_per_weight: 5.0 / 3.0,
        row_tile: TILE_ROWS,
        exactness: tables::exactness::<GROUP, H>(),
        source: "bitnet.cpp TL2 (arXiv 2502.11880)",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

impl<const H: usize> TernaryKernel for Tl2<H> {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        tl2::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        tables::fill::<GROUP, H>(&CODES, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        for tile in 0..n_rows / TILE_ROWS {
            let chunks = tl2::tile(w, rows.start / TILE_ROWS + tile);
            for token in 0..x.m {
                let tables = tables::of::<H>(x, token).as_chunks::<GROUPS>().0;
                let mut sums = [0; TILE_ROWS];
                for (chunk, tables) in chunks.iter().zip(tables) {
                    for (j, table) in tables.iter().enumerate() {
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let entry = tables::entry(table, chunk[j / 2][r] >> (4 * (j % 2)));
                            let negative = chunk[INDEX_VECTORS][r] >> (7 - j) & 1 == 1;
                            *sum += if negative { -entry } else { entry };
                        }
                    }
                }
                acc[token * n_rows + tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&sums);
            }
        }
        tables::rescale::<H>(x, acc);
    }
}
