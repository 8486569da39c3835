//! Where the bits lie: pack and unpack, no arithmetic. LAYOUTS.md draws each one.

pub mod balanced;
pub mod bitplane;
pub mod i2s;
pub mod tl1;
pub mod tl2;
pub mod vlut;
