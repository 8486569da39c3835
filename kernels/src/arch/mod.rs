//! The kernels, by instruction set: `arch/<architecture>/<isa>/<layout>_<method>.rs` is `<isa>-<layout>-<method>`.

pub mod scalar;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
