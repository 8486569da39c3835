//! Kernels for NEON.

pub mod bitplane_tbl;
mod lookup;
pub mod smlal;
pub mod tl1_tbl;
pub mod tl2_tbl;
pub mod vlut_add;
