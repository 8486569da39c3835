//! Kernels for AVX2: 16 registers of 32 bytes, int8 products by `vpmaddubsw`, 16-entry tables by `vpshufb`.

pub mod b3_maddubs;
pub mod bitplane_few;
mod bitplane_lookups;
pub mod bitplane_pshufb;
pub mod bitplane_vlut;
pub mod blocks;
pub mod i2s_maddubs;
pub mod interleaved;
pub mod lookup;
pub mod t5_maddubs;
pub mod tl1_pshufb;
pub mod tl2_pshufb;
pub mod tq1_maddubs;
pub mod tq2_maddubs;
pub mod vlut_add;
