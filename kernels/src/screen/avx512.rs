//! The score on AVX-512 VNNI. For one query a register holds two vectors of nibbles, so four quads of eight rows; for several, whose
//! arithmetic takes longer than reading, the unpacked codes of a quad of two groups, and up to [`TOGETHER`] queries share loading them.
//!
//! The integers and the order of the float sums are those of the AVX2 path, so scores and bounds have its bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{ask_for, codes, finish, floats, store_bytes};
use super::rows::{FIFTH_BITS, GROUP_ROWS, Rows, TILE_BYTES};
use super::{BLOCK, Query, QueryBlock, Score};
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
        let halves = multiply(tile, &block.x, block.offset);
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

/// Queries that share loads of codes: their sums and products leave registers for codes, and are enough to keep the multipliers busy.
const TOGETHER: usize = 8;

/// Tiles of two groups that are unpacked at a time: with what eight queries have for them, a third of the L1 cache.
const STRIP: usize = 16;

/// Tiles of two groups, one behind the other, with a byte per code and a float per scale.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unpacked {
    codes: [[[u8; 32]; 2]; 8],
    scales: [[f32; GROUP_ROWS]; 2],
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn score_many(rows: &Rows, queries: &[Query], groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
    let n_rows = scores.len() / queries.len();
    let mut strip = [Unpacked { codes: [[[0; 32]; 2]; 8], scales: [[0.0; GROUP_ROWS]; 2] }; STRIP];
    let mut sums = vec![[[0f32; GROUP_ROWS]; 2]; queries.len()];
    for first in groups.clone().step_by(2) {
        // The last of an odd number goes with itself.
        let pair = [first, (first + 1).min(groups.end - 1)];
        let [(a, a_factors), (b, b_factors)] = pair.map(|group| rows.group(group));
        let ahead = 2 * size_of_val(a);
        sums.fill([[0.0; GROUP_ROWS]; 2]);
        for (at, (a, b)) in a.chunks(STRIP).zip(b.chunks(STRIP)).enumerate() {
            for ((a, b), unpacked) in a.iter().zip(b).zip(&mut strip) {
                unpack(a, 0, ahead, unpacked);
                unpack(b, 1, ahead, unpacked);
            }
            let (strip, start) = (&strip[..a.len()], at * STRIP);
            for (queries, sums) in queries.chunks(TOGETHER).zip(sums.chunks_mut(TOGETHER)) {
                match queries.len() {
                    1 => add_strip::<1>(queries, start, strip, sums),
                    2 => add_strip::<2>(queries, start, strip, sums),
                    3 => add_strip::<3>(queries, start, strip, sums),
                    4 => add_strip::<4>(queries, start, strip, sums),
                    5 => add_strip::<5>(queries, start, strip, sums),
                    6 => add_strip::<6>(queries, start, strip, sums),
                    7 => add_strip::<7>(queries, start, strip, sums),
                    _ => add_strip::<TOGETHER>(queries, start, strip, sums),
                }
            }
        }
        for (i, (query, sums)) in queries.iter().zip(&sums).enumerate() {
            let of_query = i * n_rows..(i + 1) * n_rows;
            let (scores, bounds) = (&mut scores[of_query.clone()], &mut bounds[of_query]);
            for ((group, factors), sums) in pair.into_iter().zip([&a_factors, &b_factors]).zip(sums) {
                finish(query, factors, floats(sums), group - groups.start, scores, bounds);
            }
        }
    }
}

/// Puts a tile into half `half`, and asks for the one that many bytes behind it.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack(tile: &[u8; TILE_BYTES], half: usize, ahead: usize, unpacked: &mut Unpacked) {
    ask_for(tile, ahead);
    let codes = codes(tile);
    for q in 0..8 {
        store_bytes(codes[q], &mut unpacked.codes[q][half]);
    }
    let scales = _mm256_cvtepi32_ps(block_scales(tile));
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_ps(unpacked.scales[half].as_mut_ptr(), scales) };
}

/// Adds tiles `start` and those behind it to the sums of every query.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_strip<const T: usize>(queries: &[Query], start: usize, tiles: &[Unpacked], sums: &mut [[[f32; GROUP_ROWS]; 2]]) {
    let mut blocks: [&[QueryBlock]; T] = [&[]; T];
    let mut totals = [_mm512_setzero_ps(); T];
    for t in 0..T {
        blocks[t] = &queries[t].blocks[start..][..tiles.len()];
        // SAFETY: the arrays hold the 64 bytes that are read; the load needs no alignment.
        totals[t] = unsafe { _mm512_loadu_ps(sums[t].as_ptr().cast()) };
    }
    for (i, tile) in tiles.iter().enumerate() {
        let mut products = [_mm512_setzero_si512(); T];
        for t in 0..T {
            products[t] = _mm512_set1_epi32(blocks[t][i].offset);
        }
        for q in 0..8 {
            // SAFETY: the arrays hold the 64 bytes that are read; the load needs no alignment.
            let codes = unsafe { _mm512_loadu_si512(tile.codes[q].as_ptr().cast()) };
            for t in 0..T {
                products[t] = _mm512_dpbusd_epi32(products[t], codes, quad(&blocks[t][i].x, q));
            }
        }
        // SAFETY: the arrays hold the 64 bytes that are read; the load needs no alignment.
        let scales = unsafe { _mm512_loadu_ps(tile.scales.as_ptr().cast()) };
        for t in 0..T {
            // At most 32 · 16 · 127 · 255 < 2^24: exact in floats as in integers.
            let of_blocks = _mm512_mul_ps(_mm512_cvtepi32_ps(products[t]), scales);
            totals[t] = _mm512_fmadd_ps(of_blocks, _mm512_set1_ps(blocks[t][i].scale), totals[t]);
        }
    }
    for t in 0..T {
        // SAFETY: the arrays hold the 64 bytes that are written; the store needs no alignment.
        unsafe { _mm512_storeu_ps(sums[t].as_mut_ptr().cast(), totals[t]) };
    }
}

/// Columns `4 q .. 4 q + 4` of an input, for every row.
#[inline]
#[target_feature(enable = "avx512f")]
fn quad(x: &[i8; BLOCK], q: usize) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(x.as_chunks::<4>().0[q].map(i8::cast_unsigned)))
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
