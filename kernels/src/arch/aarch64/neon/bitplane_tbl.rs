//! `neon-bitplane-tbl`: a nibble per four bits of a plane, looked up for both planes of 8 rows at once by `tbl`; what the plane of
//! -1 gave is subtracted at the end.
//!
//! A column counts in one plane at most, so the two entries of a group differ by at most 4·127 = 508, and an int16 holds the sum of
//! 64 such differences (32,512 of 32,767), whatever the two sums do modulo 2^16. [`super::lookup`] says how they are added up.

use std::ops::Range;

use crate::arch::lookup::{Bitplane, Lookup, Method};
use crate::isa::Neon;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::bitplane::{self, GROUPS, Step, TILE_ROWS};
use crate::tables::{self, Table};

use super::lookup::{Sums, load, look, nibbles};

/// The kernel.
pub type BitplaneTbl = Lookup<Tbl, 2>;

/// The loops.
pub struct Tbl;

/// Steps between two widenings.
const BLOCK: usize = 64 / GROUPS;

impl Method for Tbl {
    type Proof = Neon;
    type Layout = Bitplane;
    const NAMES: [&'static str; 2] = ["neon-bitplane-tbl", ""];
    const SUMMARY: &'static str = "tbl, a lookup per 4 weights of a bit plane";

    #[target_feature(enable = "neon")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        const { assert!(H == 2, "the bias of lossy tables is not that of a difference") };
        let n_rows = rows.len();
        acc.fill(0);
        for row in rows.clone().step_by(TILE_ROWS) {
            for (block, steps) in bitplane::tile(w, row / TILE_ROWS).chunks(BLOCK).enumerate() {
                for token in 0..x.m {
                    let tables = &tables::of::<2>(x, token).as_chunks().0[block * BLOCK..][..steps.len()];
                    if let Some(acc) = acc[token * n_rows + row - rows.start..].first_chunk_mut() {
                        add_block(steps, tables, acc);
                    }
                }
            }
        }
    }
}

/// 16 rows over at most [`BLOCK`] steps.
#[target_feature(enable = "neon")]
fn add_block(steps: &[Step], tables: &[[Table<2>; GROUPS]], acc: &mut [i32; TILE_ROWS]) {
    let mut sums = [Sums::new(); 2];
    for (step, tables) in steps.iter().zip(tables) {
        for (half, sums) in step.as_chunks().0.iter().zip(&mut sums) {
            for (table, codes) in tables.iter().zip(nibbles(load(half))) {
                sums.add(look(table, codes));
            }
        }
    }
    for (sums, acc) in sums.iter().zip(acc.as_chunks_mut().0) {
        sums.widen_differences(acc);
    }
}
