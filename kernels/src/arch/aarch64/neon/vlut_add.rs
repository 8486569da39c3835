//! `neon-vlut-add`: tokens as lanes, see `arch/vlut.rs`. One `add` of a vector from a table is 32 multiply-adds, where
//! `smlal` does 8.

use std::arch::aarch64::*;

use crate::arch::vlut::{ENTRIES, GROUP, GROUPS, Vectors, entry_index, kernel};
use crate::isa::Neon;
use crate::lanes::Column;
use crate::layout::vlut::{N_CODES, Quad, TILE_K, TILE_ROWS};

use super::lookup::add_to;

kernel!(Lanes<2>, Lanes<4>, "neon-vlut-add", "tokens as lanes, a vector add from a table per 4 weights and 8 tokens");

/// `V` vectors of 8 tokens.
pub struct Lanes<const V: usize>;

/// A value for each of 8 tokens.
pub type Vector = [i16; 8];

impl<const V: usize> Vectors for Lanes<V> {
    type Proof = Neon;
    type Entry = [Vector; V];
    const ZERO: Self::Entry = [[0; 8]; V];

    #[target_feature(enable = "neon")]
    unsafe fn build(columns: &[Column; TILE_K], tables: &mut [Self::Entry; ENTRIES]) {
        for (columns, table) in columns.as_chunks::<GROUP>().0.iter().zip(tables.chunks_exact_mut(N_CODES)) {
            for v in 0..V {
                let low = pair(&columns[0], &columns[1], v);
                let high = pair(&columns[2], &columns[3], v);
                for (entries, high) in table.as_chunks_mut::<9>().0.iter_mut().zip(high) {
                    for i in 0..9 {
                        store(&mut entries[i][v], vaddq_s16(low[i], high));
                    }
                }
            }
        }
    }

    #[target_feature(enable = "neon")]
    unsafe fn add<const FIRST: bool>(quads: &[Quad], tables: &[Self::Entry; ENTRIES], sums: &mut [Self::Entry]) {
        for (quad, sums) in quads.iter().zip(sums) {
            let mut sum = [vdupq_n_s16(0); V];
            if !FIRST {
                for v in 0..V {
                    sum[v] = load(&sums[v]);
                }
            }
            for g in 0..GROUPS {
                let entry = &tables[entry_index(g, quad[g])];
                for v in 0..V {
                    sum[v] = vaddq_s16(sum[v], load(&entry[v]));
                }
            }
            for v in 0..V {
                store(&mut sums[v], sum[v]);
            }
        }
    }

    #[target_feature(enable = "neon")]
    unsafe fn widen(sums: &[Self::Entry], acc: &mut [i32], stride: usize) {
        for (tile, rows) in sums.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
            for v in 0..V {
                let mut a = [vdupq_n_s16(0); TILE_ROWS];
                for r in 0..TILE_ROWS {
                    a[r] = load(&rows[r][v]);
                }
                // Three perfect shuffles of 8 rows transpose them.
                for _ in 0..3 {
                    let mut next = a;
                    for i in 0..TILE_ROWS / 2 {
                        next[2 * i] = vzip1q_s16(a[i], a[i + 4]);
                        next[2 * i + 1] = vzip2q_s16(a[i], a[i + 4]);
                    }
                    a = next;
                }
                for t in 0..TILE_ROWS {
                    let at = (8 * v + t) * stride + tile * TILE_ROWS;
                    if let Some(acc) = acc.get_mut(at..).and_then(|acc| acc.first_chunk_mut()) {
                        add_to(acc, a[t]);
                    }
                }
            }
        }
    }
}

/// The 9 sums of two columns, 8 tokens of each.
#[inline]
#[target_feature(enable = "neon")]
fn pair(first: &Column, second: &Column, v: usize) -> [int16x8_t; 9] {
    let (a, b) = (widened(first, v), widened(second, v));
    let (sum, difference) = (vaddq_s16(a, b), vsubq_s16(a, b));
    [vnegq_s16(sum), vnegq_s16(b), difference, vnegq_s16(a), vdupq_n_s16(0), a, vnegq_s16(difference), b, sum]
}

/// Tokens `8 v .. 8 v + 8` of a column, as int16.
#[inline]
#[target_feature(enable = "neon")]
fn widened(column: &Column, v: usize) -> int16x8_t {
    // SAFETY: the array holds the 8 bytes that are read.
    vmovl_s8(unsafe { vld1_s8(column.as_chunks::<8>().0[v].as_ptr()) })
}

#[inline]
#[target_feature(enable = "neon")]
fn load(vector: &Vector) -> int16x8_t {
    // SAFETY: the array holds the 16 bytes that are read.
    unsafe { vld1q_s16(vector.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(vector: &mut Vector, value: int16x8_t) {
    // SAFETY: the array holds the 16 bytes that are written.
    unsafe { vst1q_s16(vector.as_mut_ptr(), value) };
}
