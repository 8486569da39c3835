//! `avx512vbmi-t5-dpbusd`: three trits in five bits, looked up. The loops are in [`super::interleaved`].
//!
//! `vpermb` takes a table of 64 and ignores the top two bits of an index, so a code needs no masking: its low four bits and its
//! fifth are joined by one ternary-logic instruction, bit 5 is whatever lies there (the tables repeat after 32), and three
//! look-ups give its three columns. One look-up and three shifts and ANDs would take twice the instructions.
use std::arch::x86_64::*;

use super::interleaved::{Decode, Dpbusd, Plane, load};
use crate::isa::{Avx512Vbmi, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::layout::t5;
use crate::trit::TernaryMatrix;

/// The kernel.
pub type T5Dpbusd = Dpbusd<T5>;

/// The decoder.
pub struct T5;

impl Decode for T5 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx512vbmi-t5-dpbusd",
        summary: "3 trits in 5 bits, vpermb look-up, vpdpbusd, a lane per row",
        features: Avx512Vbmi::FEATURES,
        layout: "t5",
        bits_per_weight: 5.0 / 3.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "own",
    };
    const SHAPE: Shape = t5::SHAPE;
    type Tile = [Plane; t5::SHAPE.planes];
    // Two codes of three steps: a plane of low bits.
    type Codes = [__m512i; 6];

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        t5::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
    unsafe fn decode(tile: &Self::Tile, v: usize, part: usize) -> Self::Codes {
        let (low, fifth) = (load(&tile[part][v]), load(&tile[4][v]));
        // The fifth bit of code `c` goes from bit `c` to bit 4.
        let (even, odd) = match part {
            0 => (_mm512_slli_epi16::<4>(fifth), _mm512_slli_epi16::<3>(fifth)),
            1 => (_mm512_slli_epi16::<2>(fifth), _mm512_slli_epi16::<1>(fifth)),
            2 => (fifth, _mm512_srli_epi16::<1>(fifth)),
            _ => (_mm512_srli_epi16::<2>(fifth), _mm512_srli_epi16::<3>(fifth)),
        };
        let nibble = _mm512_set1_epi8(15);
        // Bits of the first where the third is set, of the second elsewhere.
        let even = _mm512_ternarylogic_epi32::<0b1110_0100>(low, even, nibble);
        let odd = _mm512_ternarylogic_epi32::<0b1110_0100>(_mm512_srli_epi16::<4>(low), odd, nibble);
        let digits = [load(&DIGITS[0]), load(&DIGITS[1]), load(&DIGITS[2])];
        [
            _mm512_permutexvar_epi8(even, digits[0]),
            _mm512_permutexvar_epi8(even, digits[1]),
            _mm512_permutexvar_epi8(even, digits[2]),
            _mm512_permutexvar_epi8(odd, digits[0]),
            _mm512_permutexvar_epi8(odd, digits[1]),
            _mm512_permutexvar_epi8(odd, digits[2]),
        ]
    }
}

/// The code `w + 1` of each column of a t5 code, twice.
static DIGITS: [[u8; 64]; 3] = {
    let mut digits = [[0; 64]; 3];
    let mut i = 0;
    while i < 3 * 64 {
        let code = i % 32;
        if code < 27 {
            digits[i / 64][i % 64] = (t5::trits_of(code as u8)[i / 64] + 1) as u8;
        }
        i += 1;
    }
    digits
};
