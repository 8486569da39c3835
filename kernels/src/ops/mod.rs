//! Float operations of the forward pass: norms, dot products, attention, gates, and the int8 quantiser.
//!
//! Each is a plain loop over a fixed number of lanes, compiled for the baseline, for AVX2 with FMA and F16C, and for AVX-512. Sums run in an
//! order that depends on the length alone, so results change neither with the batch nor with the number of threads.

use crate::activation::QuantizedActivations;
use crate::team::{SharedMut, Team};

/// Lanes of a running sum: two AVX2 registers, four NEON ones.
pub const LANES: usize = 16;

/// Sums or maxima that are kept side by side where each is one long chain, so that an operation need not wait for the one before.
const CHAINS: usize = 4;

/// Compiles a function for the baseline, for AVX2, FMA and F16C, and for AVX-512, and picks at run time. Inside, `FMA` says that it is
/// compiled for one of the latter, or for NEON, and `WIDE` for AVX-512, with 32 registers of 16 floats; `madd::<FMA>` is `a * b + c`, fused
/// where the instruction exists.
macro_rules! per_isa {
    ($($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool, const WIDE: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true, false>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true, true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
                    // SAFETY: the CPU has these, just tested (a cached load), and no CPU has them without AVX2, FMA and F16C.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                    // SAFETY: the CPU has AVX2, FMA and F16C, just tested (a cached load).
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }, false>($($arg),*)
        }
    )*};
}

mod attention;
mod attention_int8;
mod blocks;
mod products;
mod softmax;

pub use attention::{Query, Scores, add_values_f16, add_values_f32, scores_f16, scores_f32};
pub use attention_int8::{IntWeights, quantize_i16, quantize_weights, scores_i8, values_i8};
pub use blocks::{Blocks, ask_for_lines};
pub use products::{Gate, Products, Sums, add_scaled, gelu_gate, relu2_gate, silu_gate, store};
pub use softmax::{exponentials, mix};

#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Four perfect shuffles. Written out so that each is a byte interleave, one instruction on every CPU with vectors.
#[inline(always)]
fn transposed_16(mut rows: [[i8; 16]; 16]) -> [[i8; 16]; 16] {
    for _ in 0..4 {
        let mut next = [[0; 16]; 16];
        for i in 0..8 {
            for j in 0..8 {
                (next[2 * i][2 * j], next[2 * i][2 * j + 1]) = (rows[i][j], rows[i + 8][j]);
                (next[2 * i + 1][2 * j], next[2 * i + 1][2 * j + 1]) = (rows[i][j + 8], rows[i + 8][j + 8]);
            }
        }
        rows = next;
    }
    rows
}

/// [`transposed_16`] of rows 0 to 15 and of rows 16 to 31, beside each other in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn transpose_32(rows: &[[i8; 16]; 32], out: &mut [[i8; 32]; 16]) {
    use std::arch::x86_64::*;
    let mut a = [_mm256_setzero_si256(); 16];
    for i in 0..16 {
        // SAFETY: the arrays hold the 16 bytes each that are read; the load needs no alignment.
        a[i] = unsafe { _mm256_loadu2_m128i(rows[i + 16].as_ptr().cast(), rows[i].as_ptr().cast()) };
    }
    for _ in 0..4 {
        let mut next = a;
        for i in 0..8 {
            next[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]);
            next[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
        }
        a = next;
    }
    for (out, column) in out.iter_mut().zip(a) {
        // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), column) };
    }
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

/// The largest argument of [`exp`].
const MAX_EXPONENT: f32 = 88.3;

/// `e^x` to about 2 ulp from -87.3 to [`MAX_EXPONENT`], 0 below -87.7; of more it makes no sense. Cody-Waite reduction and a degree-7 polynomial (the
/// scheme of Cephes `expf`), in pairs of terms (Estrin), as a chain of products is what this waits for.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Below -87.7 the exponent field becomes 0, and so the result. NaN stays.
    let x = if x < -88.0 { -88.0 } else { x };
    let shifted = madd::<FMA>(x, std::f32::consts::LOG2_E, TO_INTEGER);
    let power = shifted - TO_INTEGER;
    let r = madd::<FMA>(power, -LN2_LOW, madd::<FMA>(power, -LN2_HIGH, x));
    let r2 = r * r;
    let low = madd::<FMA>(1.666_666_5e-1, r, 0.5);
    let mid = madd::<FMA>(8.333_452e-3, r, 4.166_579_6e-2);
    let high = madd::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = madd::<FMA>(madd::<FMA>(high, r2, mid), r2, low);
    let value = madd::<FMA>(p, r2, r + 1.0);
    // 2^power: its low 9 bits, biased, are the exponent field; the rest is shifted out.
    value * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// The largest value of `f` over numbers in the same place of all of `x`, which have one length, at least `start`; NaN never wins.
#[inline(always)]
fn max_of<const N: usize>(x: [&[f32]; N], start: f32, f: impl Fn([f32; N]) -> f32) -> f32 {
    /// Takes the numbers from `first` on into as many lanes as there are in `lanes`.
    #[inline(always)]
    fn take<const N: usize>(lanes: &mut [f32], x: [&[f32]; N], first: usize, f: impl Fn([f32; N]) -> f32) {
        let width = lanes.len();
        let x = x.map(|x| &x[first..][..width]);
        for i in 0..width {
            let mut numbers = [0.0; N];
            for n in 0..N {
                numbers[n] = x[n][i];
            }
            lanes[i] = larger(lanes[i], f(numbers));
        }
    }
    let mut lanes = [start; CHAINS * LANES];
    let mut first = 0;
    while x[0].len() - first >= lanes.len() {
        take(&mut lanes, x, first, &f);
        first += lanes.len();
    }
    while x[0].len() - first >= LANES {
        take(&mut lanes[..LANES], x, first, &f);
        first += LANES;
    }
    take(&mut lanes[..x[0].len() - first], x, first, &f);
    let mut width = lanes.len() / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = larger(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The larger number, `a` where either is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Columns as rows, four bytes each.
///
/// # Safety
/// The CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transposed(block: [[[i8; 4]; 8]; 8]) -> [[[i8; 4]; 8]; 8] {
    use std::arch::x86_64::*;
    // SAFETY: the CPU has AVX2, by this function's contract; a register is as long as a row.
    unsafe {
        let row = |i: usize| std::mem::transmute::<[[i8; 4]; 8], __m256i>(block[i]);
        let mut pairs = [_mm256_setzero_si256(); 8];
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_epi32(row(2 * i), row(2 * i + 1));
            pairs[2 * i + 1] = _mm256_unpackhi_epi32(row(2 * i), row(2 * i + 1));
        }
        // Column c of four rows, and in the upper half column c + 4.
        let mut fours = [_mm256_setzero_si256(); 8];
        for half in 0..2 {
            for high in 0..2 {
                let (a, b) = (pairs[4 * half + high], pairs[4 * half + 2 + high]);
                fours[4 * half + 2 * high] = _mm256_unpacklo_epi64(a, b);
                fours[4 * half + 2 * high + 1] = _mm256_unpackhi_epi64(a, b);
            }
        }
        let mut columns = [_mm256_setzero_si256(); 8];
        for c in 0..4 {
            columns[c] = _mm256_permute2x128_si256::<0x20>(fours[c], fours[c + 4]);
            columns[c + 4] = _mm256_permute2x128_si256::<0x31>(fours[c], fours[c + 4]);
        }
        std::mem::transmute::<[__m256i; 8], [[[i8; 4]; 8]; 8]>(columns)
    }
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

    /// RMSNorm of one row: `out = gain · x / sqrt(mean(x²) + eps)`.
    pub fn rms_norm(x: &[f32], norm: RmsNorm<'_>, out: &mut [f32]) {
        let factor = norm.factor(x);
        for ((out, x), gain) in out.iter_mut().zip(x).zip(norm.gain) {
            *out = gain * (x * factor);
        }
    }

    /// [`rms_norm`] of a row in its place.
    pub fn rms_norm_in_place(x: &mut [f32], norm: RmsNorm<'_>) {
        let factor = norm.factor(x);
        for (x, gain) in x.iter_mut().zip(norm.gain) {
            *x = gain * (*x * factor);
        }
    }

    /// `log Σ e^x` for log-probabilities, the sum in f64; not finite where a value is NaN or the largest is infinite.
    pub fn log_sum_exp(x: &[f32]) -> f64 {
        let max = max_of([x], f32::NEG_INFINITY, |[x]| x);
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

    /// `out[i][t] = rows[t][i]`: four values of each of eight rows in turn; all have one length.
    pub fn interleave_eight(rows: &[&[[i8; 4]]; 8], out: &mut [[[i8; 4]; 8]]) {
        let mut first = 0;
        #[cfg(target_arch = "x86_64")]
        if FMA {
            while first + 8 <= out.len() {
                let mut block = [[[0; 4]; 8]; 8];
                for t in 0..8 {
                    block[t].copy_from_slice(&rows[t][first..first + 8]);
                }
                // SAFETY: `FMA` says that the CPU has AVX2.
                let columns = unsafe { transposed(block) };
                out[first..first + 8].copy_from_slice(&columns);
                first += 8;
            }
        }
        for (i, out) in out.iter_mut().enumerate().skip(first) {
            for t in 0..8 {
                out[t] = rows[t][i];
            }
        }
    }

    /// `out[i][t] = rows[t][i]`: 16 values of each of 32 tokens, as a vector of tokens for each value. Returns the largest `Σ |x|` of a token.
    pub fn transpose_tokens(rows: &[[i8; 16]; 32], out: &mut [[i8; 32]; 16]) -> i32 {
        #[cfg(target_arch = "x86_64")]
        if FMA {
            // SAFETY: `FMA` says that the CPU has AVX2.
            unsafe { transpose_32(rows, out) };
        }
        if !(FMA && cfg!(target_arch = "x86_64")) {
            for (half, rows) in rows.as_chunks().0.iter().enumerate() {
                for (out, column) in out.iter_mut().zip(transposed_16(*rows)) {
                    out[16 * half..][..16].copy_from_slice(&column);
                }
            }
        }
        let mut sums = [0u16; 32];
        for column in out.iter() {
            for t in 0..32 {
                sums[t] += u16::from(column[t].unsigned_abs());
            }
        }
        sums.into_iter().fold(0, u16::max).into()
    }

    /// Quantises one row to int8 (BitLinear: `s = 127 / max(absmax, 1e-5)`, round half to even) and returns `s`.
    pub fn quantize_row(x: &[f32], values: &mut [i8]) -> f32 {
        let scale = 127.0 / max_of([x], 1e-5, |[x]| x.abs());
        for (value, x) in values.iter_mut().zip(x) {
            *value = to_int8(x * scale);
        }
        scale
    }

    /// [`quantize_row`] of what [`rms_norm`] makes of `x`, to the bit; it is not stored.
    pub fn quantize_normed(x: &[f32], norm: RmsNorm<'_>, values: &mut [i8]) -> f32 {
        let factor = norm.factor(x);
        let normed = |x: f32, gain: f32| gain * (x * factor);
        let scale = 127.0 / max_of([x, norm.gain], 1e-5, |[x, gain]| normed(x, gain).abs());
        for ((value, x), gain) in values.iter_mut().zip(x).zip(norm.gain) {
            *value = to_int8(normed(*x, *gain) * scale);
        }
        scale
    }
}

/// An RMSNorm (arXiv 1910.07467).
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// One for each number of a row.
    pub gain: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
}

impl RmsNorm<'_> {
    /// `1 / sqrt(mean(x²) + eps)`.
    #[inline(always)]
    fn factor(self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }
}

/// A number that rounds to -127..=127, as are those that a scale was chosen for, half to even: the low byte is the integer.
#[inline(always)]
fn to_int8(x: f32) -> i8 {
    (x + TO_INTEGER).to_bits() as u8 as i8
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

/// Quantises rows of `k` numbers, normalised first where `norm` says so, split over the team.
pub fn quantize(team: &Team, rows: &[f32], norm: Option<RmsNorm<'_>>, k: usize, out: &mut QuantizedActivations) {
    let m = rows.len() / k;
    out.resize(m, k);
    let values = SharedMut::new(&mut out.values);
    let scales = SharedMut::new(&mut out.scales);
    team.split(m, ROWS, |tokens| {
        for token in tokens {
            let of_token = token * k..(token + 1) * k;
            // SAFETY: every token is visited once, and its values and its scale are its own.
            let (values, scale) = unsafe { (values.slice(of_token.clone()), scales.slice(token..token + 1)) };
            scale[0] = match norm {
                Some(norm) => quantize_normed(&rows[of_token], norm, values),
                None => quantize_row(&rows[of_token], values),
            };
        }
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
    fn a_row_normed_while_it_is_quantised_has_the_same_bits() {
        for len in [1, 15, 16, 17, 63, 64, 100, 257] {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let gain: Vec<f32> = (0..len).map(|i| 1.0 + (i % 5) as f32 * 0.25).collect();
            let norm = RmsNorm { gain: &gain, eps: 1e-5 };
            let mut normed = vec![0.0; len];
            rms_norm(&x, norm, &mut normed);
            let (mut expected, mut values) = (vec![0; len], vec![0; len]);
            assert_eq!(quantize_row(&normed, &mut expected), quantize_normed(&x, norm, &mut values));
            assert_eq!(expected, values);
        }
    }

    #[test]
    fn eight_rows_are_interleaved_whatever_their_length() {
        for len in 0..40 {
            let rows: Vec<Vec<[i8; 4]>> = (0..8).map(|t| (0..len).map(|i| [t, i, t + i, t - i]).collect()).collect();
            let rows: [&[[i8; 4]]; 8] = std::array::from_fn(|t| &rows[t][..]);
            let mut out = vec![[[99; 4]; 8]; usize::from(len.cast_unsigned())];
            interleave_eight(&rows, &mut out);
            assert!(out.iter().enumerate().all(|(i, out)| (0..8).all(|t| out[t] == rows[t][i])), "{len}");
        }
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
