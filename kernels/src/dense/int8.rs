//! Quantised blocks times int8: the input is quantised per token and block of 32, as llama.cpp does, and each block of products is
//! an integer sum that two scales turn into a float.
//!
//! `y = Σ_blocks dw·dx · Σ q_w·q_x`, blocks in order: one float product and one addition per block and output, whatever the
//! batch, the rows and the threads. The input's rounding (half a step of `absmax / 127` of its block) is the only loss.

use std::cell::RefCell;
use std::ops::Range;

use half::f16;

use super::{Activations, DenseInfo, DenseKernel, DenseMatrix, DenseType};

/// Values that share a scale, in weights and in inputs.
pub const BLOCK: usize = 32;

/// `m x k` inputs as int8 blocks.
#[derive(Default)]
pub struct Blocks {
    /// `x ≈ scale * value`, row-major.
    pub values: Vec<[i8; BLOCK]>,
    /// One per block: `absmax / 127`.
    pub scales: Vec<f32>,
    /// The sum of the values of each block.
    pub sums: Vec<i32>,
}

impl Blocks {
    /// Quantises whole blocks: absmax to 127, round half to even. Inlined so that it is compiled with its caller's features.
    #[inline(always)]
    pub fn fill(&mut self, x: &[f32]) {
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        debug_assert!(rest.is_empty());
        self.values.resize(blocks.len(), [0; BLOCK]);
        self.scales.resize(blocks.len(), 0.0);
        self.sums.resize(blocks.len(), 0);
        for (i, x) in blocks.iter().enumerate() {
            // Eight running maxima, one per lane, so that the loop is vectorised.
            let mut lanes = [0.0f32; 8];
            for x in x.as_chunks::<8>().0 {
                for (lane, x) in lanes.iter_mut().zip(x) {
                    *lane = if x.abs() > *lane { x.abs() } else { *lane };
                }
            }
            let absmax = lanes.into_iter().fold(0.0, f32::max);
            // Below, the inverse would be infinite; such values become 0.
            let inverse = if absmax > 1e-30 { 127.0 / absmax } else { 0.0 };
            let mut sum = 0;
            for (value, x) in self.values[i].iter_mut().zip(x) {
                // Adding and taking away 1.5 * 2^23 rounds to even; what is left is at most 127. A NaN becomes some int8.
                const ROUND: f32 = 12_582_912.0;
                let rounded = (x * inverse + ROUND).to_bits().cast_signed() - ROUND.to_bits().cast_signed();
                *value = rounded as i8;
                sum += i32::from(*value);
            }
            (self.scales[i], self.sums[i]) = (absmax / 127.0, sum);
        }
    }
}

thread_local! {
    /// The input of the last call. Every call quantises it again: 1 to 3 % of what its multiplications take.
    pub static INPUT: RefCell<Blocks> = RefCell::default();
}

/// The portable kernel of Q8_0 (`FOUR_BITS` false) or Q4_0.
pub struct Portable<const FOUR_BITS: bool>;

const Q8_0: DenseInfo =
    DenseInfo { name: "scalar-q8_0-int8", features: &[], ty: DenseType::Q8_0, activations: Activations::Rounded };
const Q4_0: DenseInfo =
    DenseInfo { name: "scalar-q4_0-int8", features: &[], ty: DenseType::Q4_0, activations: Activations::Rounded };

impl<const FOUR_BITS: bool> Portable<FOUR_BITS> {
    pub const INFO: &'static DenseInfo = if FOUR_BITS { &Q4_0 } else { &Q8_0 };

    pub fn new() -> Option<Self> {
        Some(Self)
    }
}

impl<const FOUR_BITS: bool> DenseKernel for Portable<FOUR_BITS> {
    fn info(&self) -> &'static DenseInfo {
        Self::INFO
    }

    fn compute(&self, w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
        assert!(w.ty() == Self::INFO.ty, "{} cannot read {}", Self::INFO.name, w.ty().name());
        assert!(x.len() == m * w.k() && y.len() == m * rows.len(), "x does not hold m * k values or y not m * rows");
        let (n_blocks, n_rows) = (w.k() / BLOCK, rows.len());
        INPUT.with_borrow_mut(|input| {
            input.fill(x);
            for (r, row) in rows.enumerate() {
                let blocks = w.row(row).chunks_exact(w.ty().block_bytes());
                for token in 0..m {
                    y[token * n_rows + r] = 0.0;
                }
                for (b, block) in blocks.enumerate() {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    let codes = codes::<FOUR_BITS>(&block[2..]);
                    for token in 0..m {
                        let at = token * n_blocks + b;
                        let products = codes.iter().zip(&input.values[at]).map(|(w, x)| i32::from(*w) * i32::from(*x));
                        y[token * n_rows + r] += scale * input.scales[at] * products.sum::<i32>() as f32;
                    }
                }
            }
        });
    }
}

/// The codes of a block, as signed numbers.
fn codes<const FOUR_BITS: bool>(bytes: &[u8]) -> [i8; BLOCK] {
    std::array::from_fn(|i| match FOUR_BITS {
        false => bytes[i].cast_signed(),
        true => (if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }).cast_signed() - 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_rounded_to_half_a_step_of_their_block() {
        let x: Vec<f32> = (0..96).map(|i| if i < 64 { ((i * 37 % 64) as f32 - 31.5) * 0.3 } else { 0.0 }).collect();
        let mut blocks = Blocks::default();
        blocks.fill(&x);
        for (i, x) in x.iter().enumerate() {
            let (scale, value) = (blocks.scales[i / 32], blocks.values[i / 32][i % 32]);
            assert!((scale * f32::from(value) - x).abs() <= scale * 0.500_01, "{i}: {x}");
        }
        assert_eq!((blocks.scales[2], blocks.sums[2], blocks.values[2]), (0.0, 0, [0; 32]));
        let sums = blocks.values.iter().map(|values| values.iter().map(|&v| i32::from(v)).sum::<i32>());
        assert!(sums.eq(blocks.sums.iter().copied()));
        assert_eq!(blocks.values[0].iter().chain(&blocks.values[1]).map(|v| v.unsigned_abs()).max(), Some(127));
    }

    #[test]
    fn inputs_that_are_no_numbers_do_not_panic() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE / 8.0, f32::MAX] {
            let mut x = [1.0; 32];
            x[5] = odd;
            Blocks::default().fill(&x);
            Blocks::default().fill(&[odd; 32]);
        }
    }
}
