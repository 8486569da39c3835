//! Kernels for AVX2: 16 registers of 32 bytes, int8 products by `vpmaddubsw`.

pub mod i2s_maddubs;
