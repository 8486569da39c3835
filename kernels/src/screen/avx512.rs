//! The score on AVX-512 VNNI: a register holds two vectors of nibbles, so four quads of eight rows.
//!
//! The integers and the order of the float sums are those of the AVX2 path, so scores and bounds have its bits. Several queries are
//! left to that path.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{finish, score_many};
use super::rows::{FIFTH_BITS, Rows, TILE_BYTES};
use super::{BLOCK, Query, Score};
use crate::arch::x86_64::ask_ahead;
use crate::isa::{Avx512Vnni, Token};

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, queries: &[Query], groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
        // SAFETY: this function leaves `super::score` only behind a detected `Avx512Vnni`, which brings AVX2 and FMA.
        unsafe {
            match queries {
                [query] => score_one(rows, query, groups, scores, bounds),
                _ => score_many(rows, queries, groups, scores, bounds),
            }
        }
    }
    Avx512Vnni::detect().map(|_| score as Score)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn score_one(rows: &Rows, query: &Query, groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
    for group in groups.clone() {
        let (tiles, factors) = rows.group(group);
        finish(query, &factors, sums(query, tiles), group - groups.start, scores, bounds);
    }
}

/// `Σ block scale · (input scale · Σ code · x)` of a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums(query: &Query, tiles: &[[u8; TILE_BYTES]]) -> __m256 {
    let mut sums = _mm256_setzero_ps();
    for (tile, block) in tiles.iter().zip(&query.blocks) {
        ask_ahead(tile);
        let [even, odd] = block.offsets;
        let halves = multiply(tile, &block.x, i32::from(even) + i32::from(odd));
        let of_rows = _mm256_add_epi32(_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
        // At most 32 · 16 · 127 · 255 < 2^24: neither overflows nor is rounded.
        let of_blocks = _mm256_mullo_epi32(of_rows, block_scales(tile));
        sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_blocks), _mm256_set1_ps(block.scale), sums);
    }
    sums
}

/// Codes 0..=31 times x: the lower half of the lanes begins with `offset` and adds up quads 0, 1, 4 and 5 of the eight rows, the upper
/// half quads 2, 3, 6 and 7. Four products of at most 31 · 127 a step stay far below 2^31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply(tile: &[u8; TILE_BYTES], x: &[i8; BLOCK], offset: i32) -> __m512i {
    /// What each of the two quads of a register is multiplied with, in all lanes of its half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn halves(low: i32, high: i32) -> __m512i {
        _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high)
    }
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    let x = _mm512_castsi256_si512(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) });
    let low_half = _mm512_set1_epi8(15);
    let fifth_bit = _mm512_set1_epi8(16);
    // SAFETY: 32 bytes inside the tile; the load needs no alignment.
    let fifth = unsafe { _mm256_loadu_si256(tile[FIFTH_BITS].as_ptr().cast()) };
    // The bits of quads 0 and 2 where a fifth bit belongs. A rotation, as some bits come back to the right; what crosses from byte
    // to byte is masked out.
    let fifth = _mm512_rolv_epi32(_mm512_broadcast_i64x4(fifth), halves(4, 2));
    let mut sums = _mm512_maskz_set1_epi32(0x00ff, offset);
    /// Two quads: half a byte of 64, and the fifth bits shifted to where they belong.
    macro_rules! quads {
        ($nibbles:expr, $fifth:expr, $low:literal) => {
            // (a & b) | c
            let codes = _mm512_ternarylogic_epi32::<0xea>($nibbles, low_half, _mm512_and_si512($fifth, fifth_bit));
            let x = _mm512_permutexvar_epi32(halves($low, $low + 2), x);
            sums = _mm512_dpbusd_epi32(sums, codes, x);
        };
    }
    let nibbles = load(tile, 0);
    quads!(nibbles, fifth, 0);
    quads!(_mm512_srli_epi16::<4>(nibbles), _mm512_ror_epi32::<1>(fifth), 1);
    let nibbles = load(tile, 64);
    quads!(nibbles, _mm512_ror_epi32::<4>(fifth), 4);
    quads!(_mm512_srli_epi16::<4>(nibbles), _mm512_ror_epi32::<5>(fifth), 5);
    sums
}

/// Each row's scale.
#[inline]
#[target_feature(enable = "avx2")]
fn block_scales(tile: &[u8; TILE_BYTES]) -> __m256i {
    let bytes = tile[FIFTH_BITS.end..].first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(tile: &[u8; TILE_BYTES], at: usize) -> __m512i {
    assert!(at + 64 <= TILE_BYTES);
    // SAFETY: 64 bytes inside the tile; the load needs no alignment.
    unsafe { _mm512_loadu_si512(tile.as_ptr().add(at).cast()) }
}
