//! The score on AVX2: eight rows as lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::rows::{FIFTH_BITS, Factors, GROUP_ROWS, QuantizeRow, Rows, TILE_BYTES};
use super::{BLOCK, Query, Score, TINY};
use crate::arch::x86_64::prefetch;
use crate::isa::{Avx2, Token};

/// How many bytes ahead of its loads memory is asked for: 16 tiles. Without that, and with the rows read as four streams, a search of
/// a 128,256 x 2560 head took a seventh longer on one thread of a Zen 3; twice as far ahead was slower.
const AHEAD: usize = 16 * TILE_BYTES;

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, query: &Query, groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
        // SAFETY: this function leaves `super::score` only behind a detected `Avx2`.
        unsafe { score_groups(rows, query, groups, scores, bounds) }
    }
    Avx2::detect().map(|_| score as Score)
}

/// The quantisation, compiled for AVX2.
pub fn quantize_row() -> Option<QuantizeRow> {
    #[target_feature(enable = "avx2,fma")]
    fn compiled(row: &[f32], lane: usize, tiles: &mut [u8]) -> Option<[f32; 3]> {
        super::rows::quantize_row(row, lane, tiles)
    }
    fn quantize_row(row: &[f32], lane: usize, tiles: &mut [u8]) -> Option<[f32; 3]> {
        // SAFETY: this function leaves `super::quantize_row` only behind a detected `Avx2`.
        unsafe { compiled(row, lane, tiles) }
    }
    Avx2::detect().map(|_| quantize_row as QuantizeRow)
}

#[target_feature(enable = "avx2,fma")]
fn score_groups(rows: &Rows, query: &Query, groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
    for group in groups.clone() {
        let (tiles, factors) = rows.group(group);
        finish(query, &factors, sums(query, tiles), group - groups.start, scores, bounds);
    }
}

/// `Σ block scale · (input scale · Σ code · x)` of a group.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums(query: &Query, tiles: &[[u8; TILE_BYTES]]) -> __m256 {
    let blocks = query.x.as_chunks::<BLOCK>().0;
    let mut sums = _mm256_setzero_ps();
    for (((tile, x), scale), [even, odd]) in tiles.iter().zip(blocks).zip(&query.scales).zip(&query.offsets) {
        for line in 0..TILE_BYTES.div_ceil(64) {
            prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(AHEAD + 64 * line));
        }
        let offset = _mm256_set1_epi32(i32::from(*even) & 0xffff | i32::from(*odd) << 16);
        // At most 16 · 16 · 127 = 32512 in the end, which fits; adding up to it may wrap.
        let products = _mm256_add_epi16(offset, multiply(tile, x.as_chunks::<4>().0));
        let of_blocks = _mm256_madd_epi16(products, block_scales(tile));
        sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_blocks), _mm256_set1_ps(*scale), sums);
    }
    sums
}

/// Codes 0..=31 times x: two sums of 16 columns for every row.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply(tile: &[u8; TILE_BYTES], quads: &[[i8; 4]]) -> __m256i {
    let low_half = _mm256_set1_epi8(15);
    let fifth_bit = _mm256_set1_epi8(16);
    let fifth = load(tile, FIFTH_BITS.start);
    let mut sum = _mm256_setzero_si256();
    /// Two quads: the halves of one vector of nibbles, and the fifth bits shifted to where they belong.
    macro_rules! pair {
        ($v:literal, $even:expr, $odd:expr) => {
            let nibbles = load(tile, 32 * $v);
            let even = _mm256_or_si256(_mm256_and_si256(nibbles, low_half), _mm256_and_si256($even, fifth_bit));
            let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(nibbles), low_half);
            let odd = _mm256_or_si256(odd, _mm256_and_si256($odd, fifth_bit));
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(even, broadcast(quads[2 * $v])));
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(odd, broadcast(quads[2 * $v + 1])));
        };
    }
    pair!(0, _mm256_slli_epi16::<4>(fifth), _mm256_slli_epi16::<3>(fifth));
    pair!(1, _mm256_slli_epi16::<2>(fifth), _mm256_slli_epi16::<1>(fifth));
    pair!(2, fifth, _mm256_srli_epi16::<1>(fifth));
    pair!(3, _mm256_srli_epi16::<2>(fifth), _mm256_srli_epi16::<3>(fifth));
    sum
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(quad: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(quad.map(i8::cast_unsigned)))
}

/// Each row's scale, in both 16-bit halves of its lane.
#[inline]
#[target_feature(enable = "avx2")]
fn block_scales(tile: &[u8; TILE_BYTES]) -> __m256i {
    let bytes = tile[FIFTH_BITS.end..].first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
    #[rustfmt::skip]
    let spread = _mm256_setr_epi8(
        0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,
        4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1,
    );
    _mm256_shuffle_epi8(_mm256_set1_epi64x(bytes), spread)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(tile: &[u8; TILE_BYTES], at: usize) -> __m256i {
    assert!(at + 32 <= TILE_BYTES);
    // SAFETY: 32 bytes inside the tile; the load needs no alignment.
    unsafe { _mm256_loadu_si256(tile.as_ptr().add(at).cast()) }
}

/// Scales and bounds eight sums, and writes them to the rows of group `group` of the output.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn finish(query: &Query, factors: &Factors, sums: __m256, group: usize, scores: &mut [f32], bounds: &mut [f32]) {
    let score = _mm256_mul_ps(sums, floats(&factors.scale));
    let of_norm = _mm256_fmadd_ps(_mm256_set1_ps(query.of_norm), floats(&factors.norm), _mm256_set1_ps(TINY as f32));
    let slack = _mm256_fmadd_ps(_mm256_set1_ps(query.of_residual), floats(&factors.residual), of_norm);
    let rows = group * GROUP_ROWS..scores.len().min((group + 1) * GROUP_ROWS);
    store(score, &mut scores[rows.clone()]);
    store(_mm256_add_ps(score, slack), &mut bounds[rows]);
}

#[inline]
#[target_feature(enable = "avx2")]
fn floats(values: &[f32; GROUP_ROWS]) -> __m256 {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// The first lanes, as many as `out` has.
#[inline]
#[target_feature(enable = "avx2")]
fn store(values: __m256, out: &mut [f32]) {
    let mut lanes = [0f32; GROUP_ROWS];
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), values) };
    out.copy_from_slice(&lanes[..out.len()]);
}
