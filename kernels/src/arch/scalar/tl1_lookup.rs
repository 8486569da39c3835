//! `scalar-tl1-lookup`, and `-lossy`: one table lookup per two weights, plain loops.

use std::ops::Range;

use crate::arch::lookup::{Lookup, Method, Tl1};
use crate::isa::Scalar;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::tl1::{self, TILE_ROWS};
use crate::tables;

/// Exact.
pub type Tl1Lookup = Lookup<Loops, 2>;
/// With tables requantised to int8.
pub type Tl1LookupLossy = Lookup<Loops, 1>;

/// The loops.
pub struct Loops;

impl Method for Loops {
    type Proof = Scalar;
    type Layout = Tl1;
    const NAMES: [&'static str; 2] = ["scalar-tl1-lookup", "scalar-tl1-lookup-lossy"];
    const SUMMARY: &'static str = "a lookup per 2 weights, plain loops";

    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        for tile in 0..n_rows / TILE_ROWS {
            let steps = tl1::tile(w, rows.start / TILE_ROWS + tile);
            for token in 0..x.m {
                let tables = tables::of::<H>(x, token).as_chunks::<2>().0;
                let mut sums = [0; TILE_ROWS];
                for (step, [low, high]) in steps.iter().zip(tables) {
                    for (sum, byte) in sums.iter_mut().zip(step) {
                        *sum += tables::entry(low, byte & 15) + tables::entry(high, byte >> 4);
                    }
                }
                acc[token * n_rows + tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&sums);
            }
        }
    }
}
