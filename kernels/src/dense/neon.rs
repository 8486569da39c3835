//! The float types on NEON: weights become f32 in registers, activations stay f32.
//!
//! Up to [`FUSED_TOKENS`] tokens, weights go from memory through a conversion straight into the multiply-adds, four rows at a time.
//! From there on four rows are converted once, to the L2 cache, and used for all tokens. Both ways keep eight running sums per
//! output in the order of [`LANES`], so they give the same bits, which are the portable kernels' too: those fuse on aarch64.
//!
//! Proved under emulation, never timed.

use std::arch::aarch64::*;
use std::arch::asm;
use std::cell::RefCell;
use std::ops::Range;

use half::f16;

use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, FUSED_TOKENS, LANES, sum_lanes};
use crate::bytes::AlignedBytes;
use crate::isa::Neon;
use crate::team::Team;

/// Eight f32.
type Vectors = [float32x4_t; 2];

/// A type whose weights are loaded eight at a time.
pub trait Source: Method {
    /// The bytes of eight weights.
    type Chunk: bytemuck::Pod;

    /// Eight weights as f32.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn load(chunk: &Self::Chunk) -> Vectors;
}

/// Implements [`Source`] for a type by a function.
macro_rules! source {
    ($(#[$doc:meta])* $ty:ident, $name:literal, $bytes:literal, $load:ident) => {
        $(#[$doc])*
        pub struct $ty;

        impl Method for $ty {
            type Proof = Neon;
            const INFO: DenseInfo = info::<Neon>($name, DenseType::$ty, Activations::F32);

            #[target_feature(enable = "neon")]
            unsafe fn prepare(_: &Team, _: &[f32], _: usize, _: usize, _: &mut AlignedBytes) {}

            #[target_feature(enable = "neon")]
            unsafe fn multiply(w: &DenseMatrix, x: &[f32], _: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
                multiply::<Self>(w, x, m, rows, y);
            }
        }

        impl Source for $ty {
            type Chunk = [u8; $bytes];

            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn load(chunk: &Self::Chunk) -> Vectors {
                $load(chunk)
            }
        }
    };
}

source!(
    /// As stored.
    F32, "neon-f32-fmla", 32, f32s
);
source!(
    /// Converted by `fcvtl`.
    F16, "neon-f16-fmla", 16, f16s
);
source!(
    /// The upper halves of f32.
    BF16, "neon-bf16-fmla", 16, bf16s
);

#[inline]
#[target_feature(enable = "neon")]
fn f32s(chunk: &[u8; 32]) -> Vectors {
    // SAFETY: the array holds the two times 16 bytes that are read; the loads need no alignment.
    unsafe { [vld1q_u8(chunk.as_ptr()), vld1q_u8(chunk.as_ptr().add(16))].map(|v| vreinterpretq_f32_u8(v)) }
}

#[inline]
#[target_feature(enable = "neon")]
fn u16s(chunk: &[u8; 16]) -> uint16x8_t {
    // SAFETY: the array holds the 16 bytes that are read.
    vreinterpretq_u16_u8(unsafe { vld1q_u8(chunk.as_ptr()) })
}

/// The intrinsics for this take a type that is not stable.
#[inline]
#[target_feature(enable = "neon")]
fn f16s(chunk: &[u8; 16]) -> Vectors {
    let halves = u16s(chunk);
    let (low, high);
    // SAFETY: NEON has both instructions, which touch these registers only.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            low = out(vreg) low, high = lateout(vreg) high, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Sixteen halves as the float operations take them.
#[inline(always)]
pub(crate) fn halves(numbers: &[f16; 16]) -> [f32; 16] {
    // SAFETY: all are plain numbers of the same total size; NEON is part of every aarch64 target.
    unsafe {
        let [low, high] = std::mem::transmute::<[f16; 16], [[u8; 16]; 2]>(*numbers);
        std::mem::transmute::<[Vectors; 2], [f32; 16]>([f16s(&low), f16s(&high)])
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn bf16s(chunk: &[u8; 16]) -> Vectors {
    let halves = u16s(chunk);
    let (low, high) = (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
    [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
}

/// [`Method::multiply`] for any type.
#[target_feature(enable = "neon")]
fn multiply<S: Source>(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let tiled = rows.len() / TILE_ROWS * TILE_ROWS;
    for r in (0..tiled).step_by(TILE_ROWS) {
        compute::<S, TILE_ROWS>(w, x, m, rows.clone(), r, y);
    }
    for r in tiled..rows.len() {
        compute::<S, 1>(w, x, m, rows.clone(), r, y);
    }
}

/// Rows of a register tile: with two tokens 16 vectors of sums, 4 of activations and 2 of weights, of 32.
const TILE_ROWS: usize = 4;

thread_local! {
    /// A tile's rows as f32, one after the other.
    static CONVERTED: RefCell<Vec<[f32; LANES]>> = const { RefCell::new(Vec::new()) };
}

/// Rows `r .. r + R` of the range `rows`, all tokens.
#[target_feature(enable = "neon")]
fn compute<S: Source, const R: usize>(
    w: &DenseMatrix,
    x: &[f32],
    m: usize,
    rows: Range<usize>,
    r: usize,
    y: &mut [f32],
) {
    let whole = w.k() / LANES * LANES;
    let mut tile: [&[S::Chunk]; R] = [&[]; R];
    let mut rest = [[0.0; LANES]; R];
    for i in 0..R {
        let (chunks, last) = w.row(rows.start + r + i).split_at(whole * w.ty().block_bytes());
        tile[i] = bytemuck::cast_slice(chunks);
        w.ty().dequantize(last, &mut rest[i][..w.k() - whole]);
    }
    let y = &mut y[r..];
    if m <= FUSED_TOKENS || w.ty() == DenseType::F32 {
        tokens::<S, R>(tile, &rest, x, m, y, rows.len());
    } else {
        CONVERTED.with_borrow_mut(|converted| tokens_converted::<S, R>(converted, tile, &rest, x, m, y, rows.len()));
    }
}

/// As [`tokens`], with weights that are converted first.
#[target_feature(enable = "neon")]
fn tokens_converted<S: Source, const R: usize>(
    converted: &mut Vec<[f32; LANES]>,
    rows: [&[S::Chunk]; R],
    rest: &[[f32; LANES]; R],
    x: &[f32],
    m: usize,
    y: &mut [f32],
    stride: usize,
) {
    converted.clear();
    for row in rows {
        for chunk in row {
            // SAFETY: this function has the feature.
            converted.push(values(unsafe { S::load(chunk) }));
        }
    }
    let mut out: [&[<F32 as Source>::Chunk]; R] = [&[]; R];
    for r in 0..R {
        out[r] = bytemuck::cast_slice(&converted[r * rows[r].len()..][..rows[r].len()]);
    }
    tokens::<F32, R>(out, rest, x, m, y, stride);
}

/// `m` tokens with `R` rows; the sums of a token go to `y`, those of the next `stride` further.
#[target_feature(enable = "neon")]
fn tokens<S: Source, const R: usize>(
    rows: [&[S::Chunk]; R],
    rest: &[[f32; LANES]; R],
    x: &[f32],
    m: usize,
    y: &mut [f32],
    stride: usize,
) {
    let k = x.len() / m.max(1);
    for token in (0..m).step_by(2) {
        let (x, y) = (&x[token * k..], &mut y[token * stride..]);
        if token + 1 < m {
            tile::<S, R, 2>(rows, rest, [&x[..k], &x[k..][..k]], y, stride);
        } else {
            tile::<S, R, 1>(rows, rest, [&x[..k]], y, stride);
        }
    }
}

/// The register tile: `R` rows and `T` tokens.
#[target_feature(enable = "neon")]
fn tile<S: Source, const R: usize, const T: usize>(
    rows: [&[S::Chunk]; R],
    rest: &[[f32; LANES]; R],
    x: [&[f32]; T],
    y: &mut [f32],
    stride: usize,
) {
    let mut sums = [[[vdupq_n_f32(0.0); 2]; T]; R];
    let n_chunks = rows[0].len();
    let rows = rows.map(|row| &row[..n_chunks]);
    let chunks = x.map(|x| &x.as_chunks::<LANES>().0[..n_chunks]);
    for i in 0..n_chunks {
        let mut x = [[vdupq_n_f32(0.0); 2]; T];
        for t in 0..T {
            x[t] = load(&chunks[t][i]);
        }
        for r in 0..R {
            // SAFETY: this function has the feature.
            let w = unsafe { S::load(&rows[r][i]) };
            for t in 0..T {
                sums[r][t] = fma(sums[r][t], w, x[t]);
            }
        }
    }
    for t in 0..T {
        let last = x[t].as_chunks::<LANES>().1;
        let mut padded = [0.0; LANES];
        padded[..last.len()].copy_from_slice(last);
        for r in 0..R {
            let mut sum = sums[r][t];
            if !last.is_empty() {
                sum = fma(sum, load(&rest[r]), load(&padded));
            }
            y[t * stride + r] = sum_lanes(values(sum));
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn fma(sum: Vectors, w: Vectors, x: Vectors) -> Vectors {
    [vfmaq_f32(sum[0], w[0], x[0]), vfmaq_f32(sum[1], w[1], x[1])]
}

#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; LANES]) -> Vectors {
    // SAFETY: the array holds the two times 16 bytes that are read.
    unsafe { [vld1q_f32(values.as_ptr()), vld1q_f32(values.as_ptr().add(4))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn values(vectors: Vectors) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    // SAFETY: the array holds the two times 16 bytes that are written.
    unsafe {
        vst1q_f32(values.as_mut_ptr(), vectors[0]);
        vst1q_f32(values.as_mut_ptr().add(4), vectors[1]);
    }
    values
}
