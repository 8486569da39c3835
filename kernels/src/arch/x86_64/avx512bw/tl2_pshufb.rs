//! `avx512bw-tl2-pshufb`, and `-lossy`: a nibble and a sign bit per three weights, looked up for 64 rows at once by
//! `vpshufb`.
//!
//! As `avx2-tl2-pshufb`, whose module derives the sums; here one vector holds a whole row tile, and the sign bits
//! become bytes through a mask register.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::arch::lookup::{Lookup, Method, Tl2};
use crate::isa::Avx512Bw;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl2::{self, Chunk, GROUPS, INDEX_VECTORS, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};

use crate::arch::x86_64::avx2::lookup::{self, Sums};

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
    type Proof = Avx512Bw;
    type Layout = Tl2;
    const NAMES: [&'static str; 2] = ["avx512bw-tl2-pshufb", "avx512bw-tl2-pshufb-lossy"];
    const SUMMARY: &'static str = "vpshufb, a lookup and a sign per 3 weights";

    #[target_feature(enable = "avx2,avx512f,avx512bw")]
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
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn block<const H: usize, const T: usize>(
    chunks: &[Chunk],
    tables: [&[[Table<H>; GROUPS]]; T],
    acc: &mut [i32],
    stride: usize,
) {
    let (zero, nibble) = (_mm512_setzero_si512(), _mm512_set1_epi8(15));
    let (mut all, mut odd, mut high) = ([zero; T], [zero; T], [zero; T]);
    let mut negative = zero;
    for (i, chunk) in chunks.iter().enumerate() {
        let mut signs = load(&chunk[INDEX_VECTORS]);
        for v in 0..INDEX_VECTORS {
            let codes = load(&chunk[v]);
            let even = _mm512_and_si512(codes, nibble);
            let odd_codes = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibble);
            for (j, codes) in [(2 * v, even), (2 * v + 1, odd_codes)] {
                // The sign of the next group is each byte's highest bit.
                let flip = _mm512_movm_epi8(_mm512_movepi8_mask(signs));
                signs = _mm512_add_epi8(signs, signs);
                negative = _mm512_sub_epi8(negative, flip);
                for t in 0..T {
                    let table = &tables[t][i][j];
                    let low = _mm512_xor_si512(look(&table[0], codes), flip);
                    all[t] = _mm512_add_epi16(all[t], low);
                    odd[t] = _mm512_add_epi16(odd[t], _mm512_srli_epi16::<8>(low));
                    if H == 2 {
                        high[t] = _mm512_add_epi8(high[t], _mm512_xor_si512(look(&table[H - 1], codes), flip));
                    }
                }
            }
        }
    }
    for t in 0..T {
        let all = _mm512_add_epi16(all[t], negative);
        let odd = _mm512_add_epi16(odd[t], _mm512_srli_epi16::<8>(negative));
        let halves = [
            Sums::from_parts(low_half(all), low_half(odd), low_half(high[t])),
            Sums::from_parts(high_half(all), high_half(odd), high_half(high[t])),
        ];
        for (half, acc) in halves.into_iter().zip(acc[t * stride..][..TILE_ROWS].as_chunks_mut().0) {
            half.widen::<H>(GROUPS * chunks.len(), acc);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn look(table: &[u8; 16], codes: __m512i) -> __m512i {
    // SAFETY: the array holds the 16 bytes that are read; the load needs no alignment.
    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn low_half(value: __m512i) -> __m256i {
    _mm512_castsi512_si256(value)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn high_half(value: __m512i) -> __m256i {
    _mm512_extracti64x4_epi64::<1>(value)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
