//! What distinguishes one transformer from another, as data. The forward pass in [`crate::transformer`] is written once.

use serde::{Deserialize, Serialize};

/// The model families that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// BitNet b1.58: ternary linear layers, sub-norms, relu².
    Bitnet,
    /// Llama and SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: q/k/v biases.
    Qwen2,
    /// Gemma 3: GeGLU, q/k norms, norms after each block, local and global attention.
    Gemma3,
    /// MiniCPM: scaled embeddings, residuals and logits.
    Minicpm,
}

/// The gate of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `relu(x)²`.
    Relu2,
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeLayout {
    /// Element `j` with `j + head_dim / 2` (NeoX, Hugging Face).
    HalfSplit,
    /// Element `2j` with `2j + 1` (the original; GGUF files of arch `llama`, whose q/k rows are permuted to match).
    Interleaved,
}

/// Llama 3's frequency scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Division of the low frequencies.
    pub factor: f32,
    /// Wavelengths above `original_context / low_freq_factor` are divided by `factor`.
    pub low_freq_factor: f32,
    /// Wavelengths below `original_context / high_freq_factor` stay.
    pub high_freq_factor: f32,
    /// The context the model was first trained with.
    pub original_context: usize,
}

/// Sliding-window attention in all but every `pattern`-th layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// Positions a local layer sees, its own included.
    pub window: usize,
    /// Layer `i` is global when `(i + 1) % pattern == 0`.
    pub pattern: usize,
    /// RoPE base of the local layers.
    pub rope_theta: f32,
}

/// Everything the forward pass needs to know about a model besides its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// RoPE base (of the global layers).
    pub rope_theta: f32,
    /// RMSNorm epsilon.
    pub norm_eps: f32,
    /// Gate of the feed-forward block.
    pub activation: Activation,
    /// How heads rotate in the weights as loaded.
    pub rope_layout: RopeLayout,
    /// Llama 3 frequency scaling.
    pub rope_scaling: Option<RopeScaling>,
    /// The head is the embedding.
    pub tied: bool,
    /// Norms before the output and down projections (BitNet).
    pub sub_norms: bool,
    /// Norms of each query and key head (Gemma 3).
    pub qk_norm: bool,
    /// Norms after the attention and the feed-forward block (Gemma 3).
    pub post_norms: bool,
    /// Biases of the q, k and v projections (Qwen2).
    pub qkv_bias: bool,
    /// Factor on the embeddings.
    pub embedding_scale: f32,
    /// Factor on what each block adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// Local attention.
    pub sliding: Option<SlidingWindow>,
}

/// The largest head that attention has room for.
pub(crate) const MAX_HEAD_DIM: usize = 1024;

impl ModelConfig {
    /// A plain pre-norm transformer of the given shape; families switch on what they add.
    #[expect(clippy::too_many_arguments, reason = "the eight numbers of a transformer's shape")]
    pub fn new(
        architecture: Architecture,
        n_layers: usize,
        hidden: usize,
        ffn: usize,
        n_heads: usize,
        n_kv_heads: usize,
        head_dim: usize,
        vocab: usize,
    ) -> Self {
        Self {
            architecture,
            n_layers,
            hidden,
            ffn,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab,
            context: 4096,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            activation: Activation::Silu,
            rope_layout: RopeLayout::HalfSplit,
            rope_scaling: None,
            tied: true,
            sub_norms: false,
            qk_norm: false,
            post_norms: false,
            qkv_bias: false,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            sliding: None,
        }
    }

    /// Checks that the numbers make a transformer, so that nothing downstream divides by zero or allocates absurdly.
    pub fn validate(&self) -> Result<(), String> {
        let sizes = [
            ("layers", self.n_layers, 1, 1024),
            ("hidden size", self.hidden, 1, 1 << 20),
            ("ffn size", self.ffn, 1, 1 << 22),
            ("heads", self.n_heads, 1, 1024),
            ("kv heads", self.n_kv_heads, 1, self.n_heads),
            ("head size", self.head_dim, 2, MAX_HEAD_DIM),
            ("vocabulary", self.vocab, 1, 1 << 24),
            ("context", self.context, 1, 1 << 28),
        ];
        let window = self.sliding.map(|sliding| ("sliding window", sliding.window, 1, 1 << 28));
        for (what, value, low, high) in sizes.into_iter().chain(window) {
            if !(low..=high).contains(&value) {
                return Err(format!("{what} is {value}, expected {low} to {high}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(format!("{} heads cannot share {} kv heads evenly", self.n_heads, self.n_kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head size {} is odd, RoPE needs pairs", self.head_dim));
        }
        let local_rope_theta = self.sliding.map_or(self.rope_theta, |sliding| sliding.rope_theta);
        let floats = [
            self.rope_theta,
            local_rope_theta,
            self.norm_eps,
            self.embedding_scale,
            self.residual_scale,
            self.logit_scale,
        ];
        if floats.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err("a rope base, epsilon or scale is not a positive number".to_owned());
        }
        Ok(())
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// `(n, k)` of a linear layer.
    pub fn linear_shape(&self, which: crate::weights::LinearName) -> (usize, usize) {
        use crate::weights::LinearName::*;
        match which {
            Q => (self.q_dim(), self.hidden),
            K | V => (self.kv_dim(), self.hidden),
            O => (self.hidden, self.q_dim()),
            Gate | Up => (self.ffn, self.hidden),
            Down => (self.hidden, self.ffn),
        }
    }

    /// Weights of all linear layers, without embedding and head.
    pub fn linear_parameters(&self) -> u64 {
        let shapes = crate::weights::LinearName::ALL.iter().map(|&which| self.linear_shape(which));
        self.n_layers as u64 * shapes.map(|(n, k)| n as u64 * k as u64).sum::<u64>()
    }

    /// Weights of the embedding, and of the head where it is not the same.
    pub fn embedding_parameters(&self) -> u64 {
        (self.vocab * self.hidden) as u64 * if self.tied { 1 } else { 2 }
    }

    /// All weights: linear layers, embedding and head, norms and biases.
    pub fn parameters(&self) -> u64 {
        let vectors = crate::weights::inventory::vectors(self);
        let vectors = vectors.iter().map(|name| name.len(self) as u64).sum::<u64>();
        self.linear_parameters() + self.embedding_parameters() + vectors
    }

    /// The sliding window of layer `layer`, if it is a local one.
    pub fn window(&self, layer: usize) -> Option<SlidingWindow> {
        self.sliding.filter(|sliding| !(layer + 1).is_multiple_of(sliding.pattern.max(1)))
    }
}
