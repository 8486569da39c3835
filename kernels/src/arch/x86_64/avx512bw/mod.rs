//! Kernels for AVX-512 without VNNI: 32 registers of 64 bytes, byte and word operations.

pub mod tl2_pshufb;
pub mod vlut_add;
