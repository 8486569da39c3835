//! Kernels for x86-64.

pub mod avx2;
pub mod avx512bw;
pub mod avx512vbmi;
pub mod avx512vnni;
pub mod avxvnni;
mod dpbusd;
