//! `scalar-i2s-unpack`: 2-bit codes unpacked to bytes, one row at a time.

use super::unpack::{Layout, Unpack, read_interleaved};
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::i2s::{self, SHAPE};
use crate::layout::interleaved::TILE_ROWS;
use crate::trit::TernaryMatrix;

/// The kernel.
pub type I2sUnpack = Unpack<I2s>;

/// The layout, for the loop in [`super::unpack`].
pub struct I2s;

impl Layout for I2s {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-i2s-unpack",
        summary: "2-bit codes unpacked to bytes, plain loops",
        features: Scalar::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };
    const COLUMNS: usize = SHAPE.columns;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    fn read(w: &PackedMatrix, row: usize, first: usize, trits: &mut [i8]) {
        read_interleaved(SHAPE, w, row, first, trits, i2s::read);
    }
}
