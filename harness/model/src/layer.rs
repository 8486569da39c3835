//! The weights of one transformer block.

use std::ops::Deref;

use ternbench_kernels::{AlignedBytes, Bytes, Dispatch, Linear, Weights};

use crate::breakdown::Part;
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::weights::{LinearName, LinearWeights, VectorName, WeightSource};

/// One block. What a family lacks is `None`.
pub(crate) struct Layer {
    pub(crate) attn_norm: Gain,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) q_norm: Option<Gain>,
    pub(crate) k_norm: Option<Gain>,
    pub(crate) attn_sub_norm: Option<Gain>,
    pub(crate) o: Linear,
    pub(crate) post_attn_norm: Option<Gain>,
    pub(crate) ffn_norm: Gain,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) ffn_sub_norm: Option<Gain>,
    pub(crate) down: Linear,
    pub(crate) post_ffn_norm: Option<Gain>,
}

/// The gains of a norm: f32.
pub(crate) struct Gain(pub(crate) Bytes);

impl From<Vec<f32>> for Gain {
    fn from(gains: Vec<f32>) -> Self {
        let mut bytes = AlignedBytes::zeroed(size_of_val(&gains[..]));
        bytes.copy_from_slice(bytemuck::cast_slice(&gains));
        Self(bytes.into())
    }
}

impl Deref for Gain {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

/// What was counted while the weights were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Weights of the linear layers.
    pub linear_weights: u64,
    /// Those that came as trits.
    pub ternary_weights: u64,
    /// Trits that are 0.
    pub zero_trits: u64,
    /// Trits that are +1.
    pub plus_trits: u64,
}

impl Census {
    pub(crate) fn of(layers: &[Layer]) -> Self {
        let mut census = Self::default();
        for linear in layers.iter().flat_map(Layer::linears) {
            let n_weights = (linear.n() * linear.k()) as u64;
            census.linear_weights += n_weights;
            if let Weights::Ternary(weights) = &linear.weights {
                census.ternary_weights += n_weights;
                census.zero_trits += weights.about().zeros;
                census.plus_trits += weights.about().plus;
            }
        }
        census
    }
}

impl Layer {
    /// Loads block `i` and packs its ternary matrices for `kernels`.
    pub(crate) fn load(
        source: &dyn WeightSource,
        config: &ModelConfig,
        i: usize,
        kernels: &Dispatch,
    ) -> Result<Self, LoadError> {
        let linear = |which| -> Result<Linear, LoadError> {
            let mut linear = match source.packed(i, which) {
                Some(weights) => Linear { weights: Weights::Ternary(weights), bias: None },
                None => match source.linear(i, which)? {
                    LinearWeights::Ternary(trits) => Linear::ternary(kernels.of(trits.n(), trits.k()), &trits),
                    LinearWeights::Dense(matrix) => Linear::dense(matrix, kernels.activations),
                },
            };
            if config.qkv_bias && matches!(which, LinearName::Q | LinearName::K | LinearName::V) {
                linear.bias = Some(source.vector(VectorName::Bias(i, which))?);
            }
            Ok(linear)
        };
        let norm = |name| source.vector(name).map(Gain::from);
        let optional = |wanted: bool, name| wanted.then(|| norm(name)).transpose();
        Ok(Self {
            attn_norm: norm(VectorName::AttnNorm(i))?,
            q: linear(LinearName::Q)?,
            k: linear(LinearName::K)?,
            v: linear(LinearName::V)?,
            q_norm: optional(config.qk_norm, VectorName::QNorm(i))?,
            k_norm: optional(config.qk_norm, VectorName::KNorm(i))?,
            attn_sub_norm: optional(config.sub_norms, VectorName::AttnSubNorm(i))?,
            o: linear(LinearName::O)?,
            post_attn_norm: optional(config.post_norms, VectorName::PostAttnNorm(i))?,
            ffn_norm: norm(VectorName::FfnNorm(i))?,
            gate: linear(LinearName::Gate)?,
            up: linear(LinearName::Up)?,
            ffn_sub_norm: optional(config.sub_norms, VectorName::FfnSubNorm(i))?,
            down: linear(LinearName::Down)?,
            post_ffn_norm: optional(config.post_norms, VectorName::PostFfnNorm(i))?,
        })
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    pub(crate) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The layers whose time is booked for `part`.
    pub(crate) fn linears_of(&self, part: Part) -> Vec<&Linear> {
        match part {
            Part::Qkv => vec![&self.q, &self.k, &self.v],
            Part::O => vec![&self.o],
            Part::GateUp => vec![&self.gate, &self.up],
            Part::Down => vec![&self.down],
            Part::Attention | Part::Head | Part::Other => Vec::new(),
        }
    }

    pub(crate) fn norms(&self) -> impl Iterator<Item = &Gain> {
        let optional = [
            &self.q_norm,
            &self.k_norm,
            &self.attn_sub_norm,
            &self.post_attn_norm,
            &self.ffn_sub_norm,
            &self.post_ffn_norm,
        ];
        [&self.attn_norm, &self.ffn_norm].into_iter().chain(optional.into_iter().flatten())
    }

    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Gain> {
        let optional = [
            &mut self.q_norm,
            &mut self.k_norm,
            &mut self.attn_sub_norm,
            &mut self.post_attn_norm,
            &mut self.ffn_sub_norm,
            &mut self.post_ffn_norm,
        ];
        [&mut self.attn_norm, &mut self.ffn_norm].into_iter().chain(optional.into_iter().flatten())
    }
}
