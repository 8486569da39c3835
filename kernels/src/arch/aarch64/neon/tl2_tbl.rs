//! `neon-tl2-tbl`, and `-lossy`: a nibble and a sign bit per three weights, looked up for 16 rows at once by `tbl`.
//!
//! The table has the entries of the non-negative numbers only. `-e = !e + 1`, in two's complement: where the sign bit is set, both
//! halves of the entry are complemented, and the set sign bits, counted, are added at the end. A biased
//! lossy byte `q + 128` becomes `127 - q`, so the same count is right there.
//!
//! An entry is at most 3·127 = 381, so an int16 holds the sum of 80 of them (30,480 of 32,767); a lossy one is at most 127.
//! [`super::lookup`] says how they are added up.

use std::arch::aarch64::*;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Neon, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::tl2::{self, CODES, Chunk, GROUP, GROUPS, INDEX_VECTORS, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};
use crate::trit::TernaryMatrix;

use super::lookup::{Bytes, Sums, load_quarter, look, nibbles};

/// With tables of `H` bytes per entry.
pub struct Tl2<const H: usize>(#[allow(dead_code, reason = "the proof of support")] Neon);

/// Exact.
pub type Tl2Tbl = Tl2<2>;
/// With tables requantised to int8.
pub type Tl2TblLossy = Tl2<1>;

impl<const H: usize> Tl2<H> {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: if H == 2 { "neon-tl2-tbl" } else { "neon-tl2-tbl-lossy" },
        summary: if H == 2 { "tbl, a lookup and a sign per 3 weights" } else { "the same, tables requantised to int8" },
        features: Neon::FEATURES,
        layout: "tl2",
        bits_per_weight: 5.0 / 3.0,
        row_tile: TILE_ROWS,
        exactness: tables::exactness::<GROUP, H>(),
        source: "bitnet.cpp TL2 (arXiv 2502.11880), rows interleaved",
    };

    /// The kernel, where the CPU has NEON.
    pub fn new() -> Option<Self> {
        Neon::detect().map(Self)
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
        let groups = w.k.next_multiple_of(TILE_K) / GROUP;
        assert_eq!(x.stride, groups * size_of::<Table<H>>(), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds a `Neon`, which only run-time detection hands out.
        unsafe { compute::<H>(w, x, rows, acc) };
        tables::rescale::<H>(x, acc);
    }
}

/// Chunks between two widenings: 80 groups.
const BLOCK: usize = 10;

#[target_feature(enable = "neon")]
fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    acc.fill(0);
    for row in rows.clone().step_by(TILE_ROWS) {
        for (block, chunks) in tl2::tile(w, row / TILE_ROWS).chunks(BLOCK).enumerate() {
            for token in 0..x.m {
                let tables = &tables::of::<H>(x, token).as_chunks().0[block * BLOCK..][..chunks.len()];
                if let Some(acc) = acc[token * n_rows + row - rows.start..].first_chunk_mut() {
                    add_block::<H>(chunks, tables, acc);
                }
            }
        }
    }
}

/// 64 rows over at most [`BLOCK`] chunks.
#[target_feature(enable = "neon")]
fn add_block<const H: usize>(chunks: &[Chunk], tables: &[[Table<H>; GROUPS]], acc: &mut [i32; TILE_ROWS]) {
    for (quarter, acc) in acc.as_chunks_mut().0.iter_mut().enumerate() {
        let (mut sums, mut negative) = (Sums::new(), vdupq_n_u8(0));
        for (chunk, tables) in chunks.iter().zip(tables) {
            let mut signs = load_quarter(&chunk[INDEX_VECTORS], quarter);
            for (v, tables) in tables.as_chunks::<2>().0.iter().enumerate() {
                let codes = nibbles(load_quarter(&chunk[v], quarter));
                for (table, codes) in tables.iter().zip(codes) {
                    // The sign of the next group is each byte's highest bit.
                    let flip = vcltzq_s8(vreinterpretq_s8_u8(signs));
                    signs = vaddq_u8(signs, signs);
                    negative = vsubq_u8(negative, flip);
                    sums.add(look(table, codes).complement::<H>(flip));
                }
            }
        }
        sums.add(Bytes::small(negative));
        sums.widen::<H>(GROUPS * chunks.len(), acc);
    }
}
