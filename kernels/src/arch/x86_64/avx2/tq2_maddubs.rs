//! `avx2-tq2-maddubs`: llama.cpp's TQ2_0 blocks. The loops are in [`super::blocks`].

use std::arch::x86_64::*;

use super::blocks::{Decode, Maddubs, VECTORS};
use super::interleaved::load;
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::blocks;
use crate::layout::tq2::{self, BYTES};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type Tq2Maddubs = Maddubs<Tq2>;

/// The decoder.
pub struct Tq2;

impl Decode for Tq2 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-tq2-maddubs",
        summary: "2-bit codes in blocks of 256, vpmaddubsw, one row at a time",
        features: Avx2::FEATURES,
        layout: "tq2",
        bits_per_weight: 2.0625,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "llama.cpp TQ2_0 (PR 8151)",
    };
    type Block = [u8; BYTES];
    // Unpacked, 4 tokens take 0.90 to 1.25 of the time, 8 take 0.68 to 0.98.
    const UNPACK_FROM: usize = 8;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        tq2::pack(w)
    }

    fn row(w: &PackedMatrix, index: usize) -> &[Self::Block] {
        blocks::row(w, index)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn decode(block: &Self::Block) -> [__m256i; VECTORS] {
        let mask = _mm256_set1_epi8(3);
        let mut codes = [_mm256_setzero_si256(); VECTORS];
        for (half, codes) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let bits = load(&block.as_chunks().0[half]);
            codes[0] = _mm256_and_si256(bits, mask);
            codes[1] = _mm256_and_si256(_mm256_srli_epi16::<2>(bits), mask);
            codes[2] = _mm256_and_si256(_mm256_srli_epi16::<4>(bits), mask);
            codes[3] = _mm256_and_si256(_mm256_srli_epi16::<6>(bits), mask);
        }
        codes
    }
}
