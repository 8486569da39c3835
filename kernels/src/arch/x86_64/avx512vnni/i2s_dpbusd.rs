//! `avx512vnni-i2s-dpbusd`: 2-bit codes by shifts and ANDs. The loops are in [`super::interleaved`].

use std::arch::x86_64::*;

use super::interleaved::{Decode, Dpbusd, Plane, load};
use crate::isa::{Avx512Vnni, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::i2s;
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type I2sDpbusd = Dpbusd<I2s>;

/// The decoder.
pub struct I2s;

impl Decode for I2s {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx512vnni-i2s-dpbusd",
        summary: "2-bit codes, vpdpbusd, a lane per row",
        features: Avx512Vnni::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };
    const SHAPE: Shape = i2s::SHAPE;
    type Tile = [Plane; i2s::SHAPE.planes];
    type Codes = [__m512i; 4];

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn decode([plane]: &Self::Tile, v: usize, _: usize) -> Self::Codes {
        let mask = _mm512_set1_epi8(3);
        let bits = load(&plane[v]);
        [
            _mm512_and_si512(bits, mask),
            _mm512_and_si512(_mm512_srli_epi16::<2>(bits), mask),
            _mm512_and_si512(_mm512_srli_epi16::<4>(bits), mask),
            _mm512_and_si512(_mm512_srli_epi16::<6>(bits), mask),
        ]
    }
}
