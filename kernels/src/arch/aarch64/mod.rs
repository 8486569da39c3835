//! Kernels for aarch64. The multiplying ones of a layout differ in one instruction only, so there is a file for each instruction
//! (`<isa>/<method>.rs`) and one for each layout ([`layouts`]), not one for each pair.

mod codes;
pub mod dotprod;
pub mod i8mm;
mod layouts;
pub mod neon;
