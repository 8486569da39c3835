//! `avx2-tl2-pshufb`, and `-lossy`: a nibble and a sign bit per three weights, looked up for 32 rows at once by `vpshufb`.
//!
//! The table has the entries of the non-negative numbers only. `-e = !e + 1`, in two's complement: where the sign bit
//! is set, both halves of the entry are complemented, and the set sign bits, counted for all tokens together, are added
//! at the end. A biased lossy byte `q + 128` becomes `127 - q`, so the same count is right there.
//!
//! An entry is at most 3·127 = 381, so an int16 holds the sum of 80 of them (30,480 of 32,767); a lossy one is at most 127.
//! [`super::lookup`] says how they are added up.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::arch::lookup::{Lookup, Method, Tl2};
use crate::isa::Avx2;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl2::{self, Chunk, GROUPS, INDEX_VECTORS, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};

use super::lookup::{self, Bytes, Sums, load_half, look};

/// Exact.
pub type Tl2Pshufb = Lookup<Pshufb, 2>;
/// With tables requantised to int8.
pub type Tl2PshufbLossy = Lookup<Pshufb, 1>;

/// The loops.
pub struct Pshufb;

/// Chunks between two widenings: 80 groups.
const BLOCK: usize = 10;
/// Tokens that share the unpacking of nibbles and signs.
const TOKENS: usize = 4;

impl Method for Pshufb {
    type Proof = Avx2;
    type Layout = Tl2;
    const NAMES: [&'static str; 2] = ["avx2-tl2-pshufb", "avx2-tl2-pshufb-lossy"];
    const SUMMARY: &'static str = "vpshufb, a lookup and a sign per 3 weights";

    #[target_feature(enable = "avx2")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let (first, n_rows) = (rows.start / TILE_ROWS, rows.len());
        acc.fill(0);
        for job in lookup::jobs(n_rows / TILE_ROWS, w.k.div_ceil(TILE_K), BLOCK, x.m, TOKENS) {
            let chunks = &tl2::tile(w, first + job.tile)[job.steps.clone()];
            let tables = |token: usize| &tables::of::<H>(x, token).as_chunks().0[job.steps.clone()];
            let acc = &mut acc[job.token * n_rows + job.tile * TILE_ROWS..];
            if job.n_tokens == TOKENS {
                block::<H, TOKENS>(chunks, std::array::from_fn(|t| tables(job.token + t)), acc, n_rows);
            } else {
                block::<H, 1>(chunks, [tables(job.token)], acc, n_rows);
            }
        }
    }
}

/// 64 rows x `T` tokens over at most [`BLOCK`] chunks. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn block<const H: usize, const T: usize>(
    chunks: &[Chunk],
    tables: [&[[Table<H>; GROUPS]]; T],
    acc: &mut [i32],
    stride: usize,
) {
    let nibble = _mm256_set1_epi8(15);
    for half in 0..2 {
        let mut sums = [Sums::zero(); T];
        let mut negative = _mm256_setzero_si256();
        for (i, chunk) in chunks.iter().enumerate() {
            let mut signs = load_half(&chunk[INDEX_VECTORS], half);
            for v in 0..INDEX_VECTORS {
                let codes = load_half(&chunk[v], half);
                let low = _mm256_and_si256(codes, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
                for (j, codes) in [(2 * v, low), (2 * v + 1, high)] {
                    // The sign of the next group is each byte's highest bit.
                    let flip = _mm256_cmpgt_epi8(_mm256_setzero_si256(), signs);
                    signs = _mm256_add_epi8(signs, signs);
                    negative = _mm256_sub_epi8(negative, flip);
                    for t in 0..T {
                        sums[t].add(look(&tables[t][i][j], codes).complement::<H>(flip));
                    }
                }
            }
        }
        for t in 0..T {
            sums[t].add(Bytes::small(negative));
            if let Some(acc) = acc[t * stride + 32 * half..].first_chunk_mut() {
                sums[t].widen::<H>(GROUPS * chunks.len(), acc);
            }
        }
    }
}
