//! `scalar-vlut-add`: plain loops over the lanes of `arch/vlut.rs`, which says how the kernel works.

use crate::arch::vlut::{ENTRIES, GROUP, Vectors, entry_index, kernel};
use crate::isa::Scalar;
use crate::lanes::{Column, LANES};
use crate::layout::balanced;
use crate::layout::vlut::{N_CODES, Quad, TILE_K, TILE_ROWS};

kernel!(Lanes, Lanes, "scalar-vlut-add", "tokens as lanes, a table vector per 4 weights");

/// 32 tokens.
pub struct Lanes;

impl Vectors for Lanes {
    type Proof = Scalar;
    type Entry = [i16; LANES];
    const ZERO: Self::Entry = [0; LANES];

    unsafe fn build(columns: &[Column; TILE_K], tables: &mut [Self::Entry; ENTRIES]) {
        for (columns, table) in columns.as_chunks::<GROUP>().0.iter().zip(tables.chunks_exact_mut(N_CODES)) {
            for (code, entry) in table.iter_mut().enumerate() {
                let trits = balanced::trits::<GROUP>(code as i32 - (N_CODES / 2) as i32);
                *entry = Self::ZERO;
                for (trit, column) in trits.into_iter().zip(columns) {
                    entry.iter_mut().zip(column).for_each(|(entry, &x)| *entry += i16::from(trit) * i16::from(x));
                }
            }
        }
    }

    unsafe fn add<const FIRST: bool>(quads: &[Quad], tables: &[Self::Entry; ENTRIES], sums: &mut [Self::Entry]) {
        for (quad, sums) in quads.iter().zip(sums) {
            if FIRST {
                *sums = Self::ZERO;
            }
            for (group, &code) in quad.iter().enumerate() {
                sums.iter_mut().zip(&tables[entry_index(group, code)]).for_each(|(sum, entry)| *sum += entry);
            }
        }
    }

    unsafe fn widen(sums: &[Self::Entry], acc: &mut [i32], stride: usize) {
        for (tile, rows) in sums.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
            for token in 0..LANES {
                let Some(acc) = acc.get_mut(token * stride + tile * TILE_ROWS..) else { break };
                acc.iter_mut().zip(rows).for_each(|(acc, sums)| *acc += i32::from(sums[token]));
            }
        }
    }
}
