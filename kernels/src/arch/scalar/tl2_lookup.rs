//! `scalar-tl2-lookup`, and `-lossy`: one table lookup per three weights, negated where the sign bit says so, plain loops.

use std::ops::Range;

use crate::arch::lookup::{Lookup, Method, Tl2};
use crate::isa::Scalar;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl2::{self, GROUPS, INDEX_VECTORS, TILE_ROWS};
use crate::tables;

/// Exact.
pub type Tl2Lookup = Lookup<Loops, 2>;
/// With tables requantised to int8.
pub type Tl2LookupLossy = Lookup<Loops, 1>;

/// The loops.
pub struct Loops;

impl Method for Loops {
    type Proof = Scalar;
    type Layout = Tl2;
    const NAMES: [&'static str; 2] = ["scalar-tl2-lookup", "scalar-tl2-lookup-lossy"];
    const SUMMARY: &'static str = "a lookup per 3 weights, plain loops";

    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        for tile in 0..n_rows / TILE_ROWS {
            let chunks = tl2::tile(w, rows.start / TILE_ROWS + tile);
            for token in 0..x.m {
                let tables = tables::of::<H>(x, token).as_chunks::<GROUPS>().0;
                let mut sums = [0; TILE_ROWS];
                for (chunk, tables) in chunks.iter().zip(tables) {
                    for (j, table) in tables.iter().enumerate() {
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let entry = tables::entry(table, chunk[j / 2][r] >> (4 * (j % 2)));
                            let negative = chunk[INDEX_VECTORS][r] >> (7 - j) & 1 == 1;
                            *sum += if negative { -entry } else { entry };
                        }
                    }
                }
                acc[token * n_rows + tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&sums);
            }
        }
    }
}
