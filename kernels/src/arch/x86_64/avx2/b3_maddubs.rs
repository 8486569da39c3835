//! `avx2-b3-maddubs`: base-3 digits. The loops are in [`super::interleaved`].
//!
//! A byte is a fraction `q` in 256ths; its next digit is how many of 256/3 and 512/3 it exceeds, and `3 q mod 256` is the rest.
//! AVX2 compares signed bytes only, so `q - 128` is held instead: `3 (q - 128) = 3 q - 128` modulo 256, the same form. Six
//! instructions a digit against `i2s`' 1.25: decoding, not memory, is the limit here.

use std::arch::x86_64::*;

use super::interleaved::{Decode, Maddubs, Plane, load};
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::b3::{self, DIGITS};
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type B3Maddubs = Maddubs<B3>;

/// The decoder.
pub struct B3;

impl Decode for B3 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-b3-maddubs",
        summary: "5 base-3 digits a byte, vpmaddubsw, a lane pair per row",
        features: Avx2::FEATURES,
        layout: "b3",
        bits_per_weight: 1.6,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "base-3 packing as in llama.cpp TQ1_0 (PR 8151) and lut_mm, rows interleaved",
    };
    const SHAPE: Shape = b3::SHAPE;
    type Tile = [Plane; b3::SHAPE.planes];
    const LIFT: i32 = 0;
    type Codes = [__m256i; DIGITS];
    // Unpacked, 2 tokens take 0.64 to 0.78 of the time.
    const UNPACK_FROM: usize = 2;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        b3::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn decode([plane]: &Self::Tile, v: usize, _: usize) -> Self::Codes {
        let mut digits = [_mm256_setzero_si256(); DIGITS];
        let mut q = _mm256_xor_si256(load(&plane[v]), _mm256_set1_epi8(-128));
        for digit in &mut digits {
            *digit = first_digit(q);
            q = _mm256_add_epi8(q, _mm256_add_epi8(q, q));
        }
        digits
    }
}

/// The first base-3 digit of every fraction `q`, given as `q - 128`.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn first_digit(q: __m256i) -> __m256i {
    let third = _mm256_cmpgt_epi8(q, _mm256_set1_epi8(-43));
    let two_thirds = _mm256_cmpgt_epi8(q, _mm256_set1_epi8(42));
    // A comparison gives -1 where it holds.
    _mm256_abs_epi8(_mm256_add_epi8(third, two_thirds))
}
