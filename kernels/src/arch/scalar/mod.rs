//! Portable kernels: every layout once, readable, on any CPU.

pub mod b3_unpack;
pub mod bitplane_lookup;
pub mod i2s_unpack;
pub mod i8_blocked;
pub mod i8_naive;
pub mod t5_unpack;
pub mod tl1_lookup;
pub mod tl2_lookup;
pub mod tq1_unpack;
pub mod tq2_unpack;
pub mod unpack;
pub mod vlut_add;
