//! Q8_0 and Q4_0 times int8 blocks on AVX2, by `vpmaddubsw`.
//!
//! Eight rows at a time are brought into the form in which a vector holds four codes of each row, so that sums need no
//! horizontal additions and the float work of a block, its scales, is done for eight rows at once. That pays even for one token:
//! dot products along `k` spend more on the float work of every row than this does on turning the block.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::avx2_fma::AHEAD;
use super::int8::{BLOCK, Blocks, INPUT};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType};
use crate::arch::x86_64::prefetch;
use crate::isa::Avx2;

/// Rows of a group: the dwords of a vector.
pub const ROWS: usize = 8;
/// Vectors of a block of eight rows: four codes of each row a vector.
pub const STEPS: usize = BLOCK / 4;

/// A block of eight rows.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Group {
    /// Vector `i` holds columns `4 i .. 4 i + 4` of each row.
    pub codes: [[i8; BLOCK]; STEPS],
    pub scales: [f32; ROWS],
}

pub const EMPTY: Group = Group { codes: [[0; BLOCK]; STEPS], scales: [0.0; ROWS] };

thread_local! {
    /// Eight rows, block by block: with `k = 2048` 18 KB.
    pub static GROUPS: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// Where a tile's outputs go.
#[derive(Clone, Copy)]
pub struct Place {
    /// The first token.
    pub token: usize,
    /// Outputs from token to token.
    pub stride: usize,
    /// Outputs from row to row.
    pub spacing: usize,
    /// Rows that exist.
    pub n_rows: usize,
}

/// Defines the kernel and its loops for an instruction set. Beside them its module has `prepare`, which turns codes into those that
/// it multiplies, `add_step` and `add_block`; `$tokens` is how many tokens its register tile holds.
macro_rules! int8_loops {
    (features: $features:literal, proof: $proof:ident, q8_0: $q8_0:literal, q4_0: $q4_0:literal, tokens: $tokens:literal) => {
        /// Q8_0, or with `FOUR_BITS` Q4_0: then codes are 0..16, stand for `code - 8`, and byte `j` of a block holds those of columns `j`
        /// (low) and `j + 16` (high). Else they are signed bytes.
        pub struct Int8<const FOUR_BITS: bool>;

        impl<const FOUR_BITS: bool> Method for Int8<FOUR_BITS> {
            type Proof = $proof;
            const INFO: DenseInfo = match FOUR_BITS {
                false => info::<$proof>($q8_0, DenseType::Q8_0, Activations::Rounded),
                true => info::<$proof>($q4_0, DenseType::Q4_0, Activations::Rounded),
            };

            #[target_feature(enable = $features)]
            unsafe fn multiply(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
                all_rows::<FOUR_BITS>(w, x, m, rows, y);
            }
        }

        #[target_feature(enable = $features)]
        fn all_rows<const FOUR_BITS: bool>(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
            let mut input = INPUT.take();
            let mut groups = GROUPS.take();
            input.fill(x);
            groups.resize(w.k() / BLOCK, EMPTY);
            // The rows of a group lie an eighth of the range apart, so that each is a stream of its own over many groups.
            let spacing = rows.len().div_ceil(ROWS);
            let block_bytes = w.ty().block_bytes();
            for first in 0..spacing {
                let mut pointers = [w.row(rows.end - 1).as_ptr(); ROWS];
                for (r, pointer) in pointers.iter_mut().enumerate() {
                    let row = rows.start + first + r * spacing;
                    if row < rows.end {
                        *pointer = w.row(row).as_ptr();
                    }
                }
                // The last groups may lack rows.
                let n_rows = (rows.len() - first).div_ceil(spacing);
                if m == 1 {
                    // SAFETY: each pointer starts a row of `k / 32` blocks.
                    let sums = unsafe { one_token::<FOUR_BITS>(pointers, block_bytes, &input) };
                    put(sums, spacing, n_rows, &mut y[first..]);
                    continue;
                }
                for (b, group) in groups.iter_mut().enumerate() {
                    // SAFETY: each pointer starts a row of `k / 32` blocks, of which this is number `b`.
                    let (codes, scales) = unsafe { read_group::<FOUR_BITS>(pointers, b * block_bytes) };
                    store_group(prepare::<FOUR_BITS>(codes), scales, group);
                }
                let mut token = 0;
                while token < m {
                    let y = &mut y[token * rows.len() + first..];
                    let place = Place { token, stride: rows.len(), spacing, n_rows };
                    token += match m - token {
                        1 => tile::<FOUR_BITS, 1>(&groups, &input, place, y),
                        2 => tile::<FOUR_BITS, 2>(&groups, &input, place, y),
                        3 => tile::<FOUR_BITS, 3>(&groups, &input, place, y),
                        rest if rest < $tokens => tile::<FOUR_BITS, 4>(&groups, &input, place, y),
                        _ => tile::<FOUR_BITS, $tokens>(&groups, &input, place, y),
                    };
                }
            }
            INPUT.set(input);
            GROUPS.set(groups);
        }

        /// Eight rows x `T` tokens over all of `k`; says `T`. As part of its caller, with checks in the loop, it kept most sums in memory,
        /// and where on the stack they lay made a difference of 20 %.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn tile<const FOUR_BITS: bool, const T: usize>(
            groups: &[Group],
            x: &Blocks,
            place: Place,
            y: &mut [f32],
        ) -> usize {
            let n_blocks = groups.len();
            let mut values: [&[[i8; BLOCK]]; T] = [&[]; T];
            let (mut scales, mut block_sums): ([&[f32]; T], [&[i32]; T]) = ([&[]; T], [&[]; T]);
            for t in 0..T {
                let blocks = (place.token + t) * n_blocks..(place.token + t + 1) * n_blocks;
                values[t] = &x.values[blocks.clone()];
                scales[t] = &x.scales[blocks.clone()];
                block_sums[t] = &x.sums[blocks];
            }
            let mut sums = [_mm256_setzero_ps(); T];
            for (b, group) in groups.iter().enumerate() {
                let mut totals = [_mm256_setzero_si256(); T];
                for i in 0..STEPS {
                    let w = load(&group.codes[i]);
                    for t in 0..T {
                        // SAFETY: the slices of every token are as long as `groups`.
                        let values = unsafe { values[t].get_unchecked(b) };
                        totals[t] = add_step::<FOUR_BITS>(totals[t], w, broadcast(values, i));
                    }
                }
                // SAFETY: the array holds the 32 bytes that are read.
                let d = unsafe { _mm256_loadu_ps(group.scales.as_ptr()) };
                for t in 0..T {
                    // SAFETY: as above.
                    let (scale, sum) = unsafe { (*scales[t].get_unchecked(b), *block_sums[t].get_unchecked(b)) };
                    sums[t] = add_block::<FOUR_BITS>(sums[t], totals[t], d, scale, sum);
                }
            }
            for t in 0..T {
                put(sums[t], place.spacing, place.n_rows, &mut y[t * place.stride..]);
            }
            T
        }

        /// Eight rows times one token, over all of `k`: codes stay in registers.
        ///
        /// # Safety
        /// From each pointer, `block_bytes` bytes can be read for every block of `x`.
        #[target_feature(enable = $features)]
        unsafe fn one_token<const FOUR_BITS: bool>(rows: [*const u8; ROWS], block_bytes: usize, x: &Blocks) -> __m256 {
            let mut sums = _mm256_setzero_ps();
            for (b, ((values, scale), sum)) in x.values.iter().zip(&x.scales).zip(&x.sums).enumerate() {
                // SAFETY: by the contract.
                let (codes, d) = unsafe { read_group::<FOUR_BITS>(rows, b * block_bytes) };
                let codes = prepare::<FOUR_BITS>(codes);
                let mut total = _mm256_setzero_si256();
                for i in 0..STEPS {
                    total = add_step::<FOUR_BITS>(total, codes[i], broadcast(values, i));
                }
                sums = add_block::<FOUR_BITS>(sums, total, d, *scale, *sum);
            }
            sums
        }
    };
}
pub(super) use int8_loops;

// Four integer and four float sums, the codes twice and three more fill the 16 registers.
int8_loops! { features: "avx2,fma,f16c", proof: Avx2, q8_0: "avx2-q8_0-int8", q4_0: "avx2-q4_0-int8", tokens: 4 }

/// Codes as [`add_step`] takes them: as they are.
#[inline]
#[target_feature(enable = "avx2")]
fn prepare<const FOUR_BITS: bool>(codes: [__m256i; STEPS]) -> [__m256i; STEPS] {
    codes
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

/// Adds the total of a block, times the scales of eight rows and of the token, whose values there add up to `x_sum`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block<const FOUR_BITS: bool>(sums: __m256, mut total: __m256i, d: __m256, x_scale: f32, x_sum: i32) -> __m256 {
    if FOUR_BITS {
        let pairs = _mm256_madd_epi16(total, _mm256_set1_epi16(1));
        total = _mm256_sub_epi32(pairs, _mm256_set1_epi32(8 * x_sum));
    }
    let scale = _mm256_mul_ps(d, _mm256_set1_ps(x_scale));
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
pub fn store_group(codes: [__m256i; STEPS], scales: __m256, group: &mut Group) {
    for i in 0..STEPS {
        store(&mut group.codes[i], codes[i]);
    }
    // SAFETY: the array holds the 32 bytes that are written.
    unsafe { _mm256_storeu_ps(group.scales.as_mut_ptr(), scales) };
}

/// The blocks at `offset` of eight rows: codes as [`Group`] has them, and scales.
///
/// # Safety
/// From each pointer, `offset` and the bytes of a block can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn read_group<const FOUR_BITS: bool>(rows: [*const u8; ROWS], offset: usize) -> ([__m256i; STEPS], __m256) {
    for row in rows {
        prefetch::<_MM_HINT_T0>(row.wrapping_add(offset + AHEAD));
    }
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

/// Values `4 i .. 4 i + 4`, in every dword.
#[inline]
#[target_feature(enable = "avx2")]
pub fn broadcast(values: &[i8; BLOCK], i: usize) -> __m256i {
    let [a, b, c, d] = values.as_chunks::<4>().0[i];
    _mm256_set1_epi32(i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()]))
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn load(codes: &[i8; BLOCK]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(codes: &mut [i8; BLOCK], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), value) };
}
