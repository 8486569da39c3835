//! `avx512bw-vlut-add`: tokens as lanes, see `arch/vlut.rs`. One `vpaddw` from memory is 128 multiply-adds.

use std::arch::x86_64::*;

use crate::arch::vlut::{ENTRIES, GROUP, GROUPS, Vectors, entry_index, kernel};
use crate::arch::x86_64::avx2::vlut_add::{Vector, widen};
use crate::isa::Avx512Bw;
use crate::lanes::Column;
use crate::layout::vlut::{N_CODES, Quad, TILE_K};

kernel!(Lanes, Lanes, "avx512bw-vlut-add", "tokens as lanes, a vpaddw from a table per 4 weights and 32 tokens");

/// 32 tokens in a register.
pub struct Lanes;

impl Vectors for Lanes {
    type Proof = Avx512Bw;
    type Entry = [Vector; 2];
    const ZERO: Self::Entry = [[0; 32]; 2];

    #[target_feature(enable = "avx2,avx512f,avx512bw")]
    unsafe fn build(columns: &[Column; TILE_K], tables: &mut [Self::Entry; ENTRIES]) {
        for (columns, table) in columns.as_chunks::<GROUP>().0.iter().zip(tables.chunks_exact_mut(N_CODES)) {
            let (low, high) = (pair(&columns[0], &columns[1]), pair(&columns[2], &columns[3]));
            for (entries, high) in table.as_chunks_mut::<9>().0.iter_mut().zip(high) {
                for i in 0..9 {
                    store(&mut entries[i], _mm512_add_epi16(low[i], high));
                }
            }
        }
    }

    #[target_feature(enable = "avx2,avx512f,avx512bw")]
    unsafe fn add<const FIRST: bool>(quads: &[Quad], tables: &[Self::Entry; ENTRIES], sums: &mut [Self::Entry]) {
        for (quad, sums) in quads.iter().zip(sums) {
            let mut sum = if FIRST { _mm512_setzero_si512() } else { load(sums) };
            for g in 0..GROUPS {
                sum = _mm512_add_epi16(sum, load(&tables[entry_index(g, quad[g])]));
            }
            store(sums, sum);
        }
    }

    #[target_feature(enable = "avx2,avx512f,avx512bw")]
    unsafe fn widen(sums: &[Self::Entry], acc: &mut [i32], stride: usize) {
        widen(sums, acc, stride);
    }
}

/// The 9 sums of two columns.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn pair(first: &Column, second: &Column) -> [__m512i; 9] {
    let zero = _mm512_setzero_si512();
    let (a, b) = (widened(first), widened(second));
    let (minus_a, minus_b) = (_mm512_sub_epi16(zero, a), _mm512_sub_epi16(zero, b));
    let (sum, difference) = (_mm512_add_epi16(a, b), _mm512_sub_epi16(a, b));
    let (minus_sum, minus_difference) = (_mm512_sub_epi16(zero, sum), _mm512_sub_epi16(zero, difference));
    [minus_sum, minus_b, difference, minus_a, zero, a, minus_difference, b, sum]
}

/// A column as int16.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn widened(column: &Column) -> __m512i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(column.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(vectors: &[Vector; 2]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(vectors.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vectors: &mut [Vector; 2], value: __m512i) {
    // SAFETY: the array holds the 64 bytes that are written; the store needs no alignment.
    unsafe { _mm512_storeu_si512(vectors.as_mut_ptr().cast(), value) };
}
