//! BF16 and F16 on AMX: `tdpbf16ps` multiplies 16 rows of 16 pairs of bf16 by the pairs of 16 tokens and adds to 16 x 16 f32.
//!
//! With BF16 weights the input is rounded to bf16, as in [`avx512_bf16`](super::avx512_bf16). An F16 weight is the sum of two bf16, and the
//! input becomes such a sum, of 16 bits where llama.cpp leaves it 11; of their four products that of both second parts is left out.
//!
//! 32 rows are multiplied by 32 tokens at a time, which keep four tiles of sums, or by up to 16. BF16 is read as it lies, a cache line of each
//! row a step (copied to the L1 cache first, as F16 is, 128 tokens took 1.08 times as long). F16 is split into the L1 cache a step ahead, for
//! every 32 tokens anew. Rows and columns at the end of a range or a matrix are copied or split block by block for all tokens.
//!
//! A product of 32 columns begins with nothing, adds up the even and the odd ones in order, and is added to the sum (Intel, Instruction Set
//! Extensions, `TDPBF16PS`): the bits of a result depend neither on the batch nor on blocks. The instruction rounds to nearest, ties
//! to even, and takes and leaves denormals as zeros. An infinite F16 weight, or input beside F16, gives NaN: infinity less itself.

mod passes;

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use self::passes::{Pass, config_for, multiply, multiply_split, split_and_multiply, split_and_multiply_pairs};
use super::avx512_bf16::rounded;
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, for_each_tile};
use crate::bytes::{Aligned, AlignedBytes};
use crate::isa::AmxBf16;
use crate::team::Team;

/// Tokens, and rows, of a tile register.
const SIDE: usize = 16;
/// Columns of a step: the pairs of a tile of weights, a cache line of each row.
const COLUMNS: usize = 32;
/// Rows that are multiplied together: two tiles.
const ROWS: usize = 2 * SIDE;
/// Bytes of the columns of a step.
const LINE: usize = 2 * COLUMNS;
/// Bytes from row to row of a block that was copied or split: a line more than its own, so that rows do not share sets of the L1 cache.
const ROOM_STRIDE: usize = (ROOM_STEPS + 1) * LINE;
/// Steps of such a block.
const ROOM_STEPS: usize = 8;
/// Bytes from the first parts to the second ones.
const SECOND: usize = ROWS * ROOM_STRIDE;
/// Tokens that go by together.
const GROUP_TOKENS: usize = 128;
/// Rows that all tokens of a group go by before the next: their weights stay in the L2 cache.
const SET_ROWS: usize = 96;
/// Steps after which the next rows come, with more tokens than a tile has: their inputs stay in the L2 cache.
const BLOCK_STEPS: usize = 64;

/// A pair of inputs of one token.
type Pair = [u16; 2];

/// Weights as sums of bf16.
pub trait Parts: Send + Sync + 'static {
    const INFO: DenseInfo;
    /// How many make up a weight, or an input: 1 or 2.
    const PARTS: usize;

    /// The parts of the 32 weights at `at`, of those that `mask` has.
    ///
    /// # Safety
    /// The CPU has AVX-512, and those weights can be read.
    unsafe fn load(at: *const u8, mask: u32) -> [__m512i; 2];

    /// [`multiply`] or [`multiply_split`].
    ///
    /// # Safety
    /// Theirs.
    unsafe fn multiply(pass: &Pass);
}

/// BF16 as it is.
pub struct OfBf16;
/// F16 as two parts.
pub struct OfF16;
/// The kernel for BF16.
pub type Bf16 = Tiles<OfBf16>;
/// The kernel for F16.
pub type F16 = Tiles<OfF16>;

impl Parts for OfBf16 {
    const INFO: DenseInfo = info::<AmxBf16>("amx-bf16-tdpbf16", DenseType::BF16, Activations::Rounded);
    const PARTS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(at: *const u8, mask: u32) -> [__m512i; 2] {
        // SAFETY: by the contract; the load does not touch what is masked out.
        [unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) }, _mm512_setzero_si512()]
    }

    #[inline]
    unsafe fn multiply(pass: &Pass) {
        // SAFETY: by the contract.
        unsafe { multiply(pass) };
    }
}

impl Parts for OfF16 {
    const INFO: DenseInfo = info::<AmxBf16>("amx-f16-tdpbf16", DenseType::F16, Activations::Rounded);
    const PARTS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(at: *const u8, mask: u32) -> [__m512i; 2] {
        // SAFETY: by the contract; the load does not touch what is masked out.
        let halves = unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) };
        let low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(halves));
        // The upper half of an f32 holds eight of the eleven bits, the rest is at most three.
        let upper = |w: __m512| _mm512_and_si512(_mm512_castps_si512(w), _mm512_set1_epi32(!0xffff));
        let rest = |w: __m512| _mm512_castps_si512(_mm512_sub_ps(w, _mm512_castsi512_ps(upper(w))));
        [upper_halves(upper(low), upper(high)), upper_halves(rest(low), rest(high))]
    }

    #[inline]
    unsafe fn multiply(pass: &Pass) {
        // SAFETY: by the contract.
        unsafe { multiply_split(pass) };
    }
}

/// Where the upper halves of dwords are.
static UPPER: [u16; 32] = {
    let mut upper = [0; 32];
    let mut i = 0;
    while i < 32 {
        upper[i] = 2 * i as u16 + 1;
        i += 1;
    }
    upper
};

/// The upper halves of the dwords of two registers, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn upper_halves(low: __m512i, high: __m512i) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read.
    let upper = unsafe { _mm512_loadu_si512(UPPER.as_ptr().cast()) };
    _mm512_permutex2var_epi16(low, upper, high)
}

/// The kernel of weights that are such sums.
pub struct Tiles<S>(PhantomData<S>);

#[derive(Default)]
struct Buffers {
    /// A block of weights, copied or split: the first parts of 32 rows, then the second ones.
    weights: AlignedBytes,
    /// For every 32 rows [`tiles_of`] all tokens, for 16 of them two: rows one after the other, with a sum of each token beside each other.
    sums: Aligned<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<S: Parts> Method for Tiles<S> {
    type Proof = AmxBf16;
    const INFO: DenseInfo = S::INFO;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        let group = m.clamp(1, SIDE);
        for_each_tile(team, out, m, group, pairs_per_token::<S>(k), |tokens, out: &mut [Pair]| {
            let x = &x[tokens.start * k..tokens.end * k];
            for (step, out) in out.chunks_exact_mut(S::PARTS * (COLUMNS / 2) * group).enumerate() {
                lay_out::<S>(x, k, step * COLUMNS, group, out);
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn multiply(w: &DenseMatrix, _: &[f32], x: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        let (k, n_rows) = (w.k(), rows.len());
        if m == 0 || k == 0 {
            return y.fill(0.0);
        }
        let x: &[Pair] = bytemuck::cast_slice(x);
        BUFFERS.with_borrow_mut(|buffers| {
            for set in rows.clone().step_by(SET_ROWS) {
                let set = set..rows.end.min(set + SET_ROWS);
                for first in (0..m).step_by(GROUP_TOKENS) {
                    let n_tokens = (m - first).min(GROUP_TOKENS);
                    let x = &x[first * pairs_per_token::<S>(k)..];
                    // SAFETY: by this function's contract.
                    unsafe { multiply_rows::<S>(w, x, n_tokens, m.min(SIDE), set.clone(), buffers) };
                    let y = &mut y[first * n_rows..][..n_tokens * n_rows];
                    store(&buffers.sums, n_tokens, n_rows, set.start - rows.start..set.end - rows.start, y);
                }
            }
        });
    }
}

/// Pairs of inputs, of all parts, that a token takes.
fn pairs_per_token<S: Parts>(k: usize) -> usize {
    k.div_ceil(COLUMNS) * S::PARTS * (COLUMNS / 2)
}

/// Rounds columns `column ..` of up to 16 tokens, of `k` values, and lays them out: for every part and pair of columns the pairs of `group`
/// tokens. What is missing is zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn lay_out<S: Parts>(x: &[f32], k: usize, column: usize, group: usize, out: &mut [Pair]) {
    let left = (k - column).min(COLUMNS);
    let mask = !0u32 >> (COLUMNS - left);
    let (mut first, mut second) = ([_mm512_setzero_si512(); SIDE], [_mm512_setzero_si512(); SIDE]);
    for (t, x) in x.chunks_exact(k).enumerate() {
        let x = x[column..column + left].as_ptr();
        // SAFETY: the mask has as many floats as there are; the loads do not touch what is masked out.
        let (low, high) = unsafe {
            (_mm512_maskz_loadu_ps(mask as u16, x), _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(16)))
        };
        first[t] = rounded(low, high);
        if S::PARTS == 2 {
            let (low_part, high_part) = floats(first[t]);
            second[t] = rounded(_mm512_sub_ps(low, low_part), _mm512_sub_ps(high, high_part));
        }
    }
    for (vectors, out) in [first, second].into_iter().zip(out.chunks_exact_mut(COLUMNS / 2 * group)) {
        for (pairs, out) in transposed(vectors).into_iter().zip(out.chunks_exact_mut(group)) {
            // SAFETY: as many dwords as `out` has are written.
            unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), (!0u32 >> (32 - group)) as u16, pairs) };
        }
    }
}

/// The floats that 32 bf16 are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn floats(halves: __m512i) -> (__m512, __m512) {
    let widened = |halves: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)));
    (widened(_mm512_castsi512_si256(halves)), widened(_mm512_extracti64x4_epi64::<1>(halves)))
}

/// Dword `j` of vector `i` becomes dword `i` of vector `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(v: [__m512i; SIDE]) -> [__m512i; SIDE] {
    let mut pairs = v;
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    let mut fours = pairs;
    for i in (0..SIDE).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // `fours[4 a + b]` has dwords `4 q + b` of vectors `4 a .. 4 a + 4` in its quarter `q`.
    let mut out = fours;
    for b in 0..4 {
        let [x, y, z, w] = [fours[b], fours[4 + b], fours[8 + b], fours[12 + b]];
        let (xy_even, xy_odd) =
            (_mm512_shuffle_i32x4::<0b10_00_10_00>(x, y), _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y));
        let (zw_even, zw_odd) =
            (_mm512_shuffle_i32x4::<0b10_00_10_00>(z, w), _mm512_shuffle_i32x4::<0b11_01_11_01>(z, w));
        out[b] = _mm512_shuffle_i32x4::<0b10_00_10_00>(xy_even, zw_even);
        out[4 + b] = _mm512_shuffle_i32x4::<0b10_00_10_00>(xy_odd, zw_odd);
        out[8 + b] = _mm512_shuffle_i32x4::<0b11_01_11_01>(xy_even, zw_even);
        out[12 + b] = _mm512_shuffle_i32x4::<0b11_01_11_01>(xy_odd, zw_odd);
    }
    out
}

/// Multiplies rows, of two bytes a weight, by `m` tokens, which lie in groups of `group`, at most 16, into the buffers' sums.
///
/// # Safety
/// The CPU has AMX, and this process may use it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn multiply_rows<S: Parts>(
    w: &DenseMatrix,
    x: &[Pair],
    m: usize,
    group: usize,
    rows: Range<usize>,
    buffers: &mut Buffers,
) {
    let (n_steps, n_groups) = (w.k().div_ceil(COLUMNS), m.div_ceil(SIDE));
    let step_pairs = S::PARTS * COLUMNS / 2 * group;
    assert!(group <= SIDE && (m <= group || group == SIDE) && w.ty().block_bytes() == 2, "no groups of {m} tokens");
    assert!(x.len() >= n_groups * n_steps * step_pairs, "the input was prepared for another k");
    let per_block = if n_groups == 1 { n_steps } else { BLOCK_STEPS / S::PARTS };
    let tile_sums = tiles_of(m) * SIDE * SIDE;
    buffers.weights.ensure_len(2 * SECOND);
    buffers.sums.resize(rows.len().div_ceil(ROWS) * tile_sums);
    let config = config_for(group);
    for block in (0..n_steps).step_by(per_block) {
        let block = block..n_steps.min(block + per_block);
        for (row, sums) in rows.clone().step_by(ROWS).zip(buffers.sums.chunks_exact_mut(tile_sums)) {
            let whole = row + ROWS <= rows.end && block.end * COLUMNS <= w.k();
            let mut pass = Pass {
                config: &config,
                weights: w.row(row)[LINE * block.start..].as_ptr(),
                row_bytes: 2 * w.k(),
                n_steps: block.len(),
                x: x[block.start * step_pairs..].as_ptr(),
                group_bytes: n_steps * step_pairs * size_of::<Pair>(),
                stride: group * size_of::<Pair>(),
                n_groups,
                sums: sums.as_mut_ptr(),
                more: block.start > 0,
                room: buffers.weights.as_mut_ptr(),
            };
            // SAFETY: by the contract; the rows and steps are all there or in the room for them, inputs as many as asserted, and sums as the
            // buffer was made for.
            unsafe {
                match (whole, S::PARTS) {
                    // Stored as they are multiplied.
                    (true, 1) => S::multiply(&pass),
                    (true, _) if n_groups == 1 => split_and_multiply(&pass),
                    (true, _) => split_and_multiply_pairs(&mut pass),
                    _ => {
                        for start in block.clone().step_by(ROOM_STEPS) {
                            let steps = start..block.end.min(start + ROOM_STEPS);
                            unpack::<S>(w, row..rows.end.min(row + ROWS), steps.clone(), &mut buffers.weights);
                            pass.weights = buffers.weights.as_ptr();
                            (pass.row_bytes, pass.n_steps) = (ROOM_STRIDE, steps.len());
                            pass.x = x[start * step_pairs..].as_ptr();
                            pass.more = start > 0;
                            S::multiply(&pass);
                        }
                    }
                }
            }
        }
    }
}

/// Copies or splits at most [`ROOM_STEPS`] steps of up to 32 rows. Missing rows and columns are zeros.
///
/// # Safety
/// The CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn unpack<S: Parts>(w: &DenseMatrix, rows: Range<usize>, steps: Range<usize>, out: &mut [u8]) {
    let (first, second) = out.split_at_mut(SECOND);
    let places = first.chunks_exact_mut(ROOM_STRIDE).zip(second.chunks_exact_mut(ROOM_STRIDE));
    for (row, places) in (rows.start..).zip(places) {
        let weights = if row < rows.end { &w.row(row)[LINE * steps.start..] } else { &[] };
        let lines = (places.0.as_chunks_mut::<LINE>().0.iter_mut()).zip(places.1.as_chunks_mut::<LINE>().0);
        for (i, (first, second)) in lines.enumerate().take(steps.len()) {
            let left = weights.len().saturating_sub(LINE * i) / 2;
            let mask = if left < COLUMNS { (1 << left) - 1 } else { u32::MAX };
            // SAFETY: by the contract; the mask has as many weights as there are. The lines hold the 64 bytes that are written.
            unsafe {
                let parts = S::load(weights.as_ptr().wrapping_add(LINE * i), mask);
                _mm512_storeu_si512(first.as_mut_ptr().cast(), parts[0]);
                if S::PARTS == 2 {
                    _mm512_storeu_si512(second.as_mut_ptr().cast(), parts[1]);
                }
            }
        }
    }
}

/// Tiles of sums of 32 rows with `m` tokens: two for each group of 16, and for one more where the last group of several has none beside it.
fn tiles_of(m: usize) -> usize {
    2 * if m > SIDE { m.div_ceil(SIDE).next_multiple_of(2) } else { 1 }
}

/// Moves the sums of rows, which are these of the `n_rows` of an output, to the outputs of `m` tokens.
#[target_feature(enable = "avx512f")]
fn store(sums: &[f32], m: usize, n_rows: usize, rows: Range<usize>, y: &mut [f32]) {
    let tiles: &[[[f32; SIDE]; SIDE]] = sums.as_chunks().0.as_chunks().0;
    let row_tiles = rows.clone().step_by(ROWS).zip(tiles.chunks_exact(tiles_of(m)));
    for (i, (row, tile)) in row_tiles.flat_map(|(row, tiles)| tiles.iter().map(move |tile| (row, tile)).enumerate()) {
        let (tokens, row) = (i / 2 * SIDE..m.min((i / 2 + 1) * SIDE), row + i % 2 * SIDE);
        let n = rows.end.saturating_sub(row).min(SIDE);
        if n == 0 {
            continue;
        }
        let mut vectors = [_mm512_setzero_si512(); SIDE];
        for (vector, sums) in vectors.iter_mut().zip(tile) {
            // SAFETY: the array holds the 64 bytes that are read.
            *vector = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
        }
        for (token, sums) in tokens.zip(transposed(vectors)) {
            let y = &mut y[token * n_rows + row..][..n];
            // SAFETY: as many floats as `y` has are written.
            unsafe { _mm512_mask_storeu_epi32(y.as_mut_ptr().cast(), (!0u32 >> (32 - n)) as u16, sums) };
        }
    }
}
