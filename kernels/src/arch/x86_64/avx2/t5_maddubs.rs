//! `avx2-t5-maddubs`: three trits in five bits, looked up. The loops are in [`super::interleaved`].
//!
//! The low four bits of a code index two tables of 16, its fifth bit chooses between them. A table entry holds the three codes
//! `w + 1` in bit pairs, placed so that an AND (and one shift) puts every other step two bits up, as the loops allow.

use std::arch::x86_64::*;

use super::interleaved::{Decode, Maddubs, Plane, load};
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::layout::t5::{self, trits_of};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type T5Maddubs = Maddubs<T5>;

/// The decoder.
pub struct T5;

impl Decode for T5 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-t5-maddubs",
        summary: "3 trits in 5 bits, vpshufb look-up, vpmaddubsw, a lane pair per row",
        features: Avx2::FEATURES,
        layout: "t5",
        bits_per_weight: 5.0 / 3.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "own",
    };
    const SHAPE: Shape = t5::SHAPE;
    type Tile = [Plane; t5::SHAPE.planes];
    const LIFT: i32 = 2;
    // Two codes of three steps: a plane of low bits.
    type Codes = [__m256i; 6];
    // Unpacked, 2 tokens take 0.81 to 0.86 of the time.
    const UNPACK_FROM: usize = 2;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        t5::pack(w)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn decode(tile: &Self::Tile, v: usize, part: usize) -> Self::Codes {
        let nibble = _mm256_set1_epi8(15);
        let (mask, mask4) = (_mm256_set1_epi8(0b0011), _mm256_set1_epi8(0b1100));
        let (low, fifth) = (load(&tile[part][v]), load(&tile[4][v]));
        // The fifth bit of the wanted code goes to the top of every byte, where `vpblendvb` looks.
        let top = |c: usize| _mm_cvtsi32_si128(7 - c as i32);
        let (even_top, odd_top) = (top(2 * part), top(2 * part + 1));
        let even = look_up(&EVEN, _mm256_and_si256(low, nibble), _mm256_sll_epi16(fifth, even_top));
        let odd =
            look_up(&ODD, _mm256_and_si256(_mm256_srli_epi16::<4>(low), nibble), _mm256_sll_epi16(fifth, odd_top));
        [
            _mm256_and_si256(even, mask),
            _mm256_and_si256(even, mask4),
            _mm256_and_si256(_mm256_srli_epi16::<4>(even), mask),
            _mm256_and_si256(odd, mask4),
            _mm256_and_si256(odd, mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(odd), mask4),
        ]
    }
}

/// The entries of codes 0..16 and 16..32.
type Tables = [[u8; 16]; 2];

/// Where an even code's three columns lie in an entry: steps 0 and 2 come out unshifted, step 1 two bits up.
static EVEN: Tables = tables([0, 2, 4]);
/// Where an odd code's lie: steps 3 and 5 two bits up, step 4 unshifted.
static ODD: Tables = tables([2, 0, 6]);

const fn tables(shifts: [u32; 3]) -> Tables {
    let mut tables = [[0; 16]; 2];
    let mut code = 0;
    while code < 27 {
        let trits = trits_of(code as u8);
        let mut i = 0;
        while i < 3 {
            tables[code / 16][code % 16] |= ((trits[i] + 1) as u8) << shifts[i];
            i += 1;
        }
        code += 1;
    }
    tables
}

/// The entries of codes whose low bits are `low` (below 16) and whose fifth bits are at the top of `fifth`'s bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(tables: &Tables, low: __m256i, fifth: __m256i) -> __m256i {
    let (first, second) = (entries(&tables[0]), entries(&tables[1]));
    _mm256_blendv_epi8(_mm256_shuffle_epi8(first, low), _mm256_shuffle_epi8(second, low), fifth)
}

#[inline]
#[target_feature(enable = "avx2")]
fn entries(table: &[u8; 16]) -> __m256i {
    // SAFETY: the array holds the 16 bytes that are read; the load needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}
