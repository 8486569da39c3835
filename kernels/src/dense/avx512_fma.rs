//! Every type on AVX-512: the weights of [`avx2_fma`](super::avx2_fma), in registers of two tokens.
//!
//! A register holds eight columns of a token in its lower and of another in its upper half, and weights in both, so that every
//! output keeps its eight running sums (see [`LANES`](super::LANES)) and has the bits of the AVX2 kernels. One token is theirs: it
//! waits for memory. Up to [`FUSED_TOKENS`], all tokens go by in one pass over the rows; from there on [`blocked`] feeds the tile.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::avx2_fma::{F32, FUSED_ROWS, Source, ask_ahead_of, fused, fused_tiles, rest_of, scattered};
use super::blocked::{Block, Lanes, Out, Tile, blocked, prepare};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, FUSED_TOKENS, LANES};
use crate::bytes::AlignedBytes;
use crate::isa::Avx512;
use crate::team::Team;

/// The kernel of the type that `S` loads.
pub struct Fma512<S>(PhantomData<S>);

impl<S: Source> Method for Fma512<S> {
    type Proof = Avx512;
    const INFO: DenseInfo = {
        let name = match S::INFO.ty {
            DenseType::F32 => "avx512f-f32-fma",
            DenseType::F16 => "avx512f-f16-fma",
            DenseType::BF16 => "avx512f-bf16-fma",
            DenseType::Q8_0 => "avx512f-q8_0-fma",
            DenseType::Q4_0 => "avx512f-q4_0-fma",
            DenseType::Q4_1 => "avx512f-q4_1-fma",
        };
        info::<Avx512>(name, S::INFO.ty, Activations::F32)
    };

    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        if m > 1 {
            prepare::<Avx512Tile>(team, x, m, k, out);
        }
    }

    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn multiply(w: &DenseMatrix, x: &[f32], tiles: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        match m {
            0 | 1 => fused::<S>(w, x, m, rows, y),
            2..=FUSED_TOKENS => fused_pairs::<S>(w, tiles, m, rows, y),
            _ => blocked::<S, Avx512Tile>(w, tiles, m, rows, y),
        }
    }

    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn multiply_rows(w: &DenseMatrix, x: &[f32], rows: &[u32], y: &mut [f32]) {
        scattered::<S>(w, x, rows, y);
    }
}

/// A vector of two tokens.
type Pair = [Lanes; 2];

/// Lanes as pairs of tokens, `P` beside each other.
fn pairs<const P: usize>(x: &[Lanes]) -> &[[Pair; P]] {
    x.as_chunks().0.as_chunks().0
}

/// Adds the products of `R` rows, from vector `first` on, and `P` pairs of tokens to their sums.
///
/// # Safety
/// Each row has `first + x.len()` vectors of weights.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn add<S: Source, const R: usize, const P: usize>(
    rows: [*const u8; R],
    first: usize,
    x: &[[Pair; P]],
    sums: &mut [[__m512; P]; R],
) {
    for (i, x) in (first..).zip(x) {
        let mut tokens = [_mm512_setzero_ps(); P];
        for p in 0..P {
            tokens[p] = load_pair(&x[p]);
        }
        for r in 0..R {
            // SAFETY: AVX-512 brings AVX2, FMA and F16C, and by the contract the row has more than `i` vectors.
            let w = unsafe { S::load(rows[r], i) };
            let w = _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(w)));
            for p in 0..P {
                sums[r][p] = _mm512_fmadd_ps(w, tokens[p], sums[r][p]);
            }
        }
    }
}

/// [`super::sum_lanes`] of every row and token, in the same order, four rows of two pairs at once.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn outputs<const R: usize, const P: usize>(sums: &[[__m512; P]; R]) -> [[[f32; R]; 2]; P] {
    let mut out = [[[0.0; R]; 2]; P];
    for p in (0..P).step_by(2) {
        for r in (0..R).step_by(4) {
            // A quarter of a register holds four lanes: the halves of the first token of a pair, then those of the second.
            let mut quarters = [_mm512_setzero_ps(); 4];
            for i in 0..4.min(R - r) {
                let a = sums[r + i][p];
                let b = if p + 1 < P { sums[r + i][p + 1] } else { _mm512_setzero_ps() };
                let (low, high) =
                    (_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
                quarters[i] = _mm512_add_ps(low, high);
            }
            let [a, b, c, d] = quarters;
            let ab = _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(a, b), _mm512_shuffle_ps::<0b11_10_11_10>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(c, d), _mm512_shuffle_ps::<0b11_10_11_10>(c, d));
            let (even, odd) = (_mm512_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm512_shuffle_ps::<0b11_01_11_01>(ab, cd));
            let mut tokens = [[0.0; 4]; 4];
            // SAFETY: the array holds the 64 bytes that are written.
            unsafe { _mm512_storeu_ps(tokens.as_flattened_mut().as_mut_ptr(), _mm512_add_ps(even, odd)) };
            for t in 0..4.min(2 * (P - p)) {
                let n = 4.min(R - r);
                out[p + t / 2][t % 2][r..r + n].copy_from_slice(&tokens[t][..n]);
            }
        }
    }
    out
}

/// Two to [`FUSED_TOKENS`] tokens in one pass over the rows: four rows, spaced as in [`fused_tiles`], and up to four pairs of
/// tokens, the one tile that they are, make 16 sums.
#[target_feature(enable = "avx512f,avx512vl")]
fn fused_pairs<S: Source>(w: &DenseMatrix, tile: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let tokens: &[Lanes] = &bytemuck::cast_slice(tile)[..w.k().div_ceil(LANES) * m.next_multiple_of(2)];
    match m.div_ceil(2) {
        1 => fused_rows::<S, 1>(w, pairs(tokens), m, rows, y),
        2 => fused_rows::<S, 2>(w, pairs(tokens), m, rows, y),
        3 => fused_rows::<S, 3>(w, pairs(tokens), m, rows, y),
        _ => fused_rows::<S, 4>(w, pairs(tokens), m, rows, y),
    }
}

#[target_feature(enable = "avx512f,avx512vl")]
fn fused_rows<S: Source, const P: usize>(
    w: &DenseMatrix,
    x: &[[Pair; P]],
    m: usize,
    rows: Range<usize>,
    y: &mut [f32],
) {
    for (r, spacing) in fused_tiles(rows.len()) {
        let y = &mut y[r..];
        match spacing {
            0 => fused_tile::<S, 1, P>(w, x, m, rows.start + r, 0, rows.len(), y),
            _ => fused_tile::<S, FUSED_ROWS, P>(w, x, m, rows.start + r, spacing, rows.len(), y),
        }
    }
}

/// `R` rows, `spacing` apart, x `m` tokens in `P` pairs.
#[target_feature(enable = "avx512f,avx512vl")]
fn fused_tile<S: Source, const R: usize, const P: usize>(
    w: &DenseMatrix,
    x: &[[Pair; P]],
    m: usize,
    first: usize,
    spacing: usize,
    stride: usize,
    y: &mut [f32],
) {
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    let (whole, rest) = x.split_at(w.k() / LANES);
    let rows = std::array::from_fn(|r| w.row(first + r * spacing).as_ptr());
    // Four vectors a turn, as in the fused path of AVX2.
    let (turns, last) = whole.as_chunks::<4>();
    for (i, turn) in turns.iter().enumerate() {
        ask_ahead_of::<S, R>(rows, 4 * i);
        // SAFETY: every row has `k` weights, at least eight for each of `whole`.
        unsafe { add::<S, R, P>(rows, 4 * i, turn, &mut sums) };
    }
    // SAFETY: as above.
    unsafe { add::<S, R, P>(rows, 4 * turns.len(), last, &mut sums) };
    if !rest.is_empty() {
        let weights: [Lanes; R] = std::array::from_fn(|r| rest_of(w, first + r * spacing));
        // SAFETY: one vector of weights each, as f32, for the one vector of every token that is left.
        unsafe { add::<F32, R, P>(weights.each_ref().map(|weights| weights.as_ptr().cast()), 0, rest, &mut sums) };
    }
    let sums = outputs(&sums);
    for (t, sums) in sums.as_flattened().iter().enumerate().take(m) {
        for (r, sum) in sums.iter().enumerate() {
            y[t * stride + r * spacing] = *sum;
        }
    }
}

/// The register tile: 24 sums, four pairs of tokens and a vector of weights in 32 registers. Ten loads for 24 multiply-adds, and
/// weights in both halves are a kind of load. Types that need a conversion would spend as many instructions on it as half of the
/// multiply-adds, so they are turned into f32 for all tokens at once.
pub struct Avx512Tile;

const ROWS: usize = 6;

impl Tile for Avx512Tile {
    const ROWS: usize = ROWS;
    const TOKENS: usize = 8;
    const PACKED: usize = 2;
    const IN_PLACE: &[DenseType] = &[DenseType::F32];
    /// 128 tokens' activations of so many columns are 384 KB of the L2 cache, where they stay for [`Self::SUM_ROWS`]. 512 took 3 %
    /// longer, 1024 and 1536 up to 2 %; 2048, whose sums need not leave the registers as often, 6 % with `k = 8192`.
    const TAKE: usize = 768;
    const ROW_BYTES: usize = 3072;
    /// A tile's weights go by all tokens before the next are turned into f32: 48 rows at a time took 3 to 10 % longer.
    const BLOCK_ROWS: usize = ROWS;
    /// 768 KB of sums, read and written from end to end. 48 took 9 % longer, 96 and 288 up to 2 %.
    const SUM_ROWS: usize = 192;
    /// Emerald Rapids fetches them by itself, and asking took 5 % of the time with `k = 2048`, 18 % with 8192.
    const ASKS_FOR_INPUT: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn multiply<S: Source>(rows: Block, x: &[Lanes], out: Out<'_>) {
        // SAFETY: by the contract, which is the same.
        unsafe {
            match (rows.n_rows, out.n_tokens.div_ceil(2)) {
                (ROWS, 1) => tile::<S, ROWS, 1>(rows.rows(), pairs(x), out),
                (ROWS, 2) => tile::<S, ROWS, 2>(rows.rows(), pairs(x), out),
                (ROWS, 3) => tile::<S, ROWS, 3>(rows.rows(), pairs(x), out),
                (ROWS, _) => tile::<S, ROWS, 4>(rows.rows(), pairs(x), out),
                (_, 1) => tile::<S, 1, 1>(rows.rows(), pairs(x), out),
                (_, 2) => tile::<S, 1, 2>(rows.rows(), pairs(x), out),
                (_, 3) => tile::<S, 1, 3>(rows.rows(), pairs(x), out),
                (_, _) => tile::<S, 1, 4>(rows.rows(), pairs(x), out),
            }
        }
    }
}

/// `R` rows and `P` pairs of tokens.
///
/// # Safety
/// As for [`Tile::multiply`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn tile<S: Source, const R: usize, const P: usize>(rows: [*const u8; R], x: &[[Pair; P]], out: Out<'_>) {
    let stored = out.sums.as_chunks_mut().0.as_chunks_mut::<P>().0.first_chunk_mut::<R>();
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    if let (false, Some(stored)) = (out.first, &stored) {
        for r in 0..R {
            for p in 0..P {
                sums[r][p] = load_pair(&stored[r][p]);
            }
        }
    }
    // SAFETY: by the contract.
    unsafe { add::<S, R, P>(rows, 0, x, &mut sums) };
    if out.last {
        let sums = outputs(&sums);
        for (t, sums) in sums.as_flattened().iter().enumerate().take(out.n_tokens) {
            out.y[t * out.stride..][..R].copy_from_slice(sums);
        }
    } else if let Some(stored) = stored {
        for r in 0..R {
            for p in 0..P {
                store_pair(&mut stored[r][p], sums[r][p]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn load_pair(pair: &Pair) -> __m512 {
    // SAFETY: the arrays hold the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_ps(pair.as_flattened().as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn store_pair(pair: &mut Pair, value: __m512) {
    // SAFETY: the arrays hold the 64 bytes that are written; the store needs no alignment.
    unsafe { _mm512_storeu_ps(pair.as_flattened_mut().as_mut_ptr(), value) };
}
