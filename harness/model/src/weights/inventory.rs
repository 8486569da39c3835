//! Which tensors a model of a given shape consists of.

use crate::config::ModelConfig;
use crate::weights::{LinearName, VectorName};

/// Every norm and bias of a model, layer by layer, the output norm last.
pub fn vectors(config: &ModelConfig) -> Vec<VectorName> {
    let mut names = Vec::new();
    for layer in 0..config.n_layers {
        names.extend([VectorName::AttnNorm(layer), VectorName::FfnNorm(layer)]);
        if config.sub_norms {
            names.extend([VectorName::AttnSubNorm(layer), VectorName::FfnSubNorm(layer)]);
        }
        if config.qk_norm {
            names.extend([VectorName::QNorm(layer), VectorName::KNorm(layer)]);
        }
        if config.post_norms {
            names.extend([VectorName::PostAttnNorm(layer), VectorName::PostFfnNorm(layer)]);
        }
        if config.qkv_bias {
            names.extend([LinearName::Q, LinearName::K, LinearName::V].map(|which| VectorName::Bias(layer, which)));
        }
    }
    names.push(VectorName::OutputNorm);
    names
}

/// Every linear layer, in the order of the forward pass.
pub fn linears(config: &ModelConfig) -> impl Iterator<Item = (usize, LinearName)> {
    (0..config.n_layers).flat_map(|layer| LinearName::ALL.map(|which| (layer, which)))
}
