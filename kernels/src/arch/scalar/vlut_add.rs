//! `scalar-vlut-add`: tokens as lanes. A table holds, for every code of four weights, the vector over 32 tokens of their sums;
//! a row adds one such vector per code. The tables of a slice are built once for all rows of a call.
//!
//! An entry is at most 4·127, so an int16 lane holds the sum of 64 of them (32,512 of 32,767): 256 columns. All sums are
//! widened to int32 after that.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::lanes::{self, Column, LANES};
use crate::layout::balanced;
use crate::layout::vlut::{self, GROUP, GROUPS, N_CODES, Quad, TILE_K, TILE_ROWS};
use crate::trit::TernaryMatrix;

/// See the module.
pub struct VlutAdd(#[allow(dead_code, reason = "the proof of support")] Scalar);

impl VlutAdd {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-vlut-add",
        summary: "tokens as lanes, a table vector per 4 weights",
        features: Scalar::FEATURES,
        layout: "vlut",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "Vec-LUT (arXiv 2512.06443)",
    };

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(Self)
    }
}

/// Slices between two widenings: 256 columns.
const BLOCK: usize = 16;
/// Rows whose sums are kept while the tables change: 32 KB.
const ROWS: usize = 512;

/// A value for each of 32 tokens.
type Vector = [i16; LANES];

impl TernaryKernel for VlutAdd {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn rows_per_call(&self) -> usize {
        ROWS
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        vlut::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        lanes::fill(x, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        acc.fill(0);
        for (chunk, acc) in acc.chunks_mut((LANES * n_rows).max(1)).enumerate() {
            let columns = lanes::of(x, chunk).as_chunks::<TILE_K>().0;
            for first in rows.clone().step_by(ROWS) {
                let rows_here = first..rows.end.min(first + ROWS);
                for (block, columns) in columns.chunks(BLOCK).enumerate() {
                    let mut sums = [[0; LANES]; ROWS];
                    for (i, columns) in columns.iter().enumerate() {
                        add_slice(vlut::slice(w, block * BLOCK + i, rows_here.clone()), &tables(columns), &mut sums);
                    }
                    for (token, acc) in acc.chunks_exact_mut(n_rows).enumerate() {
                        let acc = &mut acc[first - rows.start..][..rows_here.len()];
                        acc.iter_mut().zip(&sums).for_each(|(acc, sums)| *acc += i32::from(sums[token]));
                    }
                }
            }
        }
    }
}

/// The tables of a slice's groups: `Σ trit · x` for every code.
fn tables(columns: &[Column; TILE_K]) -> [[Vector; N_CODES]; GROUPS] {
    let mut tables = [[[0; LANES]; N_CODES]; GROUPS];
    for (table, columns) in tables.iter_mut().zip(columns.as_chunks::<GROUP>().0) {
        for (code, entry) in table.iter_mut().enumerate() {
            let trits = balanced::trits::<GROUP>(code as i32 - (N_CODES / 2) as i32);
            for (trit, column) in trits.into_iter().zip(columns) {
                entry.iter_mut().zip(column).for_each(|(entry, &x)| *entry += i16::from(trit) * i16::from(x));
            }
        }
    }
    tables
}

/// Adds every row's entries to its sums.
fn add_slice(quads: &[Quad], tables: &[[Vector; N_CODES]; GROUPS], sums: &mut [Vector]) {
    for (quad, sums) in quads.iter().zip(sums) {
        for (table, &code) in tables.iter().zip(quad) {
            sums.iter_mut().zip(&table[usize::from(code)]).for_each(|(sum, entry)| *sum += entry);
        }
    }
}
