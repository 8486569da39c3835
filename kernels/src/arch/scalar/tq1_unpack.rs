//! `scalar-tq1-unpack`: llama.cpp TQ1_0 blocks unpacked to bytes, one row at a time.

use super::unpack::{Layout, Unpack, read_blocks};
use crate::isa::{Scalar, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix};
use crate::layout::blocks::BLOCK;
use crate::layout::tq1::{self, BYTES};
use crate::trit::TernaryMatrix;

/// The kernel.
pub type Tq1Unpack = Unpack<Tq1>;

/// The layout, for the loop in [`super::unpack`].
pub struct Tq1;

impl Layout for Tq1 {
    const INFO: &'static KernelInfo = &KernelInfo {
        name: "scalar-tq1-unpack",
        summary: "llama.cpp TQ1_0 blocks unpacked to bytes, plain loops",
        features: Scalar::FEATURES,
        layout: "tq1",
        bits_per_weight: 1.6875,
        row_tile: 1,
        exactness: Exactness::Exact,
        source: "llama.cpp TQ1_0 (PR 8151)",
    };
    const COLUMNS: usize = BLOCK;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        tq1::pack(w)
    }

    fn read(w: &PackedMatrix, row: usize, first: usize, trits: &mut [i8]) {
        read_blocks::<BYTES>(w, row, first, trits, tq1::read);
    }
}
