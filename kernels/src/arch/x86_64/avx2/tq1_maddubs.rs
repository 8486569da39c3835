//! `avx2-tq1-maddubs`: llama.cpp's TQ1_0 blocks: base-3 fractions as in [`super::b3_maddubs`]. The loops are in
//! [`super::blocks`].

use std::arch::x86_64::*;

use super::b3_maddubs::first_digit;
use super::blocks::{Decode, Maddubs, VECTORS};
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::blocks;
use crate::layout::tq1::{self, BYTES};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type Tq1Maddubs = Maddubs<Tq1>;

/// The decoder.
pub struct Tq1;

impl Decode for Tq1 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-tq1-maddubs",
        summary: "base-3 digits in blocks of 256, vpmaddubsw, one row at a time",
        features: Avx2::FEATURES,
        layout: "tq1",
        bits_per_weight: 1.6875,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "llama.cpp TQ1_0 (PR 8151)",
    };
    type Block = [u8; BYTES];
    // Unpacked, 2 tokens take 0.70 to 1.01 of the time, 4 at most 0.63.
    const UNPACK_FROM: usize = 2;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        tq1::pack(w)
    }

    fn row(w: &PackedMatrix, index: usize) -> &[Self::Block] {
        blocks::row(w, index)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn decode(block: &Self::Block) -> [__m256i; VECTORS] {
        let mut codes = [_mm256_setzero_si256(); VECTORS];
        let offset = _mm256_set1_epi8(-128);
        let (halves, last) = block.as_chunks::<16>();
        // The first 32 bytes: five digits of 32 columns.
        let mut q = _mm256_xor_si256(_mm256_set_m128i(load_16(&halves[1]), load_16(&halves[0])), offset);
        for code in &mut codes[..5] {
            *code = first_digit(q);
            q = times_3(q);
        }
        // The next 16: two digits of 16 columns fill a vector, the later one in its high half.
        let q = _mm256_xor_si256(_mm256_broadcastsi128_si256(load_16(&halves[2])), offset);
        let q0 = _mm256_blend_epi32::<0b1111_0000>(q, times_3(q));
        let q2 = times_3(times_3(q0));
        let q4 = times_3(times_3(q2));
        codes[5] = first_digit(q0);
        codes[6] = first_digit(q2);
        // The last 4, beside the fifth digit of those 16: four digits of 4 columns.
        let q = _mm256_xor_si256(_mm256_set1_epi32(i32::from_le_bytes([last[0], last[1], last[2], last[3]])), offset);
        let q = _mm256_blend_epi32::<0b1110_0000>(q, times_3(q));
        let q = _mm256_blend_epi32::<0b1100_0000>(q, times_3(q));
        let q = _mm256_blend_epi32::<0b1000_0000>(q, times_3(q));
        codes[7] = first_digit(_mm256_blend_epi32::<0b1111_0000>(q4, q));
        codes
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn times_3(q: __m256i) -> __m256i {
    _mm256_add_epi8(q, _mm256_add_epi8(q, q))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the array holds the 16 bytes that are read; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
