//! What the multiplying kernels share: the codes of a stretch of 32 rows are unpacked to bytes in the L1 cache once, and multiplied
//! with every token. A layout is a [`Decode`], an instruction that multiplies a [`Multiply`], and a kernel a pair of them.
//!
//! `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`.

use std::arch::aarch64::*;
use std::marker::PhantomData;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::Token;
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::team::Team;
use crate::trit::TernaryMatrix;

pub use crate::layout::interleaved::TILE_ROWS;

/// Vectors of 4 rows in a tile.
pub const VECTORS: usize = TILE_ROWS / 4;
/// Steps unpacked at once, at most: 512 columns of 32 rows, 16 KB, half of the smallest L1 cache.
const BLOCK: usize = 128;

/// 4 columns of 32 rows, a byte per code: 4 bytes a row, 4 rows a vector.
pub type Step = [[u8; 16]; VECTORS];
/// The same columns of a token.
pub type Columns = [i8; 4];

/// A layout.
pub trait Decode: Send + Sync + 'static {
    /// Its name, as headed in LAYOUTS.md.
    const NAME: &'static str;
    /// Packed bits per weight, without padding.
    const BITS_PER_WEIGHT: f32;
    /// Whose idea it is.
    const SOURCE: &'static str;
    /// Columns of a tile, a multiple of 4.
    const COLUMNS: usize;

    /// Lays out `w`.
    fn pack(w: &TernaryMatrix) -> PackedMatrix;

    /// Spreads rows `row .. row + 32` of tile `tile` along `k` into one byte per code, zero trits where the matrix has no such row.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]);
}

/// An instruction that multiplies bytes and adds up.
pub trait Multiply: 'static {
    /// Proof that the CPU has it.
    type Proof: Token;

    /// Adds the products of 32 rows and `T` tokens (1 or 2) over at most 128 steps. Token `t`'s sums start at `t * stride`.
    ///
    /// # Safety
    /// The CPU has the instruction.
    unsafe fn add<const T: usize>(steps: &[Step], x: [&[Columns]; T], acc: &mut [i32], stride: usize);
}

/// The kernel of a layout and an instruction.
pub struct Codes<D, M: Multiply>(#[allow(dead_code, reason = "the proof of support")] M::Proof, PhantomData<D>);

/// Gives kernels their names: `<isa>-<layout>-<method>`, `NAME: Layout x Instruction, "name", "summary";`.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident: $decode:ty, $multiply:ty, $kernel:literal, $summary:literal;)*) => {$(
        $(#[$doc])*
        pub type $name = $crate::arch::aarch64::codes::Codes<$decode, $multiply>;

        impl Named for $name {
            const INFO: &'static $crate::kernel::KernelInfo = &$crate::kernel::KernelInfo {
                name: $kernel,
                summary: $summary,
                features: <<$multiply as Multiply>::Proof as $crate::isa::Token>::FEATURES,
                layout: <$decode as Decode>::NAME,
                bits_per_weight: <$decode as Decode>::BITS_PER_WEIGHT,
                row_tile: $crate::arch::aarch64::codes::TILE_ROWS,
                exactness: $crate::kernel::Exactness::Exact,
                source: <$decode as Decode>::SOURCE,
            };
        }
    )*};
}
pub(super) use kernels;

/// A pair that is a kernel.
pub trait Named {
    /// What it is.
    const INFO: &'static KernelInfo;
}

impl<D, M: Multiply> Codes<D, M>
where
    Self: Named,
{
    /// What it is.
    pub const INFO: &'static KernelInfo = <Self as Named>::INFO;

    /// The kernel, where the CPU has the instruction.
    pub fn new() -> Option<Self> {
        M::Proof::detect().map(|proof| Self(proof, PhantomData))
    }
}

impl<D: Decode, M: Multiply> TernaryKernel for Codes<D, M>
where
    Self: Named,
{
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        D::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(team, x, D::COLUMNS);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.next_multiple_of(D::COLUMNS), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds the proof of the instruction, which only run-time detection hands out, and all prove NEON.
        unsafe { compute::<D, M>(w, x, rows, acc) };
    }
}

/// All rows and tokens of a call.
///
/// # Safety
/// The CPU has NEON and the instruction of `M`.
unsafe fn compute<D: Decode, M: Multiply>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    for (token, acc) in acc.chunks_exact_mut(n_rows.max(1)).enumerate() {
        acc.fill(-x.sums[token]);
    }
    let steps_per_tile = D::COLUMNS / 4;
    let n_tiles = w.k.div_ceil(D::COLUMNS);
    let mut steps = [[[0; 16]; VECTORS]; BLOCK];
    for row in rows.clone().step_by(TILE_ROWS) {
        for first in (0..n_tiles).step_by(BLOCK / steps_per_tile) {
            let tiles = first..n_tiles.min(first + BLOCK / steps_per_tile);
            let steps = &mut steps[..tiles.len() * steps_per_tile];
            for (tile, steps) in tiles.zip(steps.chunks_exact_mut(steps_per_tile)) {
                // SAFETY: by this function's contract.
                unsafe { D::unpack(w, row, tile, steps) };
            }
            let columns = |token: usize| &x.row(token).as_chunks().0[first * steps_per_tile..][..steps.len()];
            for token in (0..x.m).step_by(2) {
                let acc = &mut acc[token * n_rows + row - rows.start..];
                // SAFETY: by this function's contract.
                unsafe {
                    if token + 1 < x.m {
                        M::add(steps, [columns(token), columns(token + 1)], acc, n_rows);
                    } else {
                        M::add(steps, [columns(token)], acc, n_rows);
                    }
                }
            }
        }
    }
}

/// 16 codes. At most 3, they are positive as signed bytes too.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_codes(codes: &[u8; 16]) -> int8x16_t {
    vreinterpretq_s8_u8(load(codes))
}

/// 4 columns of a token, for each of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn broadcast(x: Columns) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(x.map(i8::cast_unsigned))))
}

/// Adds to the sums of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn add_to(acc: &mut [i32; 4], values: int32x4_t) {
    // SAFETY: the array holds the 16 bytes that are read and written.
    unsafe { vst1q_s32(acc.as_mut_ptr(), vaddq_s32(vld1q_s32(acc.as_ptr()), values)) };
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array holds the 16 bytes that are read.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn store(bytes: &mut [u8; 16], value: uint8x16_t) {
    // SAFETY: the array holds the 16 bytes that are written.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), value) };
}
