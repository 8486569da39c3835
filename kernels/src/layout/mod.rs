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
