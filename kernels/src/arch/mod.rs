//! The kernels, by instruction set: `arch/<architecture>/<isa>/<layout>_<method>.rs` is `<isa>-<layout>-<method>`.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
mod lookup;
pub mod scalar;
mod vlut;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
