//! `neon-tl1-tbl`, and `-lossy`: a nibble per two weights, looked up for 16 rows at once by `tbl`.
//!
//! An entry is at most 2·127 = 254, so an int16 holds the sum of 128 of them (32,512 of 32,767); a lossy one is at most 127.
//! [`super::lookup`] says how they are added up.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Neon, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::tl1::{self, CODES, GROUP, Step, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};
use crate::trit::TernaryMatrix;

use super::lookup::{ROWS, Sums, load_quarter, look, nibbles};

/// With tables of `H` bytes per entry.
pub struct Tl1<const H: usize>(#[allow(dead_code, reason = "the proof of support")] Neon);

/// Exact.
pub type Tl1Tbl = Tl1<2>;
/// With tables requantised to int8.
pub type Tl1TblLossy = Tl1<1>;

impl<const H: usize> Tl1<H> {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: if H == 2 { "neon-tl1-tbl" } else { "neon-tl1-tbl-lossy" },
        summary: if H == 2 { "tbl, a lookup per 2 weights" } else { "the same, tables requantised to int8" },
        features: Neon::FEATURES,
        layout: "tl1",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: tables::exactness::<GROUP, H>(),
        source: "bitnet.cpp TL1 (arXiv 2502.11880), rows interleaved",
    };

    /// The kernel, where the CPU has NEON.
    pub fn new() -> Option<Self> {
        Neon::detect().map(Self)
    }
}

impl<const H: usize> TernaryKernel for Tl1<H> {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        tl1::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        tables::fill::<GROUP, H>(&CODES, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let groups = w.k.next_multiple_of(TILE_K) / GROUP;
        assert_eq!(x.stride, groups * size_of::<Table<H>>(), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds a `Neon`, which only run-time detection hands out.
        unsafe { compute::<H>(w, x, rows, acc) };
        tables::rescale::<H>(x, acc);
    }
}

/// Steps between two widenings: 128 groups.
const BLOCK: usize = 64;

#[target_feature(enable = "neon")]
fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
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

/// 64 rows over at most [`BLOCK`] steps.
#[target_feature(enable = "neon")]
fn add_block<const H: usize>(steps: &[Step], tables: &[[Table<H>; 2]], acc: &mut [i32; TILE_ROWS]) {
    let mut sums = [Sums::new(); TILE_ROWS / ROWS];
    for (step, [first, second]) in steps.iter().zip(tables) {
        for (quarter, sums) in sums.iter_mut().enumerate() {
            let [low, high] = nibbles(load_quarter(step, quarter));
            sums.add(look(first, low));
            sums.add(look(second, high));
        }
    }
    for (sums, acc) in sums.iter().zip(acc.as_chunks_mut().0) {
        sums.widen::<H>(2 * steps.len(), acc);
    }
}
