//! `avx2-tl1-pshufb`, and `-lossy`: a nibble per two weights, looked up for 32 rows at once by `vpshufb`.
//!
//! An entry is at most 2·127 = 254, so an int16 holds the sum of 128 of them (32,512 of 32,767); a lossy one is at most
//! 127. [`super::lookup`] says how they are added up.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::arch::lookup::{Lookup, Method, Tl1};
use crate::isa::Avx2;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl1::{self, Step, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};

use super::interleaved::load;
use super::lookup::{self, Sums, look};

/// Exact.
pub type Tl1Pshufb = Lookup<Pshufb, 2>;
/// With tables requantised to int8.
pub type Tl1PshufbLossy = Lookup<Pshufb, 1>;

/// The loops.
pub struct Pshufb;

/// Steps between two widenings: 128 groups.
const BLOCK: usize = 64;
/// Tokens that share the unpacking of nibbles.
const TOKENS: usize = 4;

impl Method for Pshufb {
    type Proof = Avx2;
    type Layout = Tl1;
    const NAMES: [&'static str; 2] = ["avx2-tl1-pshufb", "avx2-tl1-pshufb-lossy"];
    const SUMMARY: &'static str = "vpshufb, a lookup per 2 weights";

    #[target_feature(enable = "avx2")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let (first, n_rows) = (rows.start / TILE_ROWS, rows.len());
        acc.fill(0);
        for job in lookup::jobs(n_rows / TILE_ROWS, w.k.div_ceil(TILE_K), BLOCK, x.m, TOKENS) {
            let steps = &tl1::tile(w, first + job.tile)[job.steps.clone()];
            let tables = |token: usize| &tables::of::<H>(x, token).as_chunks().0[job.steps.clone()];
            let acc = &mut acc[job.token * n_rows + job.tile * TILE_ROWS..];
            if job.n_tokens == TOKENS {
                block::<H, TOKENS>(steps, std::array::from_fn(|t| tables(job.token + t)), acc, n_rows);
            } else {
                block::<H, 1>(steps, [tables(job.token)], acc, n_rows);
            }
        }
    }
}

/// 32 rows x `T` tokens over at most [`BLOCK`] steps. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn block<const H: usize, const T: usize>(
    steps: &[Step],
    tables: [&[[Table<H>; 2]]; T],
    acc: &mut [i32],
    stride: usize,
) {
    let nibble = _mm256_set1_epi8(15);
    let mut sums = [Sums::zero(); T];
    for (i, step) in steps.iter().enumerate() {
        let codes = load(step);
        let low = _mm256_and_si256(codes, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
        for t in 0..T {
            let [first, second] = &tables[t][i];
            sums[t].add(look(first, low));
            sums[t].add(look(second, high));
        }
    }
    for t in 0..T {
        if let Some(acc) = acc[t * stride..].first_chunk_mut() {
            sums[t].widen::<H>(2 * steps.len(), acc);
        }
    }
}
