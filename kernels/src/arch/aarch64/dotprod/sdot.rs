//! `sdot`: 4 products of bytes for each of 4 lanes, added to int32, so that nothing can overflow. The intrinsic is not stable in
//! Rust; a line of assembly is.

use std::arch::aarch64::*;

use crate::arch::aarch64::codes::{
    Columns, Decode, Multiply, Named, Step, VECTORS, add_to, broadcast, kernels, load_codes,
};
use crate::arch::aarch64::layouts::{B3, I2s, I8, T5, Tq1, Tq2};
use crate::isa::NeonDot;

/// See the module.
pub struct Sdot;

kernels! {
    /// Bytes.
    I8Sdot: I8, Sdot, "dotprod-i8-sdot", "bytes, sdot, a lane per row";
    /// Llama.cpp's base-3 digits.
    Tq1Sdot: Tq1, Sdot, "dotprod-tq1-sdot", "llama.cpp's base-3 digits, sdot, a lane per row";
    /// Llama.cpp's 2-bit codes.
    Tq2Sdot: Tq2, Sdot, "dotprod-tq2-sdot", "llama.cpp's 2-bit codes, sdot, a lane per row";
    /// 5 base-3 digits a byte.
    B3Sdot: B3, Sdot, "dotprod-b3-sdot", "5 base-3 digits a byte, sdot, a lane per row";
    /// 3 trits in 5 bits.
    T5Sdot: T5, Sdot, "dotprod-t5-sdot", "3 trits in 5 bits, sdot, a lane per row";
    /// 2-bit codes.
    I2sSdot: I2s, Sdot, "dotprod-i2s-sdot", "2-bit codes, sdot, a lane per row";
}

impl Multiply for Sdot {
    type Proof = NeonDot;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn add<const T: usize>(steps: &[Step], x: [&[Columns]; T], acc: &mut [i32], stride: usize) {
        let mut sums = [[vdupq_n_s32(0); VECTORS]; T];
        for (i, step) in steps.iter().enumerate() {
            let mut columns = [vdupq_n_s8(0); T];
            for t in 0..T {
                columns[t] = broadcast(x[t][i]);
            }
            for v in 0..VECTORS {
                let codes = load_codes(&step[v]);
                for t in 0..T {
                    sums[t][v] = sdot(sums[t][v], codes, columns[t]);
                }
            }
        }
        for t in 0..T {
            for (acc, sum) in acc[t * stride..].as_chunks_mut().0.iter_mut().zip(sums[t]) {
                add_to(acc, sum);
            }
        }
    }
}

/// Adds, lane by lane, the sum of 4 products.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes the named registers only, and the CPU has the instruction, a feature of this function.
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
