//! `avxvnni-i2s-dpbusd`: 2-bit codes by shifts and ANDs. The loops are in [`super::interleaved`].

use std::arch::x86_64::*;

use super::interleaved::{Decode, Dpbusd, Plane, load};
use crate::isa::{AvxVnni, Token};
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
        name: "avxvnni-i2s-dpbusd",
        summary: "2-bit codes, vpdpbusd, a lane per row",
        features: AvxVnni::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };
    const SHAPE: Shape = i2s::SHAPE;
    type Tile = [Plane; i2s::SHAPE.planes];
    type Codes = [__m256i; 4];

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn decode([plane]: &Self::Tile, v: usize, _: usize) -> Self::Codes {
        let mask = _mm256_set1_epi8(3);
        let bits = load(&plane[v]);
        [
            _mm256_and_si256(bits, mask),
            _mm256_and_si256(_mm256_srli_epi16::<2>(bits), mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(bits), mask),
            _mm256_and_si256(_mm256_srli_epi16::<6>(bits), mask),
        ]
    }
}
