//! Portable kernels: every layout once, readable, on any CPU.

pub mod i2s_unpack;
pub mod i8_naive;
