//! The loops of llama.cpp's row-major block layouts on AVX2: 32 codes of one row times 32 activations in their own order by
//! `vpmaddubsw`. A layout adds its [`Decode`]: how a block of 256 weights becomes eight vectors of codes.
//!
//! `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`. A product pair is at most 2·2·127 = 508 and an int16 lane holds 64 of them
//! (32,512 of 32,767); a block adds 8, so sums are widened to int32 after at most `BLOCKS` = 8 blocks.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::interleaved::{Aligned, load, store_bytes, widen};
use crate::activation::QuantizedActivations;
use crate::isa::{Avx2, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::blocks::BLOCK;
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// Vectors of a block: 32 columns each, in order.
pub const VECTORS: usize = BLOCK / 32;

/// What one layout adds to the loops.
pub trait Decode: Send + Sync + 'static {
    /// What the kernel is.
    const INFO: &'static KernelInfo;
    /// A block as stored.
    type Block: 'static;

    /// From this many tokens on, codes are unpacked to the L1 cache once and used for all tokens. Measured on Zen 3 as in
    /// [`super::interleaved`].
    const UNPACK_FROM: usize;

    /// Lays out `w`.
    fn pack(w: &TernaryMatrix) -> PackedMatrix;

    /// The blocks of row `index`.
    fn row(w: &PackedMatrix, index: usize) -> &[Self::Block];

    /// The codes of a block.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn decode(block: &Self::Block) -> [__m256i; VECTORS];
}

/// The kernel of a layout.
pub struct Maddubs<D>(#[allow(dead_code, reason = "the proof of support")] Avx2, PhantomData<D>);

impl<D: Decode> Maddubs<D> {
    /// What it is.
    pub const INFO: &'static KernelInfo = D::INFO;

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(|token| Self(token, PhantomData))
    }
}

/// Blocks of one widening.
const BLOCKS: usize = 8;
/// Rows that are read in turn by one token, from as many places, or share a load of activations in a batch.
const ROWS: usize = 4;

impl<D: Decode> TernaryKernel for Maddubs<D> {
    fn info(&self) -> &'static KernelInfo {
        D::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        D::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        if x.m < D::UNPACK_FROM {
            out.fill_in_order(team, x, BLOCK);
        } else {
            out.fill_in_blocks(team, x, BLOCK, BLOCKS * BLOCK);
        }
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.next_multiple_of(BLOCK), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        let n_rows = rows.len();
        if x.m < D::UNPACK_FROM {
            for token in 0..x.m {
                let acc = &mut acc[token * n_rows..][..n_rows];
                // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
                unsafe { one_token::<D>(w, rows.clone(), x.row(token), x.sums[token], acc) };
            }
        } else {
            // SAFETY: as above.
            unsafe { batch::<D>(w, x, rows, acc) };
        }
    }
}

/// All of `k` for one token, from [`ROWS`] places in turn.
#[target_feature(enable = "avx2")]
fn one_token<D: Decode>(w: &PackedMatrix, rows: Range<usize>, x: &[i8], sum: i32, acc: &mut [i32]) {
    let (first, n_rows) = (rows.start, rows.len());
    let spacing = n_rows / ROWS;
    for i in 0..spacing {
        let at = [i, i + spacing, i + 2 * spacing, i + 3 * spacing];
        let rows =
            [D::row(w, first + at[0]), D::row(w, first + at[1]), D::row(w, first + at[2]), D::row(w, first + at[3])];
        for (at, dot) in at.into_iter().zip(stream::<D, ROWS>(rows, x)) {
            acc[at] = dot - sum;
        }
    }
    for i in ROWS * spacing..n_rows {
        acc[i] = stream::<D, 1>([D::row(w, first + i)], x)[0] - sum;
    }
}

/// `Σ code·x` of `S` rows, the codes in registers.
#[target_feature(enable = "avx2")]
fn stream<D: Decode, const S: usize>(rows: [&[D::Block]; S], x: &[i8]) -> [i32; S] {
    let mut sums = [_mm256_setzero_si256(); S];
    for (chunk, x) in x.chunks(BLOCKS * BLOCK).enumerate() {
        for s in 0..S {
            let mut pairs = _mm256_setzero_si256();
            for (block, x) in rows[s][chunk * BLOCKS..].iter().zip(x.as_chunks::<BLOCK>().0) {
                // SAFETY: this function runs with AVX2.
                let codes = unsafe { D::decode(block) };
                let x = x.as_chunks().0;
                for v in 0..VECTORS {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[v], load_i8(&x[v])));
                }
            }
            sums[s] = _mm256_add_epi32(sums[s], widen(pairs));
        }
    }
    let mut dots = [0; S];
    for s in 0..S {
        dots[s] = add_lanes(sums[s]);
    }
    dots
}

/// `BLOCKS` blocks of one row, a byte per code.
type Codes = [[u8; 32]; BLOCKS * VECTORS];

/// All of `k` for many tokens: some blocks of [`ROWS`] rows are unpacked and used for all of them before the next.
#[target_feature(enable = "avx2")]
fn batch<D: Decode>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    for token in 0..x.m {
        acc[token * n_rows..][..n_rows].fill(-x.sums[token]);
    }
    let mut codes = Aligned([[[0; 32]; BLOCKS * VECTORS]; ROWS]);
    for group in (0..n_rows).step_by(ROWS) {
        let group = group..(group + ROWS).min(n_rows);
        for first in (0..x.stride).step_by(BLOCKS * BLOCK) {
            let width = (BLOCKS * BLOCK).min(x.stride - first);
            for (codes, row) in codes.0.iter_mut().zip(group.clone()) {
                unpack::<D>(&D::row(w, rows.start + row)[first / BLOCK..], codes);
            }
            let mut token = 0;
            while token + 1 < x.m && group.len() == ROWS {
                let x = [x.block(first, width, token), x.block(first, width, token + 1)];
                steps(&codes.0, x, &mut acc[token * n_rows + group.start..], n_rows);
                token += 2;
            }
            // The last rows and the last token, one by one.
            while token < x.m {
                let x = [x.block(first, width, token)];
                for (codes, row) in codes.0.iter().zip(group.clone()) {
                    steps(std::array::from_ref(codes), x, &mut acc[token * n_rows + row..], n_rows);
                }
                token += 1;
            }
        }
    }
}

/// Spreads at most `BLOCKS` blocks into one byte per code.
#[target_feature(enable = "avx2")]
fn unpack<D: Decode>(blocks: &[D::Block], codes: &mut Codes) {
    for (block, out) in blocks.iter().zip(codes.as_chunks_mut::<VECTORS>().0) {
        // SAFETY: this function runs with AVX2.
        let codes = unsafe { D::decode(block) };
        for v in 0..VECTORS {
            store_bytes(&mut out[v], codes[v]);
        }
    }
}

/// The register tile: adds `R` rows x `T` tokens over as many columns as `x` has. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn steps<const R: usize, const T: usize>(codes: &[Codes; R], x: [&[i8]; T], acc: &mut [i32], stride: usize) {
    let mut columns: [&[[i8; 32]]; T] = [&[]; T];
    for t in 0..T {
        columns[t] = &x[t].as_chunks().0[..x[0].len() / 32];
    }
    let mut pairs = [[_mm256_setzero_si256(); R]; T];
    for i in 0..columns[0].len() {
        let mut x = [_mm256_setzero_si256(); T];
        for t in 0..T {
            x[t] = load_i8(&columns[t][i]);
        }
        for r in 0..R {
            let codes = load(&codes[r][i]);
            for t in 0..T {
                pairs[t][r] = _mm256_add_epi16(pairs[t][r], _mm256_maddubs_epi16(codes, x[t]));
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            acc[t * stride + r] += add_lanes(widen(pairs[t][r]));
        }
    }
}

/// The sum of the eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(lanes: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_i8(values: &[i8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}
