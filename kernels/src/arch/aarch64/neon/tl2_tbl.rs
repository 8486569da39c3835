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

use crate::arch::lookup::{Lookup, Method, Tl2};
use crate::isa::Neon;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl2::{self, Chunk, GROUPS, INDEX_VECTORS, TILE_ROWS};
use crate::tables::{self, Table};

use super::lookup::{Bytes, Sums, load_quarter, look, nibbles};

/// Exact.
pub type Tl2Tbl = Lookup<Tbl, 2>;
/// With tables requantised to int8.
pub type Tl2TblLossy = Lookup<Tbl, 1>;

/// The loops.
pub struct Tbl;

/// Chunks between two widenings: 80 groups.
const BLOCK: usize = 10;

impl Method for Tbl {
    type Proof = Neon;
    type Layout = Tl2;
    const NAMES: [&'static str; 2] = ["neon-tl2-tbl", "neon-tl2-tbl-lossy"];
    const SUMMARY: &'static str = "tbl, a lookup and a sign per 3 weights";

    #[target_feature(enable = "neon")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
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
