//! Quantised blocks times int8: the input is quantised per token and block of 32, as llama.cpp does, and each block of products is
//! an integer sum that two scales turn into a float.
//!
//! `y = Σ_blocks dw·dx · Σ q_w·q_x`, blocks in order: one float product and one addition per block and output, whatever the
//! batch, the rows and the threads. The input's rounding (half a step of `absmax / 127` of its block) is the only loss.

use std::ops::Range;

use half::f16;

use super::{Activations, DenseInfo, DenseKernel, DenseMatrix, DenseType, for_each_tile};
use crate::bytes::AlignedBytes;
use crate::team::Team;

/// Values that share a scale, in weights and in inputs.
pub const BLOCK: usize = 32;
/// Steps of a block: four columns are multiplied and added at once.
pub const STEPS: usize = BLOCK / 4;

/// Word of the scale's bits, `absmax / 127`, after those of four int8 each.
pub const SCALE: usize = STEPS;
/// Word of what the sum of products begins with, for codes that are stored as `code + zero`: `-zero` times the sum of the values.
pub const START: usize = STEPS + 1;

/// The words of a block of a token.
pub const WORDS: usize = STEPS + 2;

/// A block of `T` tokens as tiles read it: each word of all of them in turn.
pub type Block<const T: usize> = [[i32; T]; WORDS];

/// The blocks of the `T` tokens that begin with `token`, of inputs of `k` values that [`fill`] brought into this form, tile after tile.
pub fn tokens<const T: usize>(prepared: &[u8], k: usize, token: usize) -> &[Block<T>] {
    let words: &[i32] = bytemuck::cast_slice(prepared);
    let n_blocks = k / BLOCK;
    &words[token * n_blocks * WORDS..].as_chunks().0.as_chunks().0[..n_blocks]
}

/// Quantises the tokens of a tile, at most six of `k` values, for codes that are stored as `code + zero`. Inlined so that it is
/// compiled with its caller's features.
#[inline(always)]
pub fn fill(x: &[f32], k: usize, zero: i32, out: &mut [i32]) {
    match x.len() / k {
        1 => fill_tile::<1>(x, k, zero, out),
        2 => fill_tile::<2>(x, k, zero, out),
        3 => fill_tile::<3>(x, k, zero, out),
        4 => fill_tile::<4>(x, k, zero, out),
        5 => fill_tile::<5>(x, k, zero, out),
        6 => fill_tile::<6>(x, k, zero, out),
        n => unreachable!("no tile has {n} tokens"),
    }
}

#[inline(always)]
fn fill_tile<const T: usize>(x: &[f32], k: usize, zero: i32, out: &mut [i32]) {
    let out: &mut [Block<T>] = out.as_chunks_mut().0.as_chunks_mut().0;
    for (t, x) in x.chunks_exact(k).enumerate() {
        for (x, out) in x.as_chunks().0.iter().zip(&mut *out) {
            let (values, scale, sum) = quantize(x);
            for (out, values) in out.iter_mut().zip(values.as_chunks().0) {
                out[t] = i32::from_ne_bytes(values.map(i8::cast_unsigned));
            }
            (out[SCALE][t], out[START][t]) = (scale.to_bits().cast_signed(), -zero * sum);
        }
    }
}

/// Values with `x ≈ scale * value`, the scale and the sum of the values: absmax to 127, round half to even.
#[inline(always)]
fn quantize(x: &[f32; BLOCK]) -> ([i8; BLOCK], f32, i32) {
    // Eight running maxima, one per lane, so that the loop is vectorised; what is no number never is one.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [0.0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = larger(*lane, x.abs());
        }
    }
    let [a, b, c, d]: [f32; 4] = std::array::from_fn(|i| larger(lanes[i], lanes[i + 4]));
    let absmax = larger(larger(a, b), larger(c, d));
    // Below, the inverse would be infinite; such values become 0.
    let inverse = if absmax > 1e-30 { 127.0 / absmax } else { 0.0 };
    let mut values = [0; BLOCK];
    let mut sum = 0;
    for (value, x) in values.iter_mut().zip(x) {
        // Adding and taking away 1.5 * 2^23 rounds to even; what is left is at most 127. A NaN becomes some int8.
        const ROUND: f32 = 12_582_912.0;
        let rounded = (x * inverse + ROUND).to_bits().cast_signed() - ROUND.to_bits().cast_signed();
        *value = rounded as i8;
        sum += i32::from(*value);
    }
    (values, absmax / 127.0, sum)
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

    fn prepare(&self, team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        for_each_tile(team, out, m, 1, k / BLOCK * WORDS, |token, out| fill(&x[token.start * k..][..k], k, 0, out));
    }

    fn compute(&self, w: &DenseMatrix, _: &[f32], prepared: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        assert!(w.ty() == Self::INFO.ty, "{} cannot read {}", Self::INFO.name, w.ty().name());
        assert!(y.len() == m * rows.len(), "y does not hold m * rows values");
        let n_rows = rows.len();
        for (r, row) in rows.enumerate() {
            for token in 0..m {
                y[token * n_rows + r] = 0.0;
            }
            for (b, block) in w.row(row).chunks_exact(w.ty().block_bytes()).enumerate() {
                let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                let codes = codes::<FOUR_BITS>(&block[2..]);
                for token in 0..m {
                    let x = &tokens::<1>(prepared, w.k(), token)[b];
                    let products = codes.as_chunks::<4>().0.iter().zip(x).map(|(w, [x])| {
                        let x = x.to_ne_bytes().map(u8::cast_signed);
                        w.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(x)).sum::<i32>()
                    });
                    let x_scale = f32::from_bits(x[SCALE][0].cast_unsigned());
                    y[token * n_rows + r] += scale * x_scale * products.sum::<i32>() as f32;
                }
            }
        }
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
        let (m, k) = (8, 96);
        let value = |i: usize| if i % k < 64 { ((i * 37 % 61) as f32 - 31.5) * 0.3 } else { 0.0 };
        let x: Vec<f32> = (0..m * k).map(value).collect();
        let mut prepared = AlignedBytes::zeroed(m * k / BLOCK * WORDS * 4);
        let words = bytemuck::cast_slice_mut(&mut prepared);
        fill(&x[..6 * k], k, 3, words);
        fill(&x[6 * k..], k, 3, &mut words[6 * k / BLOCK * WORDS..]);
        let check = |x: &[f32], word: &dyn Fn(usize) -> i32| {
            let values: Vec<i8> = (0..STEPS).flat_map(|i| word(i).to_ne_bytes().map(u8::cast_signed)).collect();
            let scale = f32::from_bits(word(SCALE).cast_unsigned());
            for (x, value) in x.iter().zip(&values) {
                assert!((scale * f32::from(*value) - x).abs() <= scale * 0.500_01, "{value} times {scale} for {x}");
            }
            let sum: i32 = values.iter().map(|&v| i32::from(v)).sum();
            assert_eq!(word(START), -3 * sum);
            let largest = values.iter().map(|v| v.unsigned_abs()).max();
            assert_eq!(largest, Some(if scale > 0.0 { 127 } else { 0 }));
        };
        for token in 0..m {
            for (b, x) in x[token * k..][..k].chunks_exact(BLOCK).enumerate() {
                match token {
                    0..6 => check(x, &|i| tokens::<6>(&prepared, k, 0)[b][i][token]),
                    _ => check(x, &|i| tokens::<2>(&prepared, k, 6)[b][i][token - 6]),
                }
            }
        }
    }

    #[test]
    fn inputs_that_are_no_numbers_do_not_panic() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE / 8.0, f32::MAX] {
            let mut x = [1.0; BLOCK];
            x[5] = odd;
            quantize(&x);
            quantize(&[odd; BLOCK]);
        }
    }
}
