//! `neon-bitplane-tbl`: a nibble per four bits of a plane, looked up for 16 rows at once by `tbl`; the plane of +1 is added,
//! the plane of -1 subtracted.
//!
//! A column counts in one plane at most, so the two entries of a step differ by at most 4·127 = 508, and an int16 holds the sum of
//! 64 such differences (32,512 of 32,767). [`super::lookup`] says how they are added up.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Neon, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::bitplane::{self, CODES, Step, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};
use crate::trit::TernaryMatrix;

use super::lookup::{ROWS, Sums, load_quarter, look, nibbles};

/// See the module.
pub struct BitplaneTbl(#[allow(dead_code, reason = "the proof of support")] Neon);

impl BitplaneTbl {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "neon-bitplane-tbl",
        summary: "tbl, a lookup per 4 weights of a bit plane",
        features: Neon::FEATURES,
        layout: "bitplane",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "T-MAC (arXiv 2407.00088), planes of +1 and -1",
    };

    /// The kernel, where the CPU has NEON.
    pub fn new() -> Option<Self> {
        Neon::detect().map(Self)
    }
}

impl TernaryKernel for BitplaneTbl {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        bitplane::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        tables::fill::<TILE_K, 2>(&CODES, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.div_ceil(TILE_K) * size_of::<Table<2>>(), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds a `Neon`, which only run-time detection hands out.
        unsafe { compute(w, x, rows, acc) };
    }
}

/// Steps between two widenings.
const BLOCK: usize = 64;

#[target_feature(enable = "neon")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    acc.fill(0);
    for row in rows.clone().step_by(TILE_ROWS) {
        for (block, steps) in bitplane::tile(w, row / TILE_ROWS).chunks(BLOCK).enumerate() {
            for token in 0..x.m {
                let tables = &tables::of::<2>(x, token)[block * BLOCK..][..steps.len()];
                if let Some(acc) = acc[token * n_rows + row - rows.start..].first_chunk_mut() {
                    add_block(steps, tables, acc);
                }
            }
        }
    }
}

/// 64 rows over at most [`BLOCK`] steps.
#[target_feature(enable = "neon")]
fn add_block(steps: &[Step], tables: &[Table<2>], acc: &mut [i32; TILE_ROWS]) {
    let mut sums = [Sums::new(); TILE_ROWS / ROWS];
    for (step, table) in steps.iter().zip(tables) {
        for (quarter, sums) in sums.iter_mut().enumerate() {
            let [plus, minus] = nibbles(load_quarter(step, quarter));
            sums.add(look(table, plus));
            sums.sub(look(table, minus));
        }
    }
    for (sums, acc) in sums.iter().zip(acc.as_chunks_mut().0) {
        sums.widen::<2>(steps.len(), acc);
    }
}
