//! The portable loop of every packed layout: unpacks a stretch of one row to bytes and multiplies it with every token. Short
//! enough to be compared with a layout's document line by line; the emulators of other instruction sets are checked by it.

use std::marker::PhantomData;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Scalar, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::blocks::{self, BLOCK};
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// What one layout adds to the loop.
pub trait Layout: Send + Sync + 'static {
    /// What the kernel is.
    const INFO: &'static KernelInfo;
    /// Columns that [`read`](Self::read) gives at once; `k` is padded to a multiple of them.
    const COLUMNS: usize;

    /// Lays out `w`.
    fn pack(w: &TernaryMatrix) -> PackedMatrix;

    /// Trits `first * COLUMNS` and on, as many as `trits` takes (a multiple of `COLUMNS`), of row `row`.
    fn read(w: &PackedMatrix, row: usize, first: usize, trits: &mut [i8]);
}

/// The trits of consecutive tiles of one row of an interleaved layout.
pub fn read_interleaved(
    shape: Shape,
    w: &PackedMatrix,
    row: usize,
    first: usize,
    trits: &mut [i8],
    read: impl Fn(&[u8], usize, &mut [i8]),
) {
    let tiles = w.data[shape.row_tile(w.k, row / TILE_ROWS)].chunks_exact(shape.bytes()).skip(first);
    for (tile, trits) in tiles.zip(trits.chunks_exact_mut(shape.columns)) {
        read(tile, row % TILE_ROWS, trits);
    }
}

/// The trits of consecutive blocks of one row.
pub fn read_blocks<const BYTES: usize>(
    w: &PackedMatrix,
    row: usize,
    first: usize,
    trits: &mut [i8],
    read: impl Fn(&[u8], &mut [i8]),
) {
    for (block, trits) in blocks::row::<BYTES>(w, row)[first..].iter().zip(trits.chunks_exact_mut(BLOCK)) {
        read(block, trits);
    }
}

/// The kernel of a layout.
pub struct Unpack<L>(#[allow(dead_code, reason = "the proof of support")] Scalar, PhantomData<L>);

impl<L: Layout> Unpack<L> {
    /// What it is.
    pub const INFO: &'static KernelInfo = L::INFO;

    /// The kernel.
    pub fn new() -> Option<Self> {
        Scalar::detect().map(|token| Self(token, PhantomData))
    }
}

/// Weights unpacked at once, at most: enough for a vectorised dot product, few enough for the stack.
const STRETCH: usize = 512;

impl<L: Layout> TernaryKernel for Unpack<L> {
    fn info(&self) -> &'static KernelInfo {
        L::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        L::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(team, x, L::COLUMNS);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        acc.fill(0);
        let stretch = STRETCH / L::COLUMNS * L::COLUMNS;
        for row in rows.clone() {
            for first in (0..x.stride).step_by(stretch) {
                let mut weights = [0i8; STRETCH];
                let weights = &mut weights[..stretch.min(x.stride - first)];
                L::read(w, row, first / L::COLUMNS, weights);
                for token in 0..x.m {
                    let x = &x.row(token)[first..][..weights.len()];
                    acc[token * n_rows + row - rows.start] += dot(weights, x);
                }
            }
        }
    }
}

/// `Σ w x`, a plain loop that compilers turn into vectors.
pub fn dot(w: &[i8], x: &[i8]) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| i32::from(i16::from(w) * i16::from(x))).sum()
}
