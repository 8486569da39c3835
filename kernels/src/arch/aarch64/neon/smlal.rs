//! `smlal`, which every aarch64 CPU has: 8 products of bytes, added to int16.
//!
//! A product is at most 2·127 = 254, so an int16 lane holds the sum of 129 of them (32,766 of 32,767). It gets one of every step,
//! and a call has at most 128.

use std::arch::aarch64::*;

use crate::arch::aarch64::codes::{
    Columns, Decode, Multiply, Named, Step, VECTORS, add_to, broadcast, kernels, load_codes,
};
use crate::arch::aarch64::layouts::{B3, I2s, I8, T5, Tq1, Tq2};
use crate::isa::Neon;

/// See the module.
pub struct Smlal;

kernels! {
    /// Bytes.
    I8Smlal: I8, Smlal, "neon-i8-smlal", "bytes, smlal, a lane per row and column";
    /// Llama.cpp's base-3 digits.
    Tq1Smlal: Tq1, Smlal, "neon-tq1-smlal", "llama.cpp's base-3 digits, smlal, a lane per row and column";
    /// Llama.cpp's 2-bit codes.
    Tq2Smlal: Tq2, Smlal, "neon-tq2-smlal", "llama.cpp's 2-bit codes, smlal, a lane per row and column";
    /// 5 base-3 digits a byte.
    B3Smlal: B3, Smlal, "neon-b3-smlal", "5 base-3 digits a byte, smlal, a lane per row and column";
    /// 3 trits in 5 bits.
    T5Smlal: T5, Smlal, "neon-t5-smlal", "3 trits in 5 bits, smlal, a lane per row and column";
    /// 2-bit codes.
    I2sSmlal: I2s, Smlal, "neon-i2s-smlal", "2-bit codes, smlal, a lane per row and column";
}

impl Multiply for Smlal {
    type Proof = Neon;

    #[target_feature(enable = "neon")]
    unsafe fn add<const T: usize>(steps: &[Step], x: [&[Columns]; T], acc: &mut [i32], stride: usize) {
        // One token at a time: its 16 sums take half of the registers.
        for t in 0..T {
            // The columns of rows 0 and 1 of each vector, then of rows 2 and 3.
            let mut sums = [[vdupq_n_s16(0); 2]; VECTORS];
            for (step, x) in steps.iter().zip(x[t]) {
                let x = broadcast(*x);
                for v in 0..VECTORS {
                    let codes = load_codes(&step[v]);
                    sums[v][0] = vmlal_s8(sums[v][0], vget_low_s8(codes), vget_low_s8(x));
                    sums[v][1] = vmlal_high_s8(sums[v][1], codes, x);
                }
            }
            for (acc, sums) in acc[t * stride..].as_chunks_mut().0.iter_mut().zip(sums) {
                add_to(acc, vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1])));
            }
        }
    }
}
