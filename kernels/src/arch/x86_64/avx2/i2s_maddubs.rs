//! `avx2-i2s-maddubs`: 2-bit codes, an AND and half a shift for 16 columns of a row each. The loops are in [`super::interleaved`].

use std::arch::x86_64::*;

use super::interleaved::{Decode, Maddubs, Plane, load};
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::i2s;
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type I2sMaddubs = Maddubs<I2s>;

/// The decoder.
pub struct I2s;

impl Decode for I2s {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-i2s-maddubs",
        summary: "2-bit codes, vpmaddubsw, a lane pair per row",
        features: Avx2::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };
    const SHAPE: Shape = i2s::SHAPE;
    type Tile = [Plane; i2s::SHAPE.planes];
    // Bit pairs 1 and 3 stay where they are: an AND gives four times the code.
    const LIFT: i32 = 2;
    type Codes = [__m256i; 4];
    // Unpacked, 4 tokens take 0.95 to 1.14 of the time, from one run to the next, and 8 take 0.92 to 1.03; larger batches gain.
    const UNPACK_FROM: usize = 8;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn decode([plane]: &Self::Tile, v: usize, _: usize) -> Self::Codes {
        let (mask, mask4) = (_mm256_set1_epi8(0b0011), _mm256_set1_epi8(0b1100));
        let low = load(&plane[v]);
        let high = _mm256_srli_epi16::<4>(low);
        [
            _mm256_and_si256(low, mask),
            _mm256_and_si256(low, mask4),
            _mm256_and_si256(high, mask),
            _mm256_and_si256(high, mask4),
        ]
    }
}
