//! `scalar-i2s-unpack`: unpacks a stretch of one row to bytes and multiplies it with every token. Portable, and short enough
//! to be compared with the layout's document line by line.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::i2s::{self, TILE_K, TILE_ROWS};
use crate::trit::TernaryMatrix;

/// See the module.
pub struct I2sUnpack(#[allow(dead_code, reason = "the proof of support")] Scalar);

impl I2sUnpack {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-i2s-unpack",
        summary: "2-bit codes unpacked to bytes, plain loops",
        features: Scalar::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

/// Tiles unpacked at once: 512 weights, long enough for a vectorised dot product, short enough for the stack.
const STRETCH: usize = 32;

impl TernaryKernel for I2sUnpack {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(x, TILE_K);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        acc.fill(0);
        for (row_tile, tiles) in i2s::row_tiles(w, rows).enumerate() {
            for r in 0..TILE_ROWS {
                for (stretch, tiles) in tiles.chunks(STRETCH).enumerate() {
                    let mut weights = [0i8; STRETCH * TILE_K];
                    for (weights, tile) in weights.as_chunks_mut::<TILE_K>().0.iter_mut().zip(tiles) {
                        // Columns `4p..4p + 4` are bit pair `p` of the four bytes; a code less one is the trit.
                        for (p, weights) in weights.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                            let codes = i2s::dword(tile, r) >> (2 * p) & 0x0303_0303;
                            *weights = codes.to_le_bytes().map(|code| code as i8 - 1);
                        }
                    }
                    for token in 0..x.m {
                        let x = &x.row(token)[stretch * STRETCH * TILE_K..][..tiles.len() * TILE_K];
                        let products = weights.iter().zip(x).map(|(&w, &x)| i32::from(i16::from(w) * i16::from(x)));
                        acc[token * n_rows + row_tile * TILE_ROWS + r] += products.sum::<i32>();
                    }
                }
            }
        }
    }
}
