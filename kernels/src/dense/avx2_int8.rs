//! Q8_0 and Q4_0 times int8 blocks on AVX2, by `vpmaddubsw`.
//!
//! Eight rows at a time are brought into the form in which a vector holds four codes of each row, so that sums need no
//! horizontal additions and the float work of a block, its scales, is done for eight rows at once. That pays even for one token:
//! dot products along `k` spend more on the float work of every row than this does on turning the block.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::int8::{BLOCK, Block, SCALE, START, STEPS, WORDS, fill, tokens};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, for_each_tile};
use crate::arch::x86_64::prefetch;
use crate::bytes::AlignedBytes;
use crate::isa::Avx2;
use crate::team::Team;

/// Rows of a group: the dwords of a vector.
pub const ROWS: usize = 8;
/// Tokens of a register tile: four integer and four float sums, the codes twice and three more fill the 16 registers.
const TOKENS: usize = 4;

/// A block of eight rows.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Group {
    /// Vector `i` holds columns `4 i .. 4 i + 4` of each row.
    codes: [[i8; BLOCK]; STEPS],
    scales: [f32; ROWS],
}

const EMPTY: Group = Group { codes: [[0; BLOCK]; STEPS], scales: [0.0; ROWS] };

thread_local! {
    /// Eight rows, block by block: with `k = 2048` 18 KB.
    static GROUPS: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// Where a tile's outputs go.
#[derive(Clone, Copy)]
struct Place {
    /// Outputs from token to token.
    stride: usize,
    /// Outputs from row to row.
    spacing: usize,
    /// Rows that exist.
    n_rows: usize,
}

/// Q8_0, or with `FOUR_BITS` Q4_0: then codes are 0..16, stand for `code - 8`, and byte `j` of a block holds those of columns `j`
/// (low) and `j + 16` (high). Else they are signed bytes.
pub struct Int8<const FOUR_BITS: bool>;

impl<const FOUR_BITS: bool> Method for Int8<FOUR_BITS> {
    type Proof = Avx2;
    const INFO: DenseInfo = match FOUR_BITS {
        false => info::<Avx2>("avx2-q8_0-int8", DenseType::Q8_0, Activations::Rounded),
        true => info::<Avx2>("avx2-q4_0-int8", DenseType::Q4_0, Activations::Rounded),
    };

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        for_each_tile(team, out, m, TOKENS, k / BLOCK * WORDS, |tokens, out| {
            fill(&x[tokens.start * k..tokens.end * k], k, if FOUR_BITS { 8 } else { 0 }, out);
        });
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn multiply(w: &DenseMatrix, _: &[f32], x: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        let mut groups = GROUPS.take();
        groups.resize(w.k() / BLOCK, EMPTY);
        // The rows of a group lie an eighth of the range apart, so that each is a stream of its own over many groups.
        let spacing = rows.len().div_ceil(ROWS);
        let block_bytes = w.ty().block_bytes();
        for first in 0..spacing {
            let pointers =
                std::array::from_fn(|r| w.row((rows.start + first + r * spacing).min(rows.end - 1)).as_ptr());
            // The last groups may lack rows.
            let n_rows = (rows.len() - first).div_ceil(spacing);
            if m == 1 {
                // SAFETY: each pointer starts a row of `k / 32` blocks.
                let sums = unsafe { one_token::<FOUR_BITS>(pointers, block_bytes, tokens(x, w.k(), 0)) };
                put(sums, spacing, n_rows, &mut y[first..]);
                continue;
            }
            for (b, group) in groups.iter_mut().enumerate() {
                ask_for_block(pointers, b * block_bytes);
                // SAFETY: each pointer starts a row of `k / 32` blocks, of which this is number `b`.
                let (codes, scales) = unsafe { read_group::<FOUR_BITS>(pointers, b * block_bytes) };
                store_group(codes, scales, group);
            }
            for token in (0..m).step_by(TOKENS) {
                let y = &mut y[token * rows.len() + first..];
                let place = Place { stride: rows.len(), spacing, n_rows };
                match m - token {
                    1 => tile::<FOUR_BITS, 1>(&groups, tokens(x, w.k(), token), place, y),
                    2 => tile::<FOUR_BITS, 2>(&groups, tokens(x, w.k(), token), place, y),
                    3 => tile::<FOUR_BITS, 3>(&groups, tokens(x, w.k(), token), place, y),
                    _ => tile::<FOUR_BITS, TOKENS>(&groups, tokens(x, w.k(), token), place, y),
                }
            }
        }
        GROUPS.set(groups);
    }
}

/// Eight rows x `T` tokens over all of `k`. As part of its caller, with checks in the loop, it kept most sums in memory, and where on
/// the stack they lay made a difference of 20 %.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const FOUR_BITS: bool, const T: usize>(groups: &[Group], x: &[Block<T>], place: Place, y: &mut [f32]) {
    let mut sums = [_mm256_setzero_ps(); T];
    for (group, x) in groups.iter().zip(x) {
        let mut totals = [_mm256_setzero_si256(); T];
        for i in 0..STEPS {
            let w = load(&group.codes[i]);
            for t in 0..T {
                totals[t] = add_step::<FOUR_BITS>(totals[t], w, _mm256_set1_epi32(x[i][t]));
            }
        }
        // SAFETY: the array holds the 32 bytes that are read.
        let d = unsafe { _mm256_loadu_ps(group.scales.as_ptr()) };
        for t in 0..T {
            sums[t] = add_block::<FOUR_BITS>(sums[t], totals[t], d, x[SCALE][t], x[START][t]);
        }
    }
    for t in 0..T {
        put(sums[t], place.spacing, place.n_rows, &mut y[t * place.stride..]);
    }
}

/// Eight rows times one token, over all of `k`: codes stay in registers.
///
/// # Safety
/// From each pointer, `block_bytes` bytes can be read for every block of `x`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn one_token<const FOUR_BITS: bool>(rows: [*const u8; ROWS], block_bytes: usize, x: &[Block<1>]) -> __m256 {
    let mut sums = _mm256_setzero_ps();
    for (b, x) in x.iter().enumerate() {
        ask_for_block(rows, b * block_bytes);
        // SAFETY: by the contract.
        let (codes, d) = unsafe { read_group::<FOUR_BITS>(rows, b * block_bytes) };
        let mut total = _mm256_setzero_si256();
        for i in 0..STEPS {
            total = add_step::<FOUR_BITS>(total, codes[i], _mm256_set1_epi32(x[i][0]));
        }
        sums = add_block::<FOUR_BITS>(sums, total, d, x[SCALE][0], x[START][0]);
    }
    sums
}

/// Adds four columns of eight rows times those of a token.
#[inline]
#[target_feature(enable = "avx2")]
fn add_step<const FOUR_BITS: bool>(total: __m256i, w: __m256i, x: __m256i) -> __m256i {
    if FOUR_BITS {
        // At most 2·15·127 a lane and step: the eight of a block stay below 2^15.
        _mm256_add_epi16(total, _mm256_maddubs_epi16(w, x))
    } else {
        // |w| times x with w's sign, at most 2·128·127 a lane: widened at once.
        let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        _mm256_add_epi32(total, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
    }
}

/// Adds the total of a block, times the scales of eight rows and of the token: its bits, and what the total begins with.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block<const FOUR_BITS: bool>(sums: __m256, mut total: __m256i, d: __m256, scale: i32, start: i32) -> __m256 {
    if FOUR_BITS {
        let pairs = _mm256_madd_epi16(total, _mm256_set1_epi16(1));
        total = _mm256_add_epi32(pairs, _mm256_set1_epi32(start));
    }
    let scale = _mm256_mul_ps(d, _mm256_castsi256_ps(_mm256_set1_epi32(scale)));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), scale, sums)
}

/// Writes the outputs of the rows that exist, `spacing` apart.
#[target_feature(enable = "avx2")]
pub fn put(sums: __m256, spacing: usize, n_rows: usize, y: &mut [f32]) {
    let mut lanes = [0.0; ROWS];
    // SAFETY: the array holds the 32 bytes that are written.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
    for (r, lane) in lanes[..n_rows].iter().enumerate() {
        y[r * spacing] = *lane;
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_group(codes: [__m256i; STEPS], scales: __m256, group: &mut Group) {
    for i in 0..STEPS {
        store(&mut group.codes[i], codes[i]);
    }
    // SAFETY: the array holds the 32 bytes that are written.
    unsafe { _mm256_storeu_ps(group.scales.as_mut_ptr(), scales) };
}

/// Asks for what comes 1 KB after the blocks at `offset`. Once is enough here: asking as AVX-512 does made Q4_0 8 % slower.
#[inline]
fn ask_for_block(rows: [*const u8; ROWS], offset: usize) {
    for row in rows {
        prefetch::<_MM_HINT_T0>(row.wrapping_add(offset + 1024));
    }
}

/// The blocks at `offset` of eight rows: codes as [`Group`] has them, and scales.
///
/// # Safety
/// From each pointer, `offset` and the bytes of a block can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn read_group<const FOUR_BITS: bool>(rows: [*const u8; ROWS], offset: usize) -> ([__m256i; STEPS], __m256) {
    // SAFETY: by the contract; a block begins with its scale, 16 or twice 16 bytes of codes follow.
    unsafe {
        let scale = |r: usize| rows[r].add(offset).cast::<i16>().read_unaligned();
        let scales = _mm_setr_epi16(scale(0), scale(1), scale(2), scale(3), scale(4), scale(5), scale(6), scale(7));
        let [a, b, c, d] = turn(rows, offset + 2);
        let codes = if FOUR_BITS {
            let (low, high) = (low_nibbles, high_nibbles);
            [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
        } else {
            let [e, f, g, h] = turn(rows, offset + 18);
            [a, b, c, d, e, f, g, h]
        };
        (codes, _mm256_cvtph_ps(scales))
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn low_nibbles(v: __m256i) -> __m256i {
    _mm256_and_si256(v, _mm256_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx2")]
fn high_nibbles(v: __m256i) -> __m256i {
    low_nibbles(_mm256_srli_epi16::<4>(v))
}

/// Vector `i` of the result holds dword `i` of the 16 bytes at `offset` of every row.
///
/// # Safety
/// From each pointer, `offset + 16` bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn turn(rows: [*const u8; ROWS], offset: usize) -> [__m256i; 4] {
    let mut v = [_mm256_setzero_si256(); 4];
    for r in 0..4 {
        // SAFETY: by the contract.
        let (a, b) =
            unsafe { (_mm_loadu_si128(rows[r].add(offset).cast()), _mm_loadu_si128(rows[r + 4].add(offset).cast())) };
        v[r] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
    }
    let (a, b) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3]));
    let (c, d) = (_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3]));
    [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), _mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(codes: &[i8; BLOCK]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(codes: &mut [i8; BLOCK], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), value) };
}
