//! Kernels for AVX2: 16 registers of 32 bytes, int8 products by `vpmaddubsw`, 16-entry tables by `vpshufb`.

pub mod bitplane_pshufb;
pub mod i2s_maddubs;
pub mod lookup;
pub mod tl1_pshufb;
pub mod tl2_pshufb;
pub mod vlut_add;
