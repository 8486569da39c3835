//! Q8_0 and Q4_0 times int8 blocks on AVX-512 VNNI: the loops of [`avx2_int8`](super::avx2_int8) with `vpdpbusd`, which multiplies
//! and adds four columns of eight rows in one instruction, and with 32 registers.
//!
//! Codes of Q8_0 are signed, which the instruction does not take: they become `code + 128`, as those of Q4_0 are `code + 8`. The
//! integers and the order of the float sums are those of AVX2, so results have its bits. Registers of 32 bytes, as groups have
//! eight rows.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2_int8::{
    EMPTY, GROUPS, Group, Place, ROWS, STEPS, broadcast, int8_loops, load, put, read_group, store_group,
};
use super::int8::{BLOCK, Blocks, INPUT};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType};
use crate::isa::Avx512Vnni;

// Eight integer and eight float sums, the codes and three more.
int8_loops! {
    features: "avx512f,avx512bw,avx512vl,avx512vnni", proof: Avx512Vnni,
    q8_0: "avx512vnni-q8_0-int8", q4_0: "avx512vnni-q4_0-int8", tokens: 8
}

/// Codes from 0 on.
#[inline]
#[target_feature(enable = "avx2")]
fn prepare<const FOUR_BITS: bool>(mut codes: [__m256i; STEPS]) -> [__m256i; STEPS] {
    if !FOUR_BITS {
        for i in 0..STEPS {
            codes[i] = _mm256_xor_si256(codes[i], _mm256_set1_epi8(-128));
        }
    }
    codes
}

/// Adds four columns of eight rows times those of a token: in all at most 32 · 255 · 127.
#[inline]
#[target_feature(enable = "avx512vl,avx512vnni")]
fn add_step<const FOUR_BITS: bool>(total: __m256i, w: __m256i, x: __m256i) -> __m256i {
    _mm256_dpbusd_epi32(total, w, x)
}

/// Adds the total of a block, times the scales of eight rows and of the token, whose values there add up to `x_sum`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block<const FOUR_BITS: bool>(sums: __m256, total: __m256i, d: __m256, x_scale: f32, x_sum: i32) -> __m256 {
    let zero = if FOUR_BITS { 8 } else { 128 };
    let total = _mm256_sub_epi32(total, _mm256_set1_epi32(zero * x_sum));
    let scale = _mm256_mul_ps(d, _mm256_set1_ps(x_scale));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), scale, sums)
}
