//! `avx512vnni-b3-dpbusd`: base-3 digits. The loops are in [`super::interleaved`].
//!
//! A byte is a fraction `q` in 256ths: its next digit is how many of 256/3 and 512/3 it exceeds, `3 q mod 256` is the rest.
use std::arch::x86_64::*;

use super::interleaved::{Decode, Dpbusd, Plane, load};
use crate::isa::{Avx512Vnni, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::b3;
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type B3Dpbusd = Dpbusd<B3>;

/// The decoder.
pub struct B3;

impl Decode for B3 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx512vnni-b3-dpbusd",
        summary: "5 base-3 digits a byte, vpdpbusd, a lane per row",
        features: Avx512Vnni::FEATURES,
        layout: "b3",
        bits_per_weight: 1.6,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "base-3 packing as in llama.cpp TQ1_0 (PR 8151) and lut_mm, rows interleaved",
    };
    const SHAPE: Shape = b3::SHAPE;
    type Tile = [Plane; b3::SHAPE.planes];
    type Codes = [__m512i; b3::DIGITS];

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        b3::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn decode([plane]: &Self::Tile, v: usize, _: usize) -> Self::Codes {
        let one = _mm512_set1_epi8(1);
        let (third, two_thirds) = (_mm512_set1_epi8(85), _mm512_set1_epi8(170u8.cast_signed()));
        let mut digits = [_mm512_setzero_si512(); b3::DIGITS];
        let mut q = load(&plane[v]);
        for digit in &mut digits {
            let at_least_one = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(q, third), one);
            *digit = _mm512_mask_add_epi8(at_least_one, _mm512_cmpgt_epu8_mask(q, two_thirds), at_least_one, one);
            q = _mm512_add_epi8(q, _mm512_add_epi8(q, q));
        }
        digits
    }
}
