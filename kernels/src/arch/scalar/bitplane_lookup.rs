//! `scalar-bitplane-lookup`: one table lookup per four bits of a plane, one plane added, the other subtracted, plain loops.

use std::ops::Range;

use crate::arch::lookup::{Bitplane, Lookup, Method};
use crate::isa::Scalar;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::bitplane::{self, TILE_ROWS};
use crate::tables;

/// The kernel.
pub type BitplaneLookup = Lookup<Loops, 2>;

/// The loops.
pub struct Loops;

impl Method for Loops {
    type Proof = Scalar;
    type Layout = Bitplane;
    const NAMES: [&'static str; 2] = ["scalar-bitplane-lookup", ""];
    const SUMMARY: &'static str = "a lookup per 4 weights of a bit plane, plain loops";

    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        const { assert!(H == 2, "the bias of lossy tables is not that of a difference") };
        let n_rows = rows.len();
        for tile in 0..n_rows / TILE_ROWS {
            let steps = bitplane::tile(w, rows.start / TILE_ROWS + tile);
            for token in 0..x.m {
                let tables = tables::of::<2>(x, token);
                let mut sums = [0; TILE_ROWS];
                for (step, [low, high]) in steps.iter().zip(tables.as_chunks().0) {
                    let look = |plane: u8| tables::entry(low, plane & 15) + tables::entry(high, plane >> 4);
                    for (sum, [plus, minus]) in sums.iter_mut().zip(step.as_chunks().0) {
                        *sum += look(*plus) - look(*minus);
                    }
                }
                acc[token * n_rows + tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&sums);
            }
        }
    }
}
