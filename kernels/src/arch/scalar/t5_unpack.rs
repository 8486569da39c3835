//! `scalar-t5-unpack`: 3 trits in 5 bits, unpacked to bytes, one row at a time.

use super::unpack::{Layout, Unpack, read_interleaved};
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::interleaved::TILE_ROWS;
use crate::layout::t5::{self, SHAPE};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type T5Unpack = Unpack<T5>;

/// The layout, for the loop in [`super::unpack`].
pub struct T5;

impl Layout for T5 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-t5-unpack",
        summary: "3 trits in 5 bits, unpacked to bytes, plain loops",
        features: Scalar::FEATURES,
        layout: "t5",
        bits_per_weight: 5.0 / 3.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "own",
    };
    const COLUMNS: usize = SHAPE.columns;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        t5::pack(w)
    }

    fn read(w: &PackedMatrix, row: usize, first: usize, trits: &mut [i8]) {
        read_interleaved(SHAPE, w, row, first, trits, t5::read);
    }
}
