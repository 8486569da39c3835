//! `avx2-bitplane-pshufb`: a nibble per four bits of a plane, looked up for both planes of 16 rows at once by `vpshufb`. What
//! they gave lies side by side, and `vpmaddubsw` by 1 and -1 subtracts the plane of -1 from that of +1.
//!
//! A column counts in one plane at most, so the two entries of a group differ by at most 4·127 = 508, and an int16 holds
//! the sum of 64 such differences (32,512 of 32,767). Halves of entries are added up apart: `low + 256 · high`, modulo 2^16.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::arch::lookup::{Bitplane, Lookup, Method};
use crate::isa::Avx2;
use crate::kernel::{PackedMatrix, Prepared, STREAMS};
use crate::layout::bitplane::{GROUPS, SIGNS, Step, TILE_ROWS, apart, quarter};
use crate::tables::{self, Table};

use super::interleaved::load;
use super::lookup::{add_rows, look};

/// The kernel.
pub type BitplanePshufb = Lookup<Pshufb, 2>;

/// The loops.
pub struct Pshufb;

/// Steps between two widenings.
const BLOCK: usize = 64 / GROUPS;

impl Method for Pshufb {
    type Proof = Avx2;
    type Layout = Bitplane;
    const NAMES: [&'static str; 2] = ["avx2-bitplane-pshufb", ""];
    const SUMMARY: &'static str = "vpshufb, a lookup per 4 weights of a bit plane";

    #[target_feature(enable = "avx2")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        const { assert!(H == 2, "the bias of lossy tables is not that of a difference") };
        let (first, n_tiles) = (rows.start / TILE_ROWS, rows.len() / TILE_ROWS);
        acc.fill(0);
        for tile in 0..quarter(n_tiles) {
            let (at, tiles) = apart(w, first, n_tiles, tile);
            for start in (0..tiles[0].len()).step_by(BLOCK) {
                let mut block = tiles;
                for steps in &mut block {
                    *steps = &steps[start..steps.len().min(start + BLOCK)];
                }
                for token in 0..x.m {
                    let tables = &tables::of::<2>(x, token).as_chunks().0[start..][..block[0].len()];
                    let acc = &mut acc[token * rows.len()..][..rows.len()].as_chunks_mut().0;
                    for (at, sums) in at.into_iter().zip(look_up(block, tables)) {
                        if let Some(acc) = at.and_then(|at| acc.get_mut(at)) {
                            add_rows(acc, sums);
                        }
                    }
                }
            }
        }
    }
}

/// The sums of at most [`BLOCK`] steps, int16.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(tiles: [&[Step]; STREAMS], tables: &[[Table<2>; GROUPS]]) -> [__m256i; STREAMS] {
    let (nibble, signs) = (_mm256_set1_epi8(15), _mm256_set1_epi16(SIGNS));
    let zero = _mm256_setzero_si256();
    let (mut low, mut high) = ([zero; STREAMS], [zero; STREAMS]);
    let tiles = tiles.map(|steps| &steps[..tables.len()]);
    for (i, tables) in tables.iter().enumerate() {
        for t in 0..STREAMS {
            let planes = load(&tiles[t][i]);
            let codes = [_mm256_and_si256(planes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(planes), nibble)];
            for g in 0..GROUPS {
                let entries = look(&tables[g], codes[g]);
                low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(entries.low, signs));
                high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(entries.high, signs));
            }
        }
    }
    for t in 0..STREAMS {
        low[t] = _mm256_add_epi16(low[t], _mm256_slli_epi16::<8>(high[t]));
    }
    low
}
