//! What a few queries do with AVX2, whose registers hold the sums of four.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::offset_of;

use super::{IntWeights, PER_LINE, RowPair};
use crate::ops::LANES;
use crate::ops::blocks::Ahead;

/// `vpmaddwd` and the addition. LLVM would add rows to each other before they are added to the sums, and has not the registers for that.
#[inline]
#[target_feature(enable = "avx2")]
pub fn maddwd(sums: __m256i, row: __m256i, weights: __m256i) -> __m256i {
    let mut sums = _mm256_add_epi32(sums, _mm256_madd_epi16(row, weights));
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {} */", inout(ymm_reg) sums, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// One pair of rows, at `$at` in a line, of [`add_lines`]; the queries' weights are `$from` behind each one's first.
#[rustfmt::skip]
macro_rules! rows_of_four {
    ($at:literal, $from:literal) => {
        concat!(
            "vpmovsxbw {low}, [{line} + ", $at, "]\n",
            "vpmovsxbw {high}, [{line} + ", $at, " + 16]\n",
            rows_of_four!($from, "0", "{a}", "{b}"),
            rows_of_four!($from, "{query}", "{c}", "{d}"),
            rows_of_four!($from, "2 * {query}", "{e}", "{f}"),
            rows_of_four!($from, "3 * {query}", "{g}", "{h}"),
        )
    };
    ($from:literal, $query:literal, $low:literal, $high:literal) => {
        concat!(
            "vpbroadcastd {weights}, [{pairs} + ", $from, " + ", $query, "]\n",
            "vpmaddwd {product}, {low}, {weights}\n",
            "vpaddd ", $low, ", ", $low, ", {product}\n",
            "vpmaddwd {product}, {high}, {weights}\n",
            "vpaddd ", $high, ", ", $high, ", {product}\n",
        )
    };
}

/// Adds the products of four queries' weights, from pair `from` on, with lines of pairs of rows. In asm, as LLVM takes rows of one query before
/// those of another, for which there are not the registers.
#[inline]
#[target_feature(enable = "avx2")]
pub fn add_lines(
    weights: &[IntWeights; 4],
    from: usize,
    lines: &[[RowPair; PER_LINE]],
    ahead: Ahead,
    sums: &mut [[i32; LANES]; 4],
) {
    let n_pairs = lines.len() * PER_LINE;
    assert!(n_pairs <= IntWeights::PAIRS && from <= IntWeights::PAIRS - n_pairs, "a weight for each number");
    if lines.is_empty() {
        return;
    }
    // SAFETY: reads the lines, of which there is one at least, and as many weights of each query, which have them from `from` on, just asserted;
    // arrays are as long as registers; the CPU has AVX2, as this function says.
    unsafe {
        let [[mut a, mut b], [mut c, mut d], [mut e, mut f], [mut g, mut h]] =
            std::mem::transmute::<[[i32; LANES]; 4], [[__m256i; 2]; 4]>(*sums);
        asm!(
            "2:",
            "prefetcht1 [{line} + {next}]",
            rows_of_four!("0", "0"),
            rows_of_four!("32", "4"),
            "add {line}, 64",
            "add {pairs}, 8",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) lines.len() => _,
            line = inout(reg) lines.as_ptr() => _,
            pairs = inout(reg) weights.as_ptr().byte_add(offset_of!(IntWeights, pairs)).cast::<[i16; 2]>().add(from) => _,
            next = in(reg) ahead.next,
            query = const size_of::<IntWeights>(),
            a = inout(ymm_reg) a, b = inout(ymm_reg) b, c = inout(ymm_reg) c, d = inout(ymm_reg) d,
            e = inout(ymm_reg) e, f = inout(ymm_reg) f, g = inout(ymm_reg) g, h = inout(ymm_reg) h,
            low = out(ymm_reg) _, high = out(ymm_reg) _, weights = out(ymm_reg) _, product = out(ymm_reg) _,
            options(readonly, nostack),
        );
        *sums = std::mem::transmute::<[[__m256i; 2]; 4], [[i32; LANES]; 4]>([[a, b], [c, d], [e, f], [g, h]]);
    }
}
