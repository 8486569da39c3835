//! `neon-tl1-tbl`, and `-lossy`: a nibble per two weights, looked up for 16 rows at once by `tbl`.
//!
//! An entry is at most 2·127 = 254, so an int16 holds the sum of 128 of them (32,512 of 32,767); a lossy one is at most 127.
//! [`super::lookup`] says how they are added up.

use std::ops::Range;

use crate::arch::lookup::{Lookup, Method, Tl1};
use crate::isa::Neon;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl1::{self, Step, TILE_ROWS};
use crate::tables::{self, Table};

use super::lookup::{ROWS, Sums, load, look, nibbles};

/// Exact.
pub type Tl1Tbl = Lookup<Tbl, 2>;
/// With tables requantised to int8.
pub type Tl1TblLossy = Lookup<Tbl, 1>;

/// The loops.
pub struct Tbl;

/// Steps between two widenings: 128 groups.
const BLOCK: usize = 64;

impl Method for Tbl {
    type Proof = Neon;
    type Layout = Tl1;
    const NAMES: [&'static str; 2] = ["neon-tl1-tbl", "neon-tl1-tbl-lossy"];
    const SUMMARY: &'static str = "tbl, a lookup per 2 weights";

    #[target_feature(enable = "neon")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        acc.fill(0);
        for row in rows.clone().step_by(TILE_ROWS) {
            for (block, steps) in tl1::tile(w, row / TILE_ROWS).chunks(BLOCK).enumerate() {
                for token in 0..x.m {
                    let tables = &tables::of::<H>(x, token).as_chunks().0[block * BLOCK..][..steps.len()];
                    if let Some(acc) = acc[token * n_rows + row - rows.start..].first_chunk_mut() {
                        add_block::<H>(steps, tables, acc);
                    }
                }
            }
        }
    }
}

/// 32 rows over at most [`BLOCK`] steps.
#[target_feature(enable = "neon")]
fn add_block<const H: usize>(steps: &[Step], tables: &[[Table<H>; 2]], acc: &mut [i32; TILE_ROWS]) {
    let mut sums = [Sums::new(); TILE_ROWS / ROWS];
    for (step, [first, second]) in steps.iter().zip(tables) {
        for (bytes, sums) in step.as_chunks().0.iter().zip(&mut sums) {
            let [low, high] = nibbles(load(bytes));
            sums.add(look(first, low));
            sums.add(look(second, high));
        }
    }
    for (sums, acc) in sums.iter().zip(acc.as_chunks_mut().0) {
        sums.widen::<H>(2 * steps.len(), acc);
    }
}
