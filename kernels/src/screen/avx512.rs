//! The score on AVX-512 VNNI. For one query a register holds two vectors of nibbles, so four quads of eight rows; for several, whose
//! arithmetic takes longer than reading, the unpacked codes of a quad of two groups: [`VECTORS`] of them meet each broadcast of an
//! input, and up to [`TOGETHER`] inputs each load of codes.
//!
//! The integers and the order of the float sums are those of the AVX2 path, so scores and bounds have its bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{store_bytes, to_array};
use super::rows::{FIFTH_BITS, GROUP_ROWS, Rows, TILE_BYTES};
use super::{BLOCK, Found, Query, QueryBlock, SHIFT, Score, finish};
use crate::arch::x86_64::{ask_ahead, prefetch};
use crate::isa::{Avx512Vnni, Token};

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, queries: &[Query], groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
        // SAFETY: this function leaves `super::score` only behind a detected `Avx512Vnni`, which brings AVX2 and FMA.
        unsafe {
            match queries {
                [query] => score_one(rows, query, groups, &mut least[0], found),
                _ => score_many(rows, queries, groups, least, found),
            }
        }
    }
    Avx512Vnni::detect().map(|_| score as Score)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn score_one(rows: &Rows, query: &Query, groups: Range<usize>, least: &mut f32, found: &mut Found<'_>) {
    for group in groups {
        let (tiles, factors) = rows.group(group);
        finish(rows, group, &factors, (0, query), &to_array(sums(query, tiles)), least, found);
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
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    let x = _mm512_castsi256_si512(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) });
    let mut sums = _mm512_maskz_set1_epi32(0x00ff, offset);
    for (codes, low) in codes(tile).into_iter().zip(LOW_QUADS) {
        let x = _mm512_permutexvar_epi32(halves(low as i32, low as i32 + 2), x);
        sums = _mm512_dpbusd_epi32(sums, codes, x);
    }
    sums
}

/// The quads in the lower halves of what [`codes`] gives; in the upper halves are those two further on.
const LOW_QUADS: [usize; 4] = [0, 1, 4, 5];

/// The codes 0..=31 of a tile, two quads of the eight rows in a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes(tile: &[u8; TILE_BYTES]) -> [__m512i; 4] {
    let low_half = _mm512_set1_epi8(15);
    let fifth_bit = _mm512_set1_epi8(16);
    // SAFETY: 32 bytes inside the tile; the load needs no alignment.
    let fifth = unsafe { _mm256_loadu_si256(tile[FIFTH_BITS].as_ptr().cast()) };
    // The bits of quads 0 and 2 where a fifth bit belongs. A rotation, as some bits come back to the right; what crosses from byte
    // to byte is masked out.
    let fifth = _mm512_rolv_epi32(_mm512_broadcast_i64x4(fifth), halves(4, 2));
    /// Two quads: half a byte of 64, and the fifth bits shifted to where they belong.
    macro_rules! quads {
        ($nibbles:expr, $fifth:expr) => {
            // (a & b) | c
            _mm512_ternarylogic_epi32::<0xea>($nibbles, low_half, _mm512_and_si512($fifth, fifth_bit))
        };
    }
    let (first, second) = (load(tile, 0), load(tile, 64));
    [
        quads!(first, fifth),
        quads!(_mm512_srli_epi16::<4>(first), _mm512_ror_epi32::<1>(fifth)),
        quads!(second, _mm512_ror_epi32::<4>(fifth)),
        quads!(_mm512_srli_epi16::<4>(second), _mm512_ror_epi32::<5>(fifth)),
    ]
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
    codes: [[[u8; 32]; GROUPS]; 8],
    scales: [[f32; GROUP_ROWS]; GROUPS],
    /// What takes [`SHIFT`] out of a product: `-SHIFT · scale`.
    shifts: [[f32; GROUP_ROWS]; GROUPS],
}

/// The sums of [`GROUPS`] groups.
type Sums = [[f32; GROUP_ROWS]; GROUPS];

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn score_many(rows: &Rows, queries: &[Query], groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    let zero = [[0.0; GROUP_ROWS]; GROUPS];
    let mut strip = [Unpacked { codes: [[[0; 32]; GROUPS]; 8], scales: zero, shifts: zero }; STRIP];
    let mut sums = vec![zero; queries.len()];
    for first in groups.clone().step_by(GROUPS) {
        let n_groups = GROUPS.min(groups.end - first);
        // Behind the last group, that one again.
        let tiles: [_; GROUPS] = std::array::from_fn(|g| rows.group(first + g.min(n_groups - 1)).0);
        let n_strips = tiles[0].len().div_ceil(STRIP);
        let mut ahead = Ahead::new(&tiles, n_strips * (GROUPS + queries.len().div_ceil(TOGETHER)));
        sums.fill(zero);
        for start in (0..tiles[0].len()).step_by(STRIP) {
            let strip = &mut strip[..STRIP.min(tiles[0].len() - start)];
            for (g, tiles) in tiles.iter().enumerate() {
                ahead.ask();
                for (tile, unpacked) in tiles[start..].iter().zip(&mut *strip) {
                    unpack(tile, g, unpacked);
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
                finish(rows, group, &factors, query, &sums[group - first], least, found);
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

/// Puts a tile in place `group`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
fn unpack(tile: &[u8; TILE_BYTES], group: usize, unpacked: &mut Unpacked) {
    for (codes, low) in codes(tile).into_iter().zip(LOW_QUADS) {
        store_bytes(_mm512_castsi512_si256(codes), &mut unpacked.codes[low][group]);
        store_bytes(_mm512_extracti64x4_epi64::<1>(codes), &mut unpacked.codes[low + 2][group]);
    }
    let scales = _mm256_cvtepi32_ps(block_scales(tile));
    let shifts = _mm256_mul_ps(scales, _mm256_set1_ps(-SHIFT));
    // SAFETY: the arrays hold the 32 bytes that are written; the stores need no alignment.
    unsafe {
        _mm256_storeu_ps(unpacked.scales[group].as_mut_ptr(), scales);
        _mm256_storeu_ps(unpacked.shifts[group].as_mut_ptr(), shifts);
    }
}

/// Adds tiles `start` and those behind it to the sums of every query.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_strip<const T: usize>(queries: &[Query], start: usize, tiles: &[Unpacked], sums: &mut [Sums]) {
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
            let codes = tile.codes[q].as_chunks::<2>().0;
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
            let sums = &mut sums[t].as_chunks_mut::<2>().0[v];
            // SAFETY: the arrays hold the 64 bytes that are written; the store needs no alignment.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr().cast(), totals[t][v]) };
        }
    }
}

/// Register `v` of a float for each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(of: &Sums, v: usize) -> __m512 {
    // SAFETY: the arrays hold the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_ps(of.as_chunks::<2>().0[v].as_ptr().cast()) }
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
