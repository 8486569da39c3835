//! `avx512vbmi-t5-dpbusd`: three trits in five bits, looked up. The loops are in [`super::interleaved`].
//!
//! `vpermb` takes a table of 64 and ignores the top two bits of an index, so a code needs no masking: its low four bits and its
//! fifth are joined by one ternary-logic instruction, bit 5 is whatever lies there (the tables repeat after 32), and three
//! look-ups give its three columns. One look-up and three shifts and ANDs would take twice the instructions.
//!
//! One token has registers for tables of both bits: fifths of two codes go to bits 4 and 5 together, which saves three of eleven shifts.
use std::arch::asm;
use std::arch::x86_64::*;

use super::interleaved::{Decode, Dpbusd, Plane, SideBySide, VECTORS, load};
use crate::arch::x86_64::AHEAD_IN_STREAMS;
use crate::isa::{Avx512Vbmi, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, STREAMS};
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

    /// For one token asm: what the compiler makes of intrinsics decodes eight vectors at once and keeps them in memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
    unsafe fn multiply_side_by_side<const T: usize>(
        tiles: [&[Self::Tile]; STREAMS],
        steps: &[[[i8; 4]; T]],
    ) -> SideBySide<T> {
        const { assert!(T == 1) };
        let len = tiles[0].len();
        assert!(tiles.iter().all(|tiles| tiles.len() == len), "as many tiles at each place");
        assert!(steps.len() * 4 >= len * Self::SHAPE.columns, "every tile has its steps");
        let mut sums = [[[_mm512_setzero_si512(); VECTORS]; STREAMS]; T];
        let [[s00, s01], [s10, s11], [s20, s21], [s30, s31]] = &mut sums[0];
        // SAFETY: at each place reads `len` tiles, as many as there are, and for each tile along `k` 24 dwords of `steps`, which are there; loads
        // need no alignment. Nothing is written. Prefetches may go anywhere.
        unsafe {
            asm!(
                "jmp 3f",
                "2:",
                ask_for_fifths!("t0"),
                ask_for_fifths!("t1"),
                ask_for_fifths!("t2"),
                ask_for_fifths!("t3"),
                multiply_part!(0, "vpsllw zmm23, zmm23, 4"),
                multiply_part!(1, "vpsllw zmm23, zmm23, 2"),
                multiply_part!(2, ""),
                multiply_part!(3, "vpsrlw zmm23, zmm23, 2"),
                "add {at}, 5*128",
                "add {x}, 24*4",
                "3:",
                "cmp {at}, {end}",
                "jb 2b",
                at = inout(reg) 0usize => _,
                end = in(reg) size_of_val(tiles[0]),
                t0 = in(reg) tiles[0].as_ptr(),
                t1 = in(reg) tiles[1].as_ptr(),
                t2 = in(reg) tiles[2].as_ptr(),
                t3 = in(reg) tiles[3].as_ptr(),
                x = inout(reg) steps.as_ptr() => _,
                inout("zmm0") *s00, inout("zmm1") *s01, inout("zmm2") *s10, inout("zmm3") *s11, inout("zmm4") *s20,
                inout("zmm5") *s21, inout("zmm6") *s30, inout("zmm7") *s31,
                in("zmm8") load(&DIGITS[0]), in("zmm9") load(&DIGITS[1]), in("zmm10") load(&DIGITS[2]),
                in("zmm11") load(&DIGITS_OF_ODD[0]), in("zmm12") load(&DIGITS_OF_ODD[1]), in("zmm13") load(&DIGITS_OF_ODD[2]),
                in("zmm14") _mm512_set1_epi8(15),
                out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _,
                out("zmm22") _, out("zmm23") _, out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _,
                out("zmm29") _,
                AHEAD = const AHEAD_IN_STREAMS,
                options(nostack, readonly),
            );
        }
        sums
    }
}

/// Text that multiplies part `$part` of the tiles at [`STREAMS`] places by six steps of a token. `$shift` brings the
/// fifth bits of both codes, in `zmm23`, to bits 4 and 5: one shift where [`T5::decode`] has two, and tables of their own for the odd codes.
macro_rules! multiply_part {
    ($part:literal, $shift:literal) => {
        concat!(
            "vpbroadcastd zmm15, [{x} + 24*",
            $part,
            "]\n",
            "vpbroadcastd zmm16, [{x} + 24*",
            $part,
            " + 4]\n",
            "vpbroadcastd zmm17, [{x} + 24*",
            $part,
            " + 8]\n",
            "vpbroadcastd zmm18, [{x} + 24*",
            $part,
            " + 12]\n",
            "vpbroadcastd zmm19, [{x} + 24*",
            $part,
            " + 16]\n",
            "vpbroadcastd zmm20, [{x} + 24*",
            $part,
            " + 20]\n",
            multiply_vector!($part, $shift, "t0", 0, "zmm0"),
            multiply_vector!($part, $shift, "t0", 64, "zmm1"),
            multiply_vector!($part, $shift, "t1", 0, "zmm2"),
            multiply_vector!($part, $shift, "t1", 64, "zmm3"),
            multiply_vector!($part, $shift, "t2", 0, "zmm4"),
            multiply_vector!($part, $shift, "t2", 64, "zmm5"),
            multiply_vector!($part, $shift, "t3", 0, "zmm6"),
            multiply_vector!($part, $shift, "t3", 64, "zmm7"),
        )
    };
}
use multiply_part;

/// Text that asks for the plane of fifth bits; for the others [`multiply_vector`] does.
macro_rules! ask_for_fifths {
    ($tile:literal) => {
        concat!(
            "prefetcht0 [{",
            $tile,
            "} + {at} + 4*128 + {AHEAD}]\n",
            "prefetcht0 [{",
            $tile,
            "} + {at} + 4*128 + 64 + {AHEAD}]\n",
        )
    };
}
use ask_for_fifths;

/// Text that adds the products of a vector to `$sums`.
macro_rules! multiply_vector {
    ($part:literal, $shift:literal, $tile:literal, $at:literal, $sums:literal) => {
        concat!(
            "vmovdqu64 zmm23, [{",
            $tile,
            "} + {at} + 4*128 + ",
            $at,
            "]\n",
            "vmovdqu64 zmm21, [{",
            $tile,
            "} + {at} + ",
            $part,
            "*128 + ",
            $at,
            "]\n",
            "prefetcht0 [{",
            $tile,
            "} + {at} + ",
            $part,
            "*128 + ",
            $at,
            " + {AHEAD}]\n",
            $shift,
            "\n",
            "vpsrlw zmm22, zmm21, 4\n",
            // Bits of the first where the third is set, of the second elsewhere.
            "vpternlogd zmm21, zmm23, zmm14, 0xE4\n",
            "vpternlogd zmm22, zmm23, zmm14, 0xE4\n",
            "vpermb zmm24, zmm21, zmm8\n",
            "vpermb zmm25, zmm21, zmm9\n",
            "vpermb zmm26, zmm21, zmm10\n",
            "vpermb zmm27, zmm22, zmm11\n",
            "vpermb zmm28, zmm22, zmm12\n",
            "vpermb zmm29, zmm22, zmm13\n",
            "vpdpbusd ",
            $sums,
            ", zmm24, zmm15\n",
            "vpdpbusd ",
            $sums,
            ", zmm25, zmm16\n",
            "vpdpbusd ",
            $sums,
            ", zmm26, zmm17\n",
            "vpdpbusd ",
            $sums,
            ", zmm27, zmm18\n",
            "vpdpbusd ",
            $sums,
            ", zmm28, zmm19\n",
            "vpdpbusd ",
            $sums,
            ", zmm29, zmm20\n",
        )
    };
}
use multiply_vector;

/// The code `w + 1` of each column of a t5 code, twice.
static DIGITS: [[u8; 64]; 3] = digits(4);
/// The same, where bit 5 of an index is the fifth of the code.
static DIGITS_OF_ODD: [[u8; 64]; 3] = digits(5);

const fn digits(fifth: usize) -> [[u8; 64]; 3] {
    let mut digits = [[0; 64]; 3];
    let mut i = 0;
    while i < 3 * 64 {
        let (column, index) = (i / 64, i % 64);
        let code = index % 16 + 16 * (index >> fifth & 1);
        if code < 27 {
            digits[column][index] = (t5::trits_of(code as u8)[column] + 1) as u8;
        }
        i += 1;
    }
    digits
}
