//! `scalar-b3-unpack`: 5 base-3 digits a byte, looked up, one row at a time.

use super::unpack::{Layout, Unpack, read_interleaved};
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::b3::{self, SHAPE};
use crate::layout::interleaved::TILE_ROWS;
use crate::trit::TernaryMatrix;

/// The kernel.
pub type B3Unpack = Unpack<B3>;

/// The layout, for the loop in [`super::unpack`].
pub struct B3;

impl Layout for B3 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-b3-unpack",
        summary: "5 base-3 digits a byte, looked up, plain loops",
        features: Scalar::FEATURES,
        layout: "b3",
        bits_per_weight: 1.6,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "base-3 packing as in llama.cpp TQ1_0 (PR 8151) and lut_mm, rows interleaved",
    };
    const COLUMNS: usize = SHAPE.columns;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        b3::pack(w)
    }

    fn read(w: &PackedMatrix, row: usize, first: usize, trits: &mut [i8]) {
        read_interleaved(SHAPE, w, row, first, trits, b3::read);
    }
}
