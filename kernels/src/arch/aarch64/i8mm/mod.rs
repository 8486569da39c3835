//! Kernels for NEON with `smmla`.

pub mod smmla;
