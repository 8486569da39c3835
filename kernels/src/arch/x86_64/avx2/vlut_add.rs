//! `avx2-vlut-add`: tokens as lanes, see `arch/vlut.rs`. One `vpaddw` from memory is 64 multiply-adds.
//!
//! The limit is the two 32-byte loads that a core does per cycle: 128 multiply-adds, where `vpmaddubsw` and `vpaddw` do
//! 64 at best. For 32 tokens, a row's 10 vector loads, 4 of indices and 2 stores do the work of 8 additions.

use std::arch::x86_64::*;

use crate::arch::vlut::{ENTRIES, GROUP, GROUPS, Vectors, entry_index, kernel};
use crate::isa::Avx2;
use crate::lanes::Column;
use crate::layout::vlut::{N_CODES, Quad, TILE_K, TILE_ROWS};

use super::interleaved::{load, store_bytes};
use super::lookup::add_to;

kernel!(Lanes<1>, Lanes<2>, "avx2-vlut-add", "tokens as lanes, a vpaddw from a table per 4 weights and 16 tokens");

/// `V` vectors of 16 tokens.
pub struct Lanes<const V: usize>;

/// A value for each of 16 tokens, int16.
pub type Vector = [u8; 32];

impl<const V: usize> Vectors for Lanes<V> {
    type Proof = Avx2;
    type Entry = [Vector; V];
    const ZERO: Self::Entry = [[0; 32]; V];

    #[target_feature(enable = "avx2")]
    unsafe fn build(columns: &[Column; TILE_K], tables: &mut [Self::Entry; ENTRIES]) {
        for (columns, table) in columns.as_chunks::<GROUP>().0.iter().zip(tables.as_chunks_mut().0) {
            for v in 0..V {
                self::table(columns, v, table, v);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn add<const FIRST: bool>(quads: &[Quad], tables: &[Self::Entry; ENTRIES], sums: &mut [Self::Entry]) {
        for (quad, sums) in quads.iter().zip(sums) {
            let mut sum = [_mm256_setzero_si256(); V];
            if !FIRST {
                for v in 0..V {
                    sum[v] = load(&sums[v]);
                }
            }
            for g in 0..GROUPS {
                let entry = &tables[entry_index(g, quad[g])];
                for v in 0..V {
                    sum[v] = _mm256_add_epi16(sum[v], load(&entry[v]));
                }
            }
            for v in 0..V {
                store_bytes(&mut sums[v], sum[v]);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn widen(sums: &[Self::Entry], acc: &mut [i32], stride: usize) {
        widen(sums, acc, stride);
    }
}

/// Fills vector `at` of a table's entries for tokens `16 v .. 16 v + 16`.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn table<const V: usize>(
    columns: &[Column; GROUP],
    v: usize,
    table: &mut [[Vector; V]; N_CODES],
    at: usize,
) {
    let low = pair(&columns[0], &columns[1], v);
    let high = pair(&columns[2], &columns[3], v);
    for (entries, high) in table.as_chunks_mut::<9>().0.iter_mut().zip(high) {
        for i in 0..9 {
            store_bytes(&mut entries[i][at], _mm256_add_epi16(low[i], high));
        }
    }
}

/// The 9 sums of two columns, 16 tokens of each.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(first: &Column, second: &Column, v: usize) -> [__m256i; 9] {
    let zero = _mm256_setzero_si256();
    let (a, b) = (widened(first, v), widened(second, v));
    let (minus_a, minus_b) = (_mm256_sub_epi16(zero, a), _mm256_sub_epi16(zero, b));
    let (sum, difference) = (_mm256_add_epi16(a, b), _mm256_sub_epi16(a, b));
    let (minus_sum, minus_difference) = (_mm256_sub_epi16(zero, sum), _mm256_sub_epi16(zero, difference));
    [minus_sum, minus_b, difference, minus_a, zero, a, minus_difference, b, sum]
}

/// As [`Vectors::widen`].
#[target_feature(enable = "avx2")]
pub(crate) fn widen<const V: usize>(sums: &[[Vector; V]], acc: &mut [i32], stride: usize) {
    for (tile, rows) in sums.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
        for v in 0..V {
            let mut a = [_mm256_setzero_si256(); TILE_ROWS];
            for r in 0..TILE_ROWS {
                a[r] = load(&rows[r][v]);
            }
            // Three perfect shuffles of 8 rows transpose both halves: vector `t` has tokens `t` and `t + 8`.
            for _ in 0..3 {
                let mut next = a;
                for i in 0..TILE_ROWS / 2 {
                    next[2 * i] = _mm256_unpacklo_epi16(a[i], a[i + 4]);
                    next[2 * i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 4]);
                }
                a = next;
            }
            for t in 0..TILE_ROWS {
                for (token, values) in [(t, _mm256_castsi256_si128(a[t])), (t + 8, _mm256_extracti128_si256::<1>(a[t]))]
                {
                    let at = (16 * v + token) * stride + tile * TILE_ROWS;
                    if let Some(acc) = acc.get_mut(at..).and_then(|acc| acc.first_chunk_mut()) {
                        add_to(acc, values);
                    }
                }
            }
        }
    }
}

/// Tokens `16 v .. 16 v + 16` of a column, as int16.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(column: &Column, v: usize) -> __m256i {
    // SAFETY: the array holds the 16 bytes that are read; the load needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(column.as_chunks::<16>().0[v].as_ptr().cast()) })
}
