//! Kernels for AVX-512 with VNNI: 32 registers of 64 bytes, four int8 products and their sum by `vpdpbusd`.

pub mod i2s_dpbusd;
