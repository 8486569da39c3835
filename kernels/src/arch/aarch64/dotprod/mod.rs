//! Kernels for NEON with `sdot`.

pub mod sdot;
