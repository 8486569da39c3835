//! `scalar-tq2-unpack`: llama.cpp TQ2_0 blocks unpacked to bytes, one row at a time.

use super::unpack::{Layout, Unpack, read_blocks};
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::blocks::BLOCK;
use crate::layout::tq2::{self, BYTES};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type Tq2Unpack = Unpack<Tq2>;

/// The layout, for the loop in [`super::unpack`].
pub struct Tq2;

impl Layout for Tq2 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-tq2-unpack",
        summary: "llama.cpp TQ2_0 blocks unpacked to bytes, plain loops",
        features: Scalar::FEATURES,
        layout: "tq2",
        bits_per_weight: 2.0625,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "llama.cpp TQ2_0 (PR 8151)",
    };
    const COLUMNS: usize = BLOCK;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        tq2::pack(w)
    }

    fn read(w: &PackedMatrix, row: usize, first: usize, trits: &mut [i8]) {
        read_blocks::<BYTES>(w, row, first, trits, tq2::read);
    }
}
