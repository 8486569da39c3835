//! The score on AVX2: eight rows as lanes. For one query codes stay in registers; for several, tiles of [`GROUPS`] groups are unpacked to the
//! L1 cache, and up to [`TOGETHER`] queries share what is loaded from there. One group at a time takes about 1.1 times as long on Zen 3, for 4 to
//! 32 queries.

use std::arch::x86_64::*;
use std::ops::Range;

use super::rows::{CODE_BYTES, GROUP_ROWS, QuantizeRow, Rows, TILE_BYTES};
use super::side_by_side::{Tiles, score_side_by_side};
use super::{BLOCK, Found, Queries, Query, QueryBlock, Score, finish};
use crate::arch::x86_64::prefetch;
use crate::isa::{Avx2, Token};
use crate::kernel::STREAMS;

/// How many tiles ahead of its loads one query asks for memory, at each of [`STREAMS`] places. On Zen 3 a search of a 128,256 x 2560 head took 1.1 times
/// as long with 16 ahead in one stream, on one thread and on two, and a seventh longer than that with four streams and no requests.
const AHEAD: usize = 8;

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
        // SAFETY: this function leaves `super::score` only behind a detected `Avx2`.
        unsafe {
            match &queries.all[..] {
                [query] => score_one(rows, query, groups, &mut least[0], found),
                queries => score_many(rows, queries, groups, least, found),
            }
        }
    }
    Avx2::detect().map(|_| score as Score)
}

/// The quantisation, compiled for AVX2.
pub fn quantize_row() -> Option<QuantizeRow> {
    #[target_feature(enable = "avx2,fma")]
    fn compiled(row: &[f32], lane: usize, tiles: &mut [u8]) -> Option<[f32; 4]> {
        super::rows::quantize_row(row, lane, tiles)
    }
    fn quantize_row(row: &[f32], lane: usize, tiles: &mut [u8]) -> Option<[f32; 4]> {
        // SAFETY: this function leaves `super::quantize_row` only behind a detected `Avx2`.
        unsafe { compiled(row, lane, tiles) }
    }
    Avx2::detect().map(|_| quantize_row as QuantizeRow)
}

#[target_feature(enable = "avx2,fma")]
fn score_one(rows: &Rows, query: &Query, groups: Range<usize>, least: &mut f32, found: &mut Found<'_>) {
    let several = |tiles| sums::<STREAMS>(query, tiles).map(|sums| to_array(sums));
    let alone = |tiles| to_array(sums(query, [tiles])[0]);
    score_side_by_side(rows, query, groups, least, found, several, alone);
}

/// Groups that share broadcasts of a query.
const GROUPS: usize = 2;
/// Queries that share loads of codes: the sums of products of both leave registers for what is loaded.
const TOGETHER: usize = 4;
/// Tiles of [`GROUPS`] groups that are unpacked at a time: 18 KB, which stay in the L1 cache while all queries pass by.
const STRIP: usize = 32;

/// The same tile of [`GROUPS`] groups with a byte per code.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unpacked {
    codes: [[[u8; 32]; GROUPS]; 8],
    scales: [[u8; 32]; GROUPS],
}

#[target_feature(enable = "avx2,fma")]
fn score_many(rows: &Rows, queries: &[Query], groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    let mut strip = [Unpacked { codes: [[[0; 32]; GROUPS]; 8], scales: [[0; 32]; GROUPS] }; STRIP];
    let mut sums = vec![[_mm256_setzero_ps(); GROUPS]; queries.len()];
    for first in groups.clone().step_by(GROUPS) {
        let n_groups = GROUPS.min(groups.end - first);
        // Behind the last group, that one again.
        let tiles: [_; GROUPS] = std::array::from_fn(|g| rows.group(first + g.min(n_groups - 1)).0);
        let n_tiles = tiles[0].len();
        sums.fill([_mm256_setzero_ps(); GROUPS]);
        for start in (0..n_tiles).step_by(STRIP) {
            let strip = &mut strip[..STRIP.min(n_tiles - start)];
            for g in 0..GROUPS {
                for (tile, unpacked) in tiles[g][start..].iter().zip(&mut *strip) {
                    // To the L2 cache: the strip and the queries fill the L1 cache.
                    ask_for::<_MM_HINT_T1>(tile, GROUPS * size_of_val(tiles[g]));
                    let codes = codes(tile);
                    for q in 0..8 {
                        store_bytes(codes[q], &mut unpacked.codes[q][g]);
                    }
                    store_bytes(block_scales(tile), &mut unpacked.scales[g]);
                }
            }
            for (queries, sums) in queries.chunks(TOGETHER).zip(sums.chunks_mut(TOGETHER)) {
                match queries.len() {
                    1 => add_strip::<1>(queries, start, strip, sums),
                    2 => add_strip::<2>(queries, start, strip, sums),
                    3 => add_strip::<3>(queries, start, strip, sums),
                    _ => add_strip::<TOGETHER>(queries, start, strip, sums),
                }
            }
        }
        for group in first..first + n_groups {
            let factors = rows.group(group).1;
            for (i, (query, sums)) in queries.iter().zip(&sums).enumerate() {
                finish(rows, group, &factors, (i, query), &to_array(sums[group - first]), &mut least[i], found);
            }
        }
    }
}

/// Adds tiles `start` and those behind it to the sums of every query.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_strip<const T: usize>(queries: &[Query], start: usize, tiles: &[Unpacked], sums: &mut [[__m256; GROUPS]]) {
    let mut blocks: [&[QueryBlock]; T] = [&[]; T];
    for t in 0..T {
        blocks[t] = &queries[t].blocks[start..][..tiles.len()];
    }
    let sums: &mut [[__m256; GROUPS]; T] = sums.first_chunk_mut().expect("sums for every query");
    for (i, tile) in tiles.iter().enumerate() {
        let mut products = [[_mm256_setzero_si256(); GROUPS]; T];
        for t in 0..T {
            products[t] = [offsets(&blocks[t][i]); GROUPS];
        }
        for q in 0..8 {
            let mut codes = [_mm256_setzero_si256(); GROUPS];
            for g in 0..GROUPS {
                codes[g] = load_bytes(&tile.codes[q][g]);
            }
            for t in 0..T {
                let x = quad(&blocks[t][i].x, q);
                for g in 0..GROUPS {
                    products[t][g] = _mm256_add_epi16(products[t][g], _mm256_maddubs_epi16(codes[g], x));
                }
            }
        }
        for t in 0..T {
            for g in 0..GROUPS {
                sums[t][g] = add_block(sums[t][g], products[t][g], load_bytes(&tile.scales[g]), &blocks[t][i]);
            }
        }
    }
}

/// `Σ block scale · (input scale · Σ code · x)` of some groups.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums<const S: usize>(query: &Query, tiles: [Tiles<'_>; S]) -> [__m256; S] {
    let mut sums = [_mm256_setzero_ps(); S];
    let of = tiles.map(|tiles| &tiles[..query.blocks.len()]);
    for (i, block) in query.blocks.iter().enumerate() {
        for s in 0..S {
            let tile = &of[s][i];
            ask_for::<_MM_HINT_T0>(tile, AHEAD * TILE_BYTES);
            let codes = codes(tile);
            let mut products = offsets(block);
            for q in 0..8 {
                products = _mm256_add_epi16(products, _mm256_maddubs_epi16(codes[q], quad(&block.x, q)));
            }
            sums[s] = add_block(sums[s], products, block_scales(tile), block);
        }
    }
    sums
}

/// Asks for the tile that many bytes behind `tile`.
#[inline]
fn ask_for<const HINT: i32>(tile: &[u8; TILE_BYTES], ahead: usize) {
    for line in 0..TILE_BYTES.div_ceil(64) {
        prefetch::<HINT>(tile.as_ptr().wrapping_add(ahead + 64 * line));
    }
}

/// What products with codes 0..=31 are added to, in two sums of 16 columns for every row.
#[inline]
#[target_feature(enable = "avx2")]
fn offsets(block: &QueryBlock) -> __m256i {
    let [even, odd] = block.offsets;
    _mm256_set1_epi32(i32::from(even) & 0xffff | i32::from(odd) << 16)
}

/// Adds a block to sums: its [`offsets`] with all products, and scales.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block(sums: __m256, products: __m256i, scales: __m256i, block: &QueryBlock) -> __m256 {
    // At most 16 · 16 · 127 = 32512 in the end, which fits; adding up to it may wrap.
    let of_blocks = _mm256_madd_epi16(products, scales);
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_blocks), _mm256_set1_ps(block.scale), sums)
}

/// The codes 0..=31 of every quad.
#[inline]
#[target_feature(enable = "avx2")]
fn codes(tile: &[u8; TILE_BYTES]) -> [__m256i; 8] {
    let [a, b, c, d, e] = [load(tile, 0), load(tile, 32), load(tile, 64), load(tile, 96), load(tile, 128)];
    /// Some bits of every byte; what a shift brings from the byte beside it is not among them.
    macro_rules! bits {
        ($mask:literal, $bytes:expr) => {
            _mm256_and_si256($bytes, _mm256_set1_epi8($mask))
        };
    }
    let last = _mm256_or_si256(bits!(2, _mm256_srli_epi16::<4>(d)), bits!(1, _mm256_srli_epi16::<5>(c)));
    [
        bits!(31, a),
        bits!(31, b),
        bits!(31, c),
        bits!(31, d),
        bits!(31, e),
        _mm256_or_si256(bits!(28, _mm256_srli_epi16::<3>(a)), bits!(3, _mm256_srli_epi16::<6>(c))),
        _mm256_or_si256(bits!(28, _mm256_srli_epi16::<3>(b)), bits!(3, _mm256_srli_epi16::<6>(d))),
        _mm256_or_si256(bits!(28, _mm256_srli_epi16::<3>(e)), last),
    ]
}

/// Columns `4 q .. 4 q + 4` of an input, for every row.
#[inline]
#[target_feature(enable = "avx2")]
fn quad(x: &[i8; BLOCK], q: usize) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(x.as_chunks::<4>().0[q].map(i8::cast_unsigned)))
}

/// Each row's scale, in both 16-bit halves of its lane.
#[inline]
#[target_feature(enable = "avx2")]
fn block_scales(tile: &[u8; TILE_BYTES]) -> __m256i {
    let bytes = tile[CODE_BYTES..].first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
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

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_bytes(values: __m256i, bytes: &mut [u8; 32]) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), values) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn to_array(values: __m256) -> [f32; GROUP_ROWS] {
    let mut array = [0f32; GROUP_ROWS];
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_ps(array.as_mut_ptr(), values) };
    array
}
