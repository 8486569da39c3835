//! `smmla`: 2 x 8 by 8 x 2 bytes, added to 2 x 2 int32, so that nothing can overflow. A lone token takes both places of a pair and
//! is counted once. The intrinsic is not stable in Rust; a line of assembly is.

use std::arch::aarch64::*;

use crate::arch::aarch64::codes::{Columns, Decode, Multiply, Named, Step, VECTORS, add_to, kernels, load_codes};
use crate::arch::aarch64::layouts::{B3, I2s, I8, T5, Tq1, Tq2};
use crate::isa::NeonI8mm;

/// See the module.
pub struct Smmla;

/// Stands for the step after an odd number of them.
const ZEROS: Step = [[0; 16]; VECTORS];

kernels! {
    /// Bytes.
    I8Smmla: I8, Smmla, "i8mm-i8-smmla", "bytes, smmla, 2 rows by 2 tokens";
    /// Llama.cpp's base-3 digits.
    Tq1Smmla: Tq1, Smmla, "i8mm-tq1-smmla", "llama.cpp's base-3 digits, smmla, 2 rows by 2 tokens";
    /// Llama.cpp's 2-bit codes.
    Tq2Smmla: Tq2, Smmla, "i8mm-tq2-smmla", "llama.cpp's 2-bit codes, smmla, 2 rows by 2 tokens";
    /// 5 base-3 digits a byte.
    B3Smmla: B3, Smmla, "i8mm-b3-smmla", "5 base-3 digits a byte, smmla, 2 rows by 2 tokens";
    /// 3 trits in 5 bits.
    T5Smmla: T5, Smmla, "i8mm-t5-smmla", "3 trits in 5 bits, smmla, 2 rows by 2 tokens";
    /// 2-bit codes.
    I2sSmmla: I2s, Smmla, "i8mm-i2s-smmla", "2-bit codes, smmla, 2 rows by 2 tokens";
}

impl Multiply for Smmla {
    type Proof = NeonI8mm;

    #[target_feature(enable = "neon,i8mm")]
    unsafe fn add<const T: usize>(steps: &[Step], x: [&[Columns]; T], acc: &mut [i32], stride: usize) {
        // Rows 0 and 1 of each vector, then rows 2 and 3: row 0 by token 0, row 0 by token 1, row 1 by token 0, row 1 by token 1.
        let mut sums = [[vdupq_n_s32(0); 2]; VECTORS];
        for (i, pair) in steps.chunks(2).enumerate() {
            let second_step = pair.get(1).unwrap_or(&ZEROS);
            let columns = vcombine_s8(columns(x[0], i), columns(x[T - 1], i));
            for v in 0..VECTORS {
                // A dword is 4 columns of a row: interleaved, two steps give 8 columns of each row.
                let first = vreinterpretq_s32_s8(load_codes(&pair[0][v]));
                let second = vreinterpretq_s32_s8(load_codes(&second_step[v]));
                sums[v][0] = smmla(sums[v][0], vreinterpretq_s8_s32(vzip1q_s32(first, second)), columns);
                sums[v][1] = smmla(sums[v][1], vreinterpretq_s8_s32(vzip2q_s32(first, second)), columns);
            }
        }
        for (acc, sums) in acc.as_chunks_mut().0.iter_mut().zip(sums) {
            add_to(acc, vuzp1q_s32(sums[0], sums[1]));
        }
        if T == 2 {
            for (acc, sums) in acc[stride..].as_chunks_mut().0.iter_mut().zip(sums) {
                add_to(acc, vuzp2q_s32(sums[0], sums[1]));
            }
        }
    }
}

/// The columns of steps `2 i` and `2 i + 1`, zeros where there is no second one.
#[inline]
#[target_feature(enable = "neon")]
fn columns(x: &[Columns], i: usize) -> int8x8_t {
    let [a, b, c, d] = x[2 * i];
    let [e, f, g, h] = x.get(2 * i + 1).copied().unwrap_or_default();
    // SAFETY: the array holds the 8 bytes that are read.
    unsafe { vld1_s8([a, b, c, d, e, f, g, h].as_ptr()) }
}

/// Adds the products of two matrices of 2 x 8, the second one transposed.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes the named registers only, and the CPU has the instruction, a feature of this function.
    unsafe {
        std::arch::asm!(
            "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
