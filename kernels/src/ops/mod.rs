//! Float operations of the forward pass: norms, dot products, attention, gates, and the int8 quantiser.
//!
//! Each is a plain loop over a fixed number of lanes, compiled for the baseline, for AVX2 with FMA and F16C, and for AVX-512. Sums run in an
//! order that depends on the length alone, so results change neither with the batch nor with the number of threads.

use std::cell::RefCell;

use crate::activation::QuantizedActivations;
use crate::bytes::Aligned;
use crate::team::{SharedMut, Team};

/// Lanes of a running sum: two AVX2 registers, four NEON ones.
pub const LANES: usize = 16;

/// Sums or maxima that are kept side by side where each is one long chain, so that an operation need not wait for the one before.
const CHAINS: usize = 4;

/// Compiles a function for the baseline, for AVX2, FMA and F16C, and for AVX-512 without and with VNNI, and picks at run time. Inside,
/// `FMA` says that it is compiled for one of the latter, or for NEON, `WIDE` for AVX-512, with 32 registers of 16 floats, and `VNNI` that
/// AVX-512 VNNI is there too; `madd::<FMA>` is `a * b + c`, fused where the instruction exists.
macro_rules! per_isa {
    ($($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool, const WIDE: bool, const VNNI: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true, false, false>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true, true, false>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
                fn vnni($($arg: $ty),*) $(-> $ret)? {
                    body::<true, true, true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
                    if is_x86_feature_detected!("avx512vnni") {
                        // SAFETY: the CPU has these, just tested (a cached load), and no CPU has them without AVX2, FMA and F16C.
                        return unsafe { vnni($($arg),*) };
                    }
                    // SAFETY: as above, but for VNNI.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                    // SAFETY: the CPU has AVX2, FMA and F16C, just tested (a cached load).
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }, false, false>($($arg),*)
        }
    )*};
}

mod attention;
mod attention_int8;
mod products;

pub use attention::{Weights, add_values_f16, add_values_f32, ask_for, exponentials, mix, scores_f16, scores_f32};
pub use attention_int8::{IntWeights, add_values_i8, quantize_i16, quantize_weights, scores_i8};
pub use products::{Gate, Products, Sums, add_scaled, gelu_gate, relu2_gate, silu_gate, store};

#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adds the lanes pairwise.
#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Adding it rounds a float below 2^22 to an integer, half to even, which then stands in the low mantissa bits: conversion
/// without a conversion instruction, so that loops vectorise (Rust's own casts saturate, which costs more than the rest).
const TO_INTEGER: f32 = 12_582_912.0;

/// `e^x` to about 2 ulp between -87.3 and 88.3, clamped above and 0 below. Cody-Waite reduction and a degree-6 polynomial (the
/// scheme of Cephes `expf`), branch-free.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * std::f32::consts::LOG2_E + TO_INTEGER;
    let power = shifted - TO_INTEGER;
    let r = madd::<FMA>(power, -LN2_LOW, madd::<FMA>(power, -LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4;
    p = madd::<FMA>(p, r, 1.398_199_9e-3);
    p = madd::<FMA>(p, r, 8.333_452e-3);
    p = madd::<FMA>(p, r, 4.166_579_6e-2);
    p = madd::<FMA>(p, r, 1.666_666_5e-1);
    p = madd::<FMA>(p, r, 0.5);
    let value = madd::<FMA>(p * r, r, r) + 1.0;
    // 2^power: its low 9 bits, biased, are the exponent field; the rest is shifted out.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { value * scale }
}

/// The largest value of `x` under `f`, at least `start`; NaN never wins.
#[inline(always)]
fn max_of(x: &[f32], start: f32, f: impl Fn(f32) -> f32) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [start; CHAINS * LANES];
    let (together, rest) = x.as_chunks::<{ CHAINS * LANES }>();
    for chunk in together {
        for i in 0..CHAINS * LANES {
            lanes[i] = larger(lanes[i], f(chunk[i]));
        }
    }
    let (alone, rest) = rest.as_chunks::<LANES>();
    for chunk in alone {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], f(chunk[i]));
        }
    }
    let mut width = lanes.len() / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = larger(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    rest.iter().fold(lanes[0], |max, &x| larger(max, f(x)))
}

per_isa! {
    /// `Σ a·b`; the slices have one length.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [[0f32; LANES]; CHAINS];
        let (a_chunks, a_rest) = a.as_chunks::<{ CHAINS * LANES }>();
        let (b_chunks, b_rest) = b.as_chunks::<{ CHAINS * LANES }>();
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for i in 0..CHAINS * LANES {
                let lane = &mut lanes.as_flattened_mut()[i];
                *lane = madd::<FMA>(a[i], b[i], *lane);
            }
        }
        for ((a, b), lane) in a_rest.iter().zip(b_rest).zip(lanes.as_flattened_mut()) {
            *lane = madd::<FMA>(*a, *b, *lane);
        }
        let [mut sum, others @ ..] = lanes;
        for other in others {
            for i in 0..LANES {
                sum[i] += other[i];
            }
        }
        sum_lanes(sum)
    }

    /// `y += alpha · x`.
    pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = madd::<FMA>(alpha, *x, *y);
        }
    }

    /// `y += x`.
    pub fn add(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += *x;
        }
    }

    /// RMSNorm of one row: `out = gain · x / sqrt(mean(x²) + eps)`.
    pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
            *out = gain * (x * scale);
        }
    }

    /// [`rms_norm`] of a row in its place.
    pub fn rms_norm_in_place(x: &mut [f32], gain: &[f32], eps: f32) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for (x, gain) in x.iter_mut().zip(gain) {
            *x = gain * (*x * scale);
        }
    }

    /// `log Σ e^x` for log-probabilities, the sum in f64; not finite where a value is NaN or the largest is infinite.
    pub fn log_sum_exp(x: &[f32]) -> f64 {
        let max = max_of(x, f32::NEG_INFINITY, |x| x);
        let mut lanes = [0f64; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += f64::from(exp::<FMA>(chunk[i] - max));
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(exp::<FMA>(x - max));
        }
        f64::from(max) + lanes.iter().sum::<f64>().ln()
    }

    /// `y = alpha · x`, of as many numbers.
    pub fn scale(alpha: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = alpha * x;
        }
    }

    /// Rotates pairs: `(a, b)` becomes `(a cos - b sin, b cos + a sin)`; the slices have one length.
    pub fn rotate(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32]) {
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }

    /// `Σ x` of int8 values.
    pub fn sum(x: &[i8]) -> i32 {
        x.iter().map(|&x| i32::from(x)).sum()
    }

    /// Quantises one row to int8 (BitLinear: `s = 127 / max(absmax, 1e-5)`, round half to even) and returns `s`.
    pub fn quantize_row(x: &[f32], values: &mut [i8]) -> f32 {
        let scale = 127.0 / max_of(x, 1e-5, f32::abs);
        for (value, x) in values.iter_mut().zip(x) {
            // |x * scale| rounds to at most 127 by the choice of the scale, so the low byte is the integer.
            *value = (x * scale + TO_INTEGER).to_bits() as u8 as i8;
        }
        scale
    }
}

/// Calls `f(row index, row)` for every row of `width` values, rows split over the team.
pub fn for_each_row<T: Send>(team: &Team, x: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let n_rows = x.len() / width;
    let x = SharedMut::new(x);
    team.split(n_rows, ROWS, |rows| {
        for row in rows {
            // SAFETY: the team hands out every row once, and rows do not overlap.
            f(row, unsafe { x.slice(row * width..(row + 1) * width) });
        }
    });
}

/// Rows that a worker takes at once: a few tokens are done before another worker has woken up.
const ROWS: usize = 8;

thread_local! {
    /// The row that is being quantised.
    static ROW: RefCell<Aligned<f32>> = RefCell::default();
}

/// Quantises `m` rows of `k` values that `make(token, row)` writes, split over the team.
pub fn quantize(
    team: &Team,
    m: usize,
    k: usize,
    make: &(dyn Fn(usize, &mut [f32]) + Sync),
    out: &mut QuantizedActivations,
) {
    out.resize(m, k);
    let values = SharedMut::new(&mut out.values);
    let scales = SharedMut::new(&mut out.scales);
    team.split(m, ROWS, |tokens| {
        ROW.with_borrow_mut(|row| {
            row.resize(k);
            for token in tokens {
                make(token, row);
                // SAFETY: every token is visited once, and its values and its scale are its own.
                let (values, scale) =
                    unsafe { (values.slice(token * k..(token + 1) * k), scales.slice(token..token + 1)) };
                scale[0] = quantize_row(row, values);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_of_known_rows() {
        let row: Vec<f32> = (0..1001).map(|i| (i % 37) as f32 * 0.5 - 6.0).collect();
        let expected = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&row) - expected).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0, f32::NEG_INFINITY]) - 1000.0 - 2f64.ln()).abs() < 1e-6);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!log_sum_exp(&[0.0, bad, 1.0]).is_finite());
            let row: Vec<f32> = (0..40).map(|i| if i == 21 { bad } else { 0.0 }).collect();
            assert!(!log_sum_exp(&row).is_finite());
        }
        assert!(!log_sum_exp(&[]).is_finite());
    }

    #[test]
    fn rows_quantise_half_to_even_and_never_reach_minus_128() {
        let mut values = [0i8; 6];
        let scale = quantize_row(&[127.0, -127.0, 0.5, 1.5, 2.5, -2.5], &mut values);
        assert_eq!((scale, values), (1.0, [127, -127, 0, 2, 2, -2]));
        assert_eq!(quantize_row(&[0.0; 6], &mut values), 127.0 / 1e-5);
        assert_eq!(values, [0; 6]);
    }

    #[test]
    fn a_dot_product_of_any_length_is_right() {
        for len in 0..100 {
            let a: Vec<f32> = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i % 5) as f32 - 2.0).collect();
            let expected: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&a, &b), expected);
        }
    }
}
