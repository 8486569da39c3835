//! What becomes of the sums of a kernel while they are in the cache: scales, biases, residuals and gates, for all tokens in one call.

use super::{MAX_EXPONENT, exp, madd};
use crate::team::Columns;

/// What becomes of two products: `y = activation(gate) · up`.
pub type Gate = fn(&Products<'_>, &Products<'_>, &mut Columns<'_, f32>);

/// The products of some rows of a matrix with all tokens, as a kernel left them.
#[derive(Clone, Copy)]
pub struct Products<'a> {
    /// Those of token `t` begin at `t * stride`.
    pub sums: &'a [u32],
    /// From token to token.
    pub stride: usize,
    /// What the bits in `sums` are.
    pub kind: Sums<'a>,
    /// One for each row, or none.
    pub bias: Option<&'a [f32]>,
}

/// Bits of sums.
#[derive(Clone, Copy)]
pub enum Sums<'a> {
    /// Of floats, which are the products.
    F32,
    /// Of int32 sums: a product is `sum · (scale / scales[token])`.
    I32 {
        /// Of the matrix.
        scale: f32,
        /// Of the tokens.
        scales: &'a [f32],
    },
}

impl Products<'_> {
    /// `y = with(product, y)` for the rows of a token.
    #[inline(always)]
    fn each(&self, token: usize, y: &mut [f32], with: impl Fn(f32, f32) -> f32) {
        let n = y.len();
        let sums = &self.sums[token * self.stride..][..n];
        macro_rules! each {
            ($product:expr) => {
                for i in 0..n {
                    y[i] = with($product(sums[i], i), y[i]);
                }
            };
        }
        let bias = self.bias.map(|bias| &bias[..n]);
        match (self.kind, bias) {
            (Sums::F32, None) => each!(|sum, _| f32::from_bits(sum)),
            (Sums::F32, Some(bias)) => each!(|sum, i: usize| f32::from_bits(sum) + bias[i]),
            (Sums::I32 { scale, scales }, None) => {
                let factor = scale / scales[token];
                each!(|sum: u32, _| sum.cast_signed() as f32 * factor)
            }
            (Sums::I32 { scale, scales }, Some(bias)) => {
                let factor = scale / scales[token];
                each!(|sum: u32, i: usize| sum.cast_signed() as f32 * factor + bias[i])
            }
        }
    }
}

per_isa! {
    /// `y = product`, in every row of `y` for the token of that number.
    pub fn store(products: &Products<'_>, y: &mut Columns<'_, f32>) {
        for token in 0..y.n_rows() {
            products.each(token, y.row(token), |product, _| product);
        }
    }

    /// `y += alpha · product`.
    pub fn add_scaled(products: &Products<'_>, alpha: f32, y: &mut Columns<'_, f32>) {
        for token in 0..y.n_rows() {
            products.each(token, y.row(token), |product, y| madd::<FMA>(alpha, product, y));
        }
    }

    /// `y = relu(gate)² · up`, the gate of BitNet b1.58.
    pub fn relu2_gate(gate: &Products<'_>, up: &Products<'_>, y: &mut Columns<'_, f32>) {
        for token in 0..y.n_rows() {
            gate.each(token, y.row(token), |gate, _| gate.max(0.0) * gate.max(0.0));
            up.each(token, y.row(token), |up, gate| gate * up);
        }
    }

    /// `y = silu(gate) · up`, the SwiGLU gate.
    pub fn silu_gate(gate: &Products<'_>, up: &Products<'_>, y: &mut Columns<'_, f32>) {
        for token in 0..y.n_rows() {
            gate.each(token, y.row(token), |gate, _| gate / (1.0 + exp::<FMA>((-gate).min(MAX_EXPONENT))));
            up.each(token, y.row(token), |up, gate| gate * up);
        }
    }

    /// `y = gelu(gate) · up` with the tanh approximation, the GeGLU gate of Gemma.
    pub fn gelu_gate(gate: &Products<'_>, up: &Products<'_>, y: &mut Columns<'_, f32>) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        for token in 0..y.n_rows() {
            // tanh(u) = 1 - 2 / (e^2u + 1), so (1 + tanh(u)) / 2 = 1 - 1 / (e^2u + 1).
            gate.each(token, y.row(token), |x, _| {
                let inner = SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
                x * (1.0 - 1.0 / (exp::<FMA>((2.0 * inner).min(MAX_EXPONENT)) + 1.0))
            });
            up.each(token, y.row(token), |up, gate| gate * up);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::SharedMut;

    #[test]
    fn gates_match_their_definitions_in_f64() {
        let x: Vec<f32> = (-400..400).map(|i| i as f32 / 20.0).chain([-1e3, -100.0, 100.0, 1e3]).collect();
        let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
        let up = vec![1.5f32.to_bits(); x.len()];
        let gated = |gate: Gate| {
            let mut y = vec![f32::NAN; x.len()];
            let [gate_products, up] =
                [&bits, &up].map(|sums| Products { sums, stride: x.len(), kind: Sums::F32, bias: None });
            let shared = SharedMut::new(&mut y);
            // SAFETY: nobody else has a part of `y`.
            gate(&gate_products, &up, &mut unsafe { shared.columns(x.len(), 0..x.len()) });
            y
        };
        let (relu2, silu, gelu) = (gated(relu2_gate), gated(silu_gate), gated(gelu_gate));
        for (i, &x) in x.iter().enumerate() {
            let x = f64::from(x);
            let close = |got: f32, want: f64| (f64::from(got) - want).abs() <= want.abs() * 2e-6 + 2e-6;
            assert!(close(relu2[i], 1.5 * x.max(0.0).powi(2)));
            assert!(close(silu[i], 1.5 * x / (1.0 + (-x).exp())), "silu {x}");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            assert!(close(gelu[i], 1.5 * x * 0.5 * (1.0 + u.tanh())), "gelu {x}: {}", gelu[i]);
        }
    }
}
