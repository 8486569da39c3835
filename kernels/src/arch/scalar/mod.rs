//! Portable kernels: every layout once, readable, on any CPU.

pub mod bitplane_lookup;
pub mod i2s_unpack;
pub mod i8_naive;
pub mod tl1_lookup;
pub mod tl2_lookup;
pub mod vlut_add;
