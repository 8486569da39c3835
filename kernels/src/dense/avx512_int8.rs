//! Q8_0 and Q4_0 times int8 blocks on AVX-512 VNNI: `vpdpbusd` multiplies and adds four columns of sixteen rows at once.
//!
//! As on AVX2 ([`avx2_int8`](super::avx2_int8)), blocks are turned so that a vector holds four codes of each row. One token is multiplied
//! with eight rows of them at once, at memory speed. For more, some blocks of 32 rows are turned, to the L1 cache, one token tile after the other goes
//! by, and the next rows are asked for meanwhile.
//!
//! Codes of Q8_0 are signed, which the instruction does not take: they become `code + 128`, as those of Q4_0 are `code + 8`. Totals
//! begin with what that adds. The integers and the order of the float sums are those of AVX2, so results have its bits.
//!
//! A block costs eight multiply-adds and three float operations (conversion, product of the scales, multiply-add) for every vector
//! of sums, on the same two ports: 73 % of the peak of multiply-adds is the most that can be.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2_fma::ask_ahead;
use super::avx2_int8;
use super::int8::{BLOCK, Block, SCALE, START, STEPS, WORDS, fill, tokens};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, for_each_tile};
use crate::arch::x86_64::prefetch;
use crate::bytes::AlignedBytes;
use crate::isa::Avx512Vnni;
use crate::team::Team;

/// Rows of a vector.
const LANES: usize = 16;
/// Rows of a register tile.
const ROWS: usize = 2 * LANES;
/// Tokens of a register tile: twice twelve sums, two vectors of codes and what the float work needs.
const TOKENS: usize = 6;

/// A block of sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Group {
    /// Vector `i` holds columns `4 i .. 4 i + 4` of each row.
    codes: [[i8; 4 * LANES]; STEPS],
    scales: [f32; LANES],
}

/// A block of the rows of a tile.
type Pair = [Group; 2];

const EMPTY: Pair = [Group { codes: [[0; 4 * LANES]; STEPS], scales: [0.0; LANES] }; 2];

/// Blocks of a row that are turned, and go by all tokens, before the next: those of 32 rows are 18 KB of the L1 cache.
const BLOCKS: usize = 16;

/// Q8_0, or with `FOUR_BITS` Q4_0, as on AVX2.
pub struct Int8<const FOUR_BITS: bool>;

impl<const FOUR_BITS: bool> Method for Int8<FOUR_BITS> {
    type Proof = Avx512Vnni;
    const INFO: DenseInfo = match FOUR_BITS {
        false => info::<Avx512Vnni>("avx512vnni-q8_0-int8", DenseType::Q8_0, Activations::Rounded),
        true => info::<Avx512Vnni>("avx512vnni-q4_0-int8", DenseType::Q4_0, Activations::Rounded),
    };

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        for_each_tile(team, out, m, TOKENS, k / BLOCK * WORDS, |tokens, out| {
            fill(&x[tokens.start * k..tokens.end * k], k, if FOUR_BITS { 8 } else { 128 }, out);
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply(w: &DenseMatrix, _: &[f32], x: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        if m == 1 { one::<FOUR_BITS>(w, tokens(x, w.k(), 0), rows, y) } else { batch::<FOUR_BITS>(w, x, m, rows, y) }
    }
}

/// One token, in registers of eight rows: turning codes is what takes time, and shorter registers have a port more for it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn one<const FOUR_BITS: bool>(w: &DenseMatrix, x: &[Block<1>], rows: Range<usize>, y: &mut [f32]) {
    // As on AVX2, the rows of a group lie an eighth of the range apart.
    let (spacing, block_bytes) = (rows.len().div_ceil(avx2_int8::ROWS), w.ty().block_bytes());
    let (data, row_bytes) = (w.data(), x.len() * block_bytes);
    for first in 0..spacing {
        let row = |r: usize| (rows.start + first + r * spacing).min(rows.end - 1);
        let pointers = std::array::from_fn(|r| data[row(r) * row_bytes..].as_ptr());
        let mut sums = _mm256_setzero_ps();
        let (pairs, last) = x.as_chunks::<2>();
        for (pair, x) in pairs.iter().enumerate() {
            for i in 0..2 {
                let offset = (2 * pair + i) * block_bytes;
                // Two blocks of Q4_0 are 36 bytes, asked for together.
                if !FOUR_BITS || i == 0 {
                    ask_ahead(pointers, offset);
                }
                // SAFETY: each pointer starts a row of `k / 32` blocks, of which this is number `2 * pair + i`.
                sums = unsafe { add_one::<FOUR_BITS>(sums, pointers, offset, &x[i]) };
            }
        }
        for x in last {
            // SAFETY: as above, the last block.
            sums = unsafe { add_one::<FOUR_BITS>(sums, pointers, 2 * pairs.len() * block_bytes, x) };
        }
        avx2_int8::put(sums, spacing, (rows.len() - first).div_ceil(spacing), &mut y[first..]);
    }
}

/// Adds the blocks at `offset` of eight rows times that of a token to their sums.
///
/// # Safety
/// From each pointer, `offset` and the bytes of a block can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add_one<const FOUR_BITS: bool>(
    sums: __m256,
    rows: [*const u8; avx2_int8::ROWS],
    offset: usize,
    x: &Block<1>,
) -> __m256 {
    // SAFETY: by the contract.
    let (codes, d) = unsafe { avx2_int8::read_group::<FOUR_BITS>(rows, offset) };
    let mut total = _mm256_set1_epi32(x[START][0]);
    for i in 0..STEPS {
        let from_zero = if FOUR_BITS { codes[i] } else { _mm256_xor_si256(codes[i], _mm256_set1_epi8(-128)) };
        total = _mm256_dpbusd_epi32(total, from_zero, _mm256_set1_epi32(x[i][0]));
    }
    let scale = _mm256_mul_ps(d, _mm256_castsi256_ps(_mm256_set1_epi32(x[SCALE][0])));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), scale, sums)
}

/// More tokens. Between columns, sums stay in `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn batch<const FOUR_BITS: bool>(w: &DenseMatrix, x: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let (k, block_bytes) = (w.k(), w.ty().block_bytes());
    let mut pairs = [EMPTY; BLOCKS];
    y.fill(0.0);
    for first in rows.clone().step_by(ROWS) {
        let n_rows = ROWS.min(rows.end - first);
        let pointers: [[_; LANES]; 2] =
            std::array::from_fn(|v| std::array::from_fn(|r| w.row((first + v * LANES + r).min(rows.end - 1)).as_ptr()));
        // The next rows are asked for block by block, while these are turned and in every token tile.
        let lines = (ROWS * block_bytes).div_ceil(64 * (1 + m.div_ceil(TOKENS)));
        let mut ahead = Ahead { next: pointers[0][0].wrapping_add(ROWS * k / BLOCK * block_bytes), lines };
        for start in (0..k / BLOCK).step_by(BLOCKS) {
            let blocks = start..(start + BLOCKS).min(k / BLOCK);
            for (b, pair) in blocks.clone().zip(&mut pairs) {
                ahead.ask();
                for v in 0..2 {
                    // SAFETY: each pointer starts a row of `k / 32` blocks, of which this is number `b`.
                    let (codes, scales) = unsafe { read_group::<FOUR_BITS>(pointers[v], b * block_bytes) };
                    for i in 0..STEPS {
                        // SAFETY: the array holds the 64 bytes that are written.
                        unsafe { _mm512_storeu_si512(pair[v].codes[i].as_mut_ptr().cast(), codes[i]) };
                    }
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_ps(pair[v].scales.as_mut_ptr(), scales) };
                }
            }
            let pairs = &pairs[..blocks.len()];
            for token in (0..m).step_by(TOKENS) {
                let y = Out { y: &mut y[token * rows.len() + first - rows.start..], stride: rows.len(), n_rows };
                match m - token {
                    1 => tile::<1>(pairs, &tokens(x, k, token)[start..], &mut ahead, y),
                    2 => tile::<2>(pairs, &tokens(x, k, token)[start..], &mut ahead, y),
                    3 => tile::<3>(pairs, &tokens(x, k, token)[start..], &mut ahead, y),
                    4 => tile::<4>(pairs, &tokens(x, k, token)[start..], &mut ahead, y),
                    5 => tile::<5>(pairs, &tokens(x, k, token)[start..], &mut ahead, y),
                    _ => tile::<TOKENS>(pairs, &tokens(x, k, token)[start..], &mut ahead, y),
                }
            }
        }
    }
}

/// What is asked for next, some cache lines at a time.
struct Ahead {
    next: *const u8,
    lines: usize,
}

impl Ahead {
    #[inline]
    fn ask(&mut self) {
        for _ in 0..self.lines {
            prefetch::<_MM_HINT_T1>(self.next);
            self.next = self.next.wrapping_add(64);
        }
    }
}

/// Where a tile's outputs go.
struct Out<'a> {
    /// That of the first row and token: rows follow each other.
    y: &'a mut [f32],
    /// From token to token.
    stride: usize,
    /// Rows that exist.
    n_rows: usize,
}

/// Adds some blocks of 32 rows times `T` tokens to their sums.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile<const T: usize>(pairs: &[Pair], x: &[Block<T>], ahead: &mut Ahead, out: Out<'_>) {
    let rows = (1u64 << out.n_rows) - 1;
    let (low, high) = (rows as u16, (rows >> LANES) as u16);
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    for t in 0..T {
        let y = out.y[t * out.stride..][..out.n_rows].as_ptr();
        // SAFETY: the masks have a bit for each row that exists, and `y` holds their outputs.
        sums[t] = unsafe { [_mm512_maskz_loadu_ps(low, y), _mm512_maskz_loadu_ps(high, y.wrapping_add(LANES))] };
    }
    for (pair, x) in pairs.iter().zip(x) {
        ahead.ask();
        let mut totals = [[_mm512_setzero_si512(); 2]; T];
        for t in 0..T {
            totals[t] = [broadcast(x[START][t]); 2];
        }
        for i in 0..STEPS {
            let (a, b) = (load(&pair[0].codes[i]), load(&pair[1].codes[i]));
            for t in 0..T {
                let x = broadcast(x[i][t]);
                let [total_a, total_b] = totals[t];
                totals[t] = [_mm512_dpbusd_epi32(total_a, a, x), _mm512_dpbusd_epi32(total_b, b, x)];
            }
        }
        // SAFETY: the arrays hold the 64 bytes that are read.
        let (a, b) = unsafe { (_mm512_loadu_ps(pair[0].scales.as_ptr()), _mm512_loadu_ps(pair[1].scales.as_ptr())) };
        for t in 0..T {
            let scale = broadcast(x[SCALE][t]);
            sums[t] = [add_block(sums[t][0], totals[t][0], a, scale), add_block(sums[t][1], totals[t][1], b, scale)];
        }
    }
    for t in 0..T {
        let y = out.y[t * out.stride..][..out.n_rows].as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            _mm512_mask_storeu_ps(y, low, sums[t][0]);
            _mm512_mask_storeu_ps(y.wrapping_add(LANES), high, sums[t][1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(codes: &[i8; 4 * LANES]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(word: i32) -> __m512i {
    _mm512_set1_epi32(word)
}

/// Adds the total of a block, times the scales of sixteen rows and of the token.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_block(sums: __m512, total: __m512i, d: __m512, scale: __m512i) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_mul_ps(d, _mm512_castsi512_ps(scale)), sums)
}

/// The blocks at `offset` of sixteen rows: codes from 0 on as [`Group`] has them, and scales.
///
/// # Safety
/// From each pointer, `offset` and the bytes of a block can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn read_group<const FOUR_BITS: bool>(rows: [*const u8; LANES], offset: usize) -> ([__m512i; STEPS], __m512) {
    let mut scales = [0u16; LANES];
    for r in 0..LANES {
        // SAFETY: by the contract; a block begins with its scale.
        scales[r] = unsafe { rows[r].add(offset).cast::<u16>().read_unaligned() };
    }
    // SAFETY: by the contract; 16 or twice 16 bytes of codes follow, and the array holds the 32 bytes that are read.
    unsafe {
        let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
        let [a, b, c, d] = turn(rows, offset + 2);
        let codes = if FOUR_BITS {
            let low = |v| _mm512_and_si512(v, _mm512_set1_epi8(15));
            let high = |v| low(_mm512_srli_epi16::<4>(v));
            [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
        } else {
            let [e, f, g, h] = turn(rows, offset + 18);
            let from_zero = |v| _mm512_xor_si512(v, _mm512_set1_epi8(-128));
            let (a, b, c, d) = (from_zero(a), from_zero(b), from_zero(c), from_zero(d));
            [a, b, c, d, from_zero(e), from_zero(f), from_zero(g), from_zero(h)]
        };
        (codes, scales)
    }
}

/// Vector `i` of the result holds dword `i` of the 16 bytes at `offset` of every row.
///
/// # Safety
/// From each pointer, `offset + 16` bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn turn(rows: [*const u8; LANES], offset: usize) -> [__m512i; 4] {
    let mut v = [_mm512_setzero_si512(); 4];
    for r in 0..4 {
        // SAFETY: by the contract.
        let [a, b, c, d] = std::array::from_fn(|i| unsafe { _mm_loadu_si128(rows[r + 4 * i].add(offset).cast()) });
        let v_r = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
        v[r] = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(v_r, c), d);
    }
    let (a, b) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3]));
    let (c, d) = (_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3]));
    [_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b), _mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d)]
}
