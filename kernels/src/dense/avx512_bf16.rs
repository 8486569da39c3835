//! BF16 on AVX-512 BF16: `vdpbf16ps` multiplies two columns a lane and adds them to an f32, so the input becomes bf16 as well, as
//! in llama.cpp. Weights are multiplied as they are stored.
//!
//! Lane `i` of an output adds columns `2 i` and `2 i + 1` of every 32, in order, whichever path computes it. The instruction rounds
//! to nearest, ties to even, and takes and leaves denormals as zeros.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2_fma::{FUSED_ROWS, ask_ahead, fused_tiles};
use super::blocked::{Ahead, sum_rows};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, FUSED_TOKENS, for_each_tile};
use crate::bytes::AlignedBytes;
use crate::isa::Avx512Bf16;
use crate::team::Team;

/// The kernel.
pub struct Bf16;

/// Columns of a vector.
const COLUMNS: usize = 32;
/// As many bf16.
type Vector = [u16; COLUMNS];

/// A register tile: 24 sums, four tokens and a vector of weights in 32 registers.
const ROWS: usize = 6;
const TOKENS: usize = 4;
/// Bytes of the weights that all tokens go by: they fit in the L2 cache twice.
const BLOCK_BYTES: usize = 192 << 10;
/// Tokens that go by together, block after block.
const GROUP_TOKENS: usize = 128;

impl Method for Bf16 {
    type Proof = Avx512Bf16;
    const INFO: DenseInfo = info::<Avx512Bf16>("avx512bf16-bf16-dpbf16", DenseType::BF16, Activations::Rounded);

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        for_each_tile(team, out, m, TOKENS, k.div_ceil(COLUMNS), |tokens, out: &mut [Vector]| {
            round_tile(&x[tokens.start * k..tokens.end * k], k, out);
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn multiply(w: &DenseMatrix, _: &[f32], x: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        let (k, n_rows) = (w.k(), rows.len());
        if k == 0 {
            return y.fill(0.0);
        }
        let x: &[Vector] = bytemuck::cast_slice(x);
        for first in (0..m).step_by(GROUP_TOKENS) {
            let tokens = first..m.min(first + GROUP_TOKENS);
            let x = &x[tokens.start * k.div_ceil(COLUMNS)..];
            let y = &mut y[tokens.start * n_rows..tokens.end * n_rows];
            if m <= FUSED_TOKENS {
                few(w, x, tokens.len(), rows.clone(), y);
            } else {
                batch(w, x, tokens.len(), rows.clone(), y);
            }
        }
    }
}

/// Rounds the tokens of a tile, of `k` values, and lays them out vector by vector. What is missing to the last vector is zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round_tile(x: &[f32], k: usize, out: &mut [Vector]) {
    let n_tokens = x.len() / k;
    for (t, x) in x.chunks_exact(k).enumerate() {
        let (whole, rest) = x.as_chunks::<COLUMNS>();
        for (i, x) in whole.iter().enumerate() {
            round(x, &mut out[i * n_tokens + t]);
        }
        if !rest.is_empty() {
            let mut padded = [0.0; COLUMNS];
            padded[..rest.len()].copy_from_slice(rest);
            round(&padded, &mut out[whole.len() * n_tokens + t]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round(x: &[f32; COLUMNS], out: &mut Vector) {
    // SAFETY: the arrays hold the twice 64 bytes that are read and the 64 that are written.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(COLUMNS / 2)));
        _mm512_storeu_si512(out.as_mut_ptr().cast(), rounded(low, high));
    }
}

/// 32 floats as bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 64 bytes of plain numbers.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Up to [`FUSED_TOKENS`] tokens: one pass over the rows at memory speed, spaced as in [`fused_tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn few(w: &DenseMatrix, x: &[Vector], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let row_len = w.k().div_ceil(COLUMNS);
    for (r, spacing) in fused_tiles(rows.len()) {
        for token in (0..m).step_by(TOKENS) {
            let x = &x[token * row_len..];
            let place = Place { first: rows.start + r, spacing, stride: rows.len() };
            let y = &mut y[token * rows.len() + r..];
            // Only the first pass over the rows waits for them.
            match (spacing, m - token, token) {
                (0, 1, _) => tile::<1, 1, false>(w, x, place, y),
                (0, 2, _) => tile::<1, 2, false>(w, x, place, y),
                (0, 3, _) => tile::<1, 3, false>(w, x, place, y),
                (0, _, _) => tile::<1, TOKENS, false>(w, x, place, y),
                (_, 1, 0) => tile::<FUSED_ROWS, 1, true>(w, x, place, y),
                (_, 2, 0) => tile::<FUSED_ROWS, 2, true>(w, x, place, y),
                (_, 3, 0) => tile::<FUSED_ROWS, 3, true>(w, x, place, y),
                (_, _, 0) => tile::<FUSED_ROWS, TOKENS, true>(w, x, place, y),
                (_, 1, _) => tile::<FUSED_ROWS, 1, false>(w, x, place, y),
                (_, 2, _) => tile::<FUSED_ROWS, 2, false>(w, x, place, y),
                (_, 3, _) => tile::<FUSED_ROWS, 3, false>(w, x, place, y),
                (_, _, _) => tile::<FUSED_ROWS, TOKENS, false>(w, x, place, y),
            }
        }
    }
}

/// More tokens: a block of rows stays in the L2 cache, its next is asked for meanwhile, and one token tile after the other goes by.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn batch(w: &DenseMatrix, x: &[Vector], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let (row_len, row_bytes) = (w.k().div_ceil(COLUMNS), w.k() * 2);
    let block_rows = (BLOCK_BYTES / row_bytes / ROWS * ROWS).max(ROWS);
    for block in rows.clone().step_by(block_rows) {
        let end = rows.end.min(block + block_rows);
        let next = w.data().as_ptr().wrapping_add(end * row_bytes);
        let mut ahead = Ahead::new(next, row_bytes, row_bytes, (w.n() - end).min(block_rows));
        let lines_per_turn = ahead.left().div_ceil((end - block).div_ceil(ROWS) * m.div_ceil(TOKENS));
        for token in (0..m).step_by(TOKENS) {
            let x = &x[token * row_len..];
            let mut row = block;
            while row < end {
                ahead.ask(lines_per_turn);
                let place = Place { first: row, spacing: 1, stride: rows.len() };
                let y = &mut y[token * rows.len() + row - rows.start..];
                let whole = end - row >= ROWS;
                match (whole, m - token) {
                    (true, 1) => tile::<ROWS, 1, false>(w, x, place, y),
                    (true, 2) => tile::<ROWS, 2, false>(w, x, place, y),
                    (true, 3) => tile::<ROWS, 3, false>(w, x, place, y),
                    (true, _) => tile::<ROWS, TOKENS, false>(w, x, place, y),
                    (false, 1) => tile::<1, 1, false>(w, x, place, y),
                    (false, 2) => tile::<1, 2, false>(w, x, place, y),
                    (false, 3) => tile::<1, 3, false>(w, x, place, y),
                    (false, _) => tile::<1, TOKENS, false>(w, x, place, y),
                }
                row += if whole { ROWS } else { 1 };
            }
        }
    }
}

/// Where a tile lies.
struct Place {
    /// Its first row of the matrix.
    first: usize,
    /// From row to row, in the matrix and in the output.
    spacing: usize,
    /// Outputs from token to token.
    stride: usize,
}

/// `R` rows and `T` tokens over all of `k`, so that sums never leave the registers; with `WAITS`, rows are asked for ahead.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile<const R: usize, const T: usize, const WAITS: bool>(w: &DenseMatrix, x: &[Vector], place: Place, y: &mut [f32]) {
    let x = &x.as_chunks::<T>().0[..w.k().div_ceil(COLUMNS)];
    let mut rows = [std::ptr::null(); R];
    for r in 0..R {
        rows[r] = w.row(place.first + r * place.spacing).as_ptr();
    }
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    let (whole, rest) = x.split_at(w.k() / COLUMNS);
    for (i, x) in whole.iter().enumerate() {
        if WAITS {
            ask_ahead(rows, size_of::<Vector>() * i);
        }
        // SAFETY: every row has `k >= 32 i + 32` weights.
        unsafe { add::<R, T>(rows, i, u32::MAX, x, &mut sums) };
    }
    for x in rest {
        // SAFETY: the mask has a bit for each weight that is left in every row.
        unsafe { add::<R, T>(rows, whole.len(), (1 << (w.k() % COLUMNS)) - 1, x, &mut sums) };
    }
    for t in 0..T {
        let mut column = [_mm256_setzero_ps(); R];
        for r in 0..R {
            let sum = _mm512_castps_pd(sums[r][t]);
            let (low, high) = (_mm512_castpd512_pd256(sum), _mm512_extractf64x4_pd::<1>(sum));
            column[r] = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
        }
        for (r, sum) in sum_rows(column).into_iter().enumerate() {
            y[t * place.stride + r * place.spacing] = sum;
        }
    }
}

/// Adds the products of vector `i`, of the columns whose bits `mask` has.
///
/// # Safety
/// Every row has the weights at those columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add<const R: usize, const T: usize>(
    rows: [*const u8; R],
    i: usize,
    mask: u32,
    x: &[Vector; T],
    sums: &mut [[__m512; T]; R],
) {
    let mut tokens = [bf16s(_mm512_setzero_si512()); T];
    for t in 0..T {
        // SAFETY: the array holds the 64 bytes that are read.
        tokens[t] = bf16s(unsafe { _mm512_loadu_si512(x[t].as_ptr().cast()) });
    }
    for r in 0..R {
        // SAFETY: by the contract; the load does not touch what is masked out.
        let w = bf16s(unsafe { _mm512_maskz_loadu_epi16(mask, rows[r].add(size_of::<Vector>() * i).cast()) });
        for t in 0..T {
            sums[r][t] = _mm512_dpbf16_ps(sums[r][t], w, tokens[t]);
        }
    }
}

/// The same bits as the instruction's type.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16s(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes of plain numbers.
    unsafe { std::mem::transmute(bits) }
}
