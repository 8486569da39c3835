//! Where the bits lie: pack and unpack, no arithmetic. LAYOUTS.md draws each one.

pub mod b3;
pub mod balanced;
pub mod bitplane;
pub mod blocks;
pub mod i2s;
pub mod i8;
pub mod interleaved;
pub mod t5;
pub mod tl1;
pub mod tl2;
pub mod tq1;
pub mod tq2;
pub mod vlut;

use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// A layout: its name, as headed in LAYOUTS.md, and both directions.
pub type Layout = (&'static str, fn(&TernaryMatrix) -> PackedMatrix, fn(&PackedMatrix) -> Vec<i8>);

/// Every packed layout. The tests and the fuzz target iterate it.
pub const LAYOUTS: &[Layout] = &[
    ("b3", b3::pack, b3::unpack),
    ("bitplane", bitplane::pack, bitplane::unpack),
    ("i2s", i2s::pack, i2s::unpack),
    ("t5", t5::pack, t5::unpack),
    ("tl1", tl1::pack, tl1::unpack),
    ("tl2", tl2::pack, tl2::unpack),
    ("tq1", tq1::pack, tq1::unpack),
    ("tq2", tq2::pack, tq2::unpack),
    ("vlut", vlut::pack, vlut::unpack),
];
