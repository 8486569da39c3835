//! The score on AVX-512 VNNI. For one query a register holds two vectors of nibbles, so four quads of eight rows; for several, whose
//! arithmetic takes longer than reading, the unpacked codes of a quad of two groups: [`VECTORS`] of them meet each broadcast of an
//! input, and up to [`TOGETHER`] inputs each load of codes.
//!
//! The integers and the order of the float sums are those of the AVX2 path, so scores and bounds have its bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::to_array;
use super::rows::{CODE_BYTES, GROUP_ROWS, Rows, TILE_BYTES};
use super::side_by_side::{Tiles, score_side_by_side};
use super::{BLOCK, Found, Queries, Query, QueryBlock, SHIFT, Score, finish};
use crate::arch::x86_64::{ask_ahead_in_streams, prefetch};
use crate::isa::{Avx512Vnni, Token};
use crate::kernel::STREAMS;

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
        // SAFETY: this function leaves `super::score` only behind a detected `Avx512Vnni`, which brings AVX2 and FMA.
        unsafe {
            match &queries.all[..] {
                [query] => score_one(rows, query, groups, &mut least[0], found),
                queries => score_many(rows, queries, groups, least, found),
            }
        }
    }
    Avx512Vnni::detect().map(|_| score as Score)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn score_one(rows: &Rows, query: &Query, groups: Range<usize>, least: &mut f32, found: &mut Found<'_>) {
    let several = |tiles| sums::<STREAMS>(query, tiles).map(|sums| to_array(sums));
    let alone = |tiles| to_array(sums(query, [tiles])[0]);
    score_side_by_side(rows, query, groups, least, found, several, alone);
}

/// `Σ block scale · (input scale · Σ code · x)` of some groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums<const S: usize>(query: &Query, tiles: [Tiles<'_>; S]) -> [__m256; S] {
    let mut sums = [_mm256_setzero_ps(); S];
    let of = tiles.map(|tiles| &tiles[..query.blocks.len()]);
    for (i, block) in query.blocks.iter().enumerate() {
        let x = quads(&block.x);
        for s in 0..S {
            let tile = &of[s][i];
            ask_ahead_in_streams(tile);
            let halves = multiply(tile, x, block.offset);
            let of_rows = _mm256_add_epi32(_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
            // At most 32 · 16 · 127 · 255 < 2^24: neither overflows nor is rounded.
            let of_blocks = _mm256_mullo_epi32(of_rows, block_scales(tile));
            sums[s] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_blocks), _mm256_set1_ps(block.scale), sums[s]);
        }
    }
    sums
}

/// The columns that meet [`codes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn quads(x: &[i8; BLOCK]) -> [__m512i; 4] {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    let x = _mm512_castsi256_si512(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) });
    [[0, 1], [2, 3], [5, 6], [4, 7]].map(|[low, high]| _mm512_permutexvar_epi32(halves(low, high), x))
}

/// Codes 0..=31 times x: the lower half of the lanes begins with `offset` and adds up four quads of the eight rows, the upper half the
/// others. Four products of at most 31 · 127 a step stay far below 2^31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply(tile: &[u8; TILE_BYTES], x: [__m512i; 4], offset: i32) -> __m512i {
    let mut sums = _mm512_maskz_set1_epi32(0x00ff, offset);
    for (codes, x) in codes(tile).into_iter().zip(x) {
        sums = _mm512_dpbusd_epi32(sums, codes, x);
    }
    sums
}

/// The codes 0..=31 of a tile, two quads of the eight rows in a register: 0 and 1, 2 and 3, 5 and 6, 4 and 7.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes(tile: &[u8; TILE_BYTES]) -> [__m512i; 4] {
    let (ab, cd) = (load(tile, 0), load(tile, 64));
    let (c, e) = (_mm512_broadcast_i64x4(load_half(tile, 64)), _mm512_broadcast_i64x4(load_half(tile, 128)));
    let last = choose(_mm512_set1_epi8(2), _mm512_srli_epi16::<4>(cd), _mm512_srli_epi16::<5>(c));
    let high = _mm512_mask_set1_epi8(_mm512_set1_epi8(-1), !0 << 32, 28);
    [
        code_of(ab),
        code_of(cd),
        code_of(choose(_mm512_set1_epi8(28), _mm512_srli_epi16::<3>(ab), _mm512_srli_epi16::<6>(cd))),
        code_of(choose(high, _mm512_srlv_epi32(e, halves(0, 3)), last)),
    ]
}

/// The lowest five bits of every byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn code_of(bytes: __m512i) -> __m512i {
    _mm512_and_si512(bytes, _mm512_set1_epi8(31))
}

/// Bits of `a` where `mask` has ones, of `b` elsewhere.
#[inline]
#[target_feature(enable = "avx512f")]
fn choose(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(mask, a, b)
}

/// A number for each half of a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn halves(low: i32, high: i32) -> __m512i {
    _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high)
}

/// Queries that share loads of codes.
const TOGETHER: usize = 4;
/// Registers of rows that share broadcasts of a query. Twelve sums and their products leave registers for codes, and are enough to
/// keep the multipliers busy.
const VECTORS: usize = 3;
/// Groups of rows in those.
const GROUPS: usize = 2 * VECTORS;
/// Tiles of [`GROUPS`] groups that are unpacked at a time: 15 KB, which leave half of a small L1 cache to the queries.
const STRIP: usize = 8;

/// Tiles of [`GROUPS`] groups, one beside the other, with a byte per code.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unpacked {
    codes: [[[u8; 64]; VECTORS]; 8],
    scales: Floats,
    /// What takes [`SHIFT`] out of a product: `-SHIFT · scale`.
    shifts: Floats,
}

/// A number for every row of [`GROUPS`] groups.
type Floats = [[f32; 2 * GROUP_ROWS]; VECTORS];

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn score_many(rows: &Rows, queries: &[Query], groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    let zero = [[0.0; 2 * GROUP_ROWS]; VECTORS];
    let mut strip = [Unpacked { codes: [[[0; 64]; VECTORS]; 8], scales: zero, shifts: zero }; STRIP];
    let mut sums = vec![zero; queries.len()];
    for first in groups.clone().step_by(GROUPS) {
        let n_groups = GROUPS.min(groups.end - first);
        // Behind the last group, that one again.
        let tiles: [_; GROUPS] = std::array::from_fn(|g| rows.group(first + g.min(n_groups - 1)).0);
        let n_strips = tiles[0].len().div_ceil(STRIP);
        let mut ahead = Ahead::new(&tiles, n_strips * (VECTORS + queries.len().div_ceil(TOGETHER)));
        sums.fill(zero);
        for start in (0..tiles[0].len()).step_by(STRIP) {
            let strip = &mut strip[..STRIP.min(tiles[0].len() - start)];
            for (v, [a, b]) in tiles.as_chunks().0.iter().enumerate() {
                ahead.ask();
                for ((a, b), unpacked) in a[start..].iter().zip(&b[start..]).zip(&mut *strip) {
                    unpack(a, b, v, unpacked);
                }
            }
            for (queries, sums) in queries.chunks(TOGETHER).zip(sums.chunks_mut(TOGETHER)) {
                ahead.ask();
                match queries.len() {
                    1 => add_strip::<1>(queries, start, strip, sums),
                    2 => add_strip::<2>(queries, start, strip, sums),
                    3 => add_strip::<3>(queries, start, strip, sums),
                    _ => add_strip::<TOGETHER>(queries, start, strip, sums),
                }
            }
        }
        for group in first..first + n_groups {
            let (_, factors) = rows.group(group);
            for ((query, sums), least) in queries.iter().enumerate().zip(&sums).zip(&mut *least) {
                finish(rows, group, &factors, query, &sums.as_flattened().as_chunks().0[group - first], least, found);
            }
        }
    }
}

/// Asks for the groups behind some, a few lines at a time so that requests do not queue up.
struct Ahead {
    next: *const u8,
    lines: usize,
}

impl Ahead {
    /// For as many bytes as `tiles` have, in so many turns.
    fn new(tiles: &[&[[u8; TILE_BYTES]]; GROUPS], turns: usize) -> Self {
        let bytes = tiles.iter().map(|tiles| size_of_val(*tiles)).sum::<usize>();
        Self { next: tiles[GROUPS - 1].as_ptr_range().end.cast(), lines: bytes.div_ceil(64 * turns.max(1)) }
    }

    fn ask(&mut self) {
        for _ in 0..self.lines {
            prefetch::<_MM_HINT_T1>(self.next);
            self.next = self.next.wrapping_add(64);
        }
    }
}

/// Puts the tiles of two groups, the same columns, in place `v`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn unpack(first: &[u8; TILE_BYTES], second: &[u8; TILE_BYTES], v: usize, unpacked: &mut Unpacked) {
    let codes = codes_of_two(first, second);
    let scales = _mm512_cvtepi32_ps(scales_of_two(first, second));
    let shifts = _mm512_mul_ps(scales, _mm512_set1_ps(-SHIFT));
    // SAFETY: the arrays hold the 64 bytes that are written; the stores need no alignment.
    unsafe {
        for q in 0..8 {
            _mm512_storeu_si512(unpacked.codes[q][v].as_mut_ptr().cast(), code_of(codes[q]));
        }
        _mm512_storeu_ps(unpacked.scales[v].as_mut_ptr(), scales);
        _mm512_storeu_ps(unpacked.shifts[v].as_mut_ptr(), shifts);
    }
}

/// The codes of two groups, the same columns, a quad in a register, in the lowest five bits of every byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes_of_two(first: &[u8; TILE_BYTES], second: &[u8; TILE_BYTES]) -> [__m512i; 8] {
    let mut vectors = [_mm512_setzero_si512(); 5];
    for (i, vector) in vectors.iter_mut().enumerate() {
        let first = _mm512_castsi256_si512(load_half(first, 32 * i));
        *vector = _mm512_inserti64x4::<1>(first, load_half(second, 32 * i));
    }
    let [a, b, c, d, e] = vectors;
    let high = _mm512_set1_epi8(28);
    let last = choose(_mm512_set1_epi8(2), _mm512_srli_epi16::<4>(d), _mm512_srli_epi16::<5>(c));
    [
        a,
        b,
        c,
        d,
        e,
        choose(high, _mm512_srli_epi16::<3>(a), _mm512_srli_epi16::<6>(c)),
        choose(high, _mm512_srli_epi16::<3>(b), _mm512_srli_epi16::<6>(d)),
        choose(high, _mm512_srli_epi16::<3>(e), last),
    ]
}

/// The scales of the rows of two groups.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_of_two(first: &[u8; TILE_BYTES], second: &[u8; TILE_BYTES]) -> __m512i {
    _mm512_cvtepu8_epi32(_mm_set_epi64x(scale_bytes(second), scale_bytes(first)))
}

/// Adds tiles `start` and those behind it to the sums of every query.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_strip<const T: usize>(queries: &[Query], start: usize, tiles: &[Unpacked], sums: &mut [Floats]) {
    let mut blocks: [&[QueryBlock]; T] = [&[]; T];
    let mut totals = [[_mm512_setzero_ps(); VECTORS]; T];
    for t in 0..T {
        blocks[t] = &queries[t].blocks[start..][..tiles.len()];
        for v in 0..VECTORS {
            totals[t][v] = load_floats(&sums[t], v);
        }
    }
    for (i, tile) in tiles.iter().enumerate() {
        let mut products = [[_mm512_setzero_si512(); VECTORS]; T];
        for t in 0..T {
            products[t] = [_mm512_set1_epi32(blocks[t][i].shifted_offset); VECTORS];
        }
        for q in 0..8 {
            let codes = &tile.codes[q];
            for t in 0..T {
                let x = quad(&blocks[t][i].x, q);
                for v in 0..VECTORS {
                    // SAFETY: the arrays hold the 64 bytes that are read; the load needs no alignment.
                    let codes = unsafe { _mm512_loadu_si512(codes[v].as_ptr().cast()) };
                    products[t][v] = _mm512_dpbusd_epi32(products[t][v], codes, x);
                }
            }
        }
        for t in 0..T {
            let scale = _mm512_set1_ps(blocks[t][i].scale);
            for v in 0..VECTORS {
                // The product with SHIFT, a power of two times three, is exact, and so is the fused sum, at most 32 · 16 · 127 · 255 < 2^24:
                // the integer that the other paths convert.
                let product = _mm512_castsi512_ps(products[t][v]);
                let of_blocks = _mm512_fmadd_ps(product, load_floats(&tile.scales, v), load_floats(&tile.shifts, v));
                totals[t][v] = _mm512_fmadd_ps(of_blocks, scale, totals[t][v]);
            }
        }
    }
    for t in 0..T {
        for v in 0..VECTORS {
            // SAFETY: the array holds the 64 bytes that are written; the store needs no alignment.
            unsafe { _mm512_storeu_ps(sums[t][v].as_mut_ptr(), totals[t][v]) };
        }
    }
}

/// Register `v` of a float for each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(of: &Floats, v: usize) -> __m512 {
    // SAFETY: the array holds the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_ps(of[v].as_ptr()) }
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
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scale_bytes(tile)))
}

#[inline(always)]
fn scale_bytes(tile: &[u8; TILE_BYTES]) -> i64 {
    tile[CODE_BYTES..].first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_half(tile: &[u8; TILE_BYTES], at: usize) -> __m256i {
    assert!(at + 32 <= TILE_BYTES);
    // SAFETY: 32 bytes inside the tile; the load needs no alignment.
    unsafe { _mm256_loadu_si256(tile.as_ptr().add(at).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(tile: &[u8; TILE_BYTES], at: usize) -> __m512i {
    assert!(at + 64 <= TILE_BYTES);
    // SAFETY: 64 bytes inside the tile; the load needs no alignment.
    unsafe { _mm512_loadu_si512(tile.as_ptr().add(at).cast()) }
}
