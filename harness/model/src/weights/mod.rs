//! Weights, wherever they come from: a [`WeightSource`] hands out canonical tensors by name, and the transformer asks for
//! them one at a time, so that at no moment more than one matrix exists twice.

pub mod compare;
pub mod convert;
pub mod encode;
pub mod gguf;
pub mod inventory;
pub mod map;
pub(crate) mod output;
pub mod safetensors;
pub mod synthetic;
pub mod ternary;

use std::path::{Path, PathBuf};

use ternbench_kernels::driver::TernaryWeights;
use ternbench_kernels::{DenseMatrix, TernaryMatrix};

use crate::config::ModelConfig;
use crate::error::LoadError;

/// The linear layers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LinearName {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl LinearName {
    /// In the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];
}

/// The norm gains and biases of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorName {
    /// Before the attention: `hidden`.
    AttnNorm(usize),
    /// BitNet, before the output projection: `q_dim`.
    AttnSubNorm(usize),
    /// Gemma, after the attention: `hidden`.
    PostAttnNorm(usize),
    /// Before the feed-forward block: `hidden`.
    FfnNorm(usize),
    /// BitNet, before the down projection: `ffn`.
    FfnSubNorm(usize),
    /// Gemma, after the feed-forward block: `hidden`.
    PostFfnNorm(usize),
    /// Gemma, per query head: `head_dim`.
    QNorm(usize),
    /// Gemma, per key head: `head_dim`.
    KNorm(usize),
    /// Qwen, `q_dim` for Q and `kv_dim` for K and V.
    Bias(usize, LinearName),
    /// Before the head: `hidden`.
    OutputNorm,
}

impl VectorName {
    /// The block it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::OutputNorm => None,
            Self::AttnNorm(layer)
            | Self::AttnSubNorm(layer)
            | Self::PostAttnNorm(layer)
            | Self::FfnNorm(layer)
            | Self::FfnSubNorm(layer)
            | Self::PostFfnNorm(layer)
            | Self::QNorm(layer)
            | Self::KNorm(layer)
            | Self::Bias(layer, _) => Some(layer),
        }
    }

    /// How many values it has in `config`.
    pub fn len(self, config: &ModelConfig) -> usize {
        match self {
            Self::AttnSubNorm(_) => config.q_dim(),
            Self::FfnSubNorm(_) => config.ffn,
            Self::QNorm(_) | Self::KNorm(_) => config.head_dim,
            Self::Bias(_, which) => config.linear_shape(which).0,
            _ => config.hidden,
        }
    }
}

/// A linear layer as stored.
#[derive(Clone, Debug)]
pub enum LinearWeights {
    /// Trits and their scale.
    Ternary(TernaryMatrix),
    /// Floats or quantised blocks.
    Dense(DenseMatrix),
}

/// A tensor as its file stores it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// What it belongs to.
    pub part: ModelPart,
    /// Its type's name.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its dimensions, the row length last; of packed trits, as they are unpacked.
    pub shape: Vec<usize>,
    /// Stored bytes.
    pub bytes: u64,
}

/// The parts of a model that sizes are given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelPart {
    /// The linear layers.
    Linear,
    /// The embedding.
    Embedding,
    /// The head, where it is another tensor.
    Head,
    /// Norms, biases, scales and what else there is.
    Vectors,
}

/// A model's weights. Shapes are checked by the source: what it returns fits [`ModelConfig`].
pub trait WeightSource: Sync {
    /// The model's shape and family.
    fn config(&self) -> &ModelConfig;

    /// The token embedding, `vocab x hidden`.
    fn embedding(&self) -> Result<DenseMatrix, LoadError>;

    /// The head, `vocab x hidden`, or `None` when it is the embedding.
    fn head(&self) -> Result<Option<DenseMatrix>, LoadError>;

    /// A linear layer of block `layer`, rows in the order that `config().rope_layout` says.
    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError>;

    /// The same, where it was packed before for the kernels that will run: see [`crate::packed`].
    fn packed(&self, _layer: usize, _which: LinearName) -> Option<TernaryWeights> {
        None
    }

    /// A norm's gain (with whatever the family adds to it already added) or a bias.
    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError>;

    /// Bytes of the file or files; 0 for synthetic weights.
    fn stored_bytes(&self) -> u64;

    /// What the model is called in records: a file name, `synthetic:NAME`.
    fn name(&self) -> &str;

    /// What identifies the weights: the sha256 of the file or files, the recipe and seed of synthetic ones. Computing it may
    /// read everything, so it is asked for once, when a record needs it.
    fn hash(&self) -> Result<String, LoadError>;

    /// What the files store, in their order; nothing for weights without a file.
    fn stored(&self) -> Vec<StoredTensor> {
        Vec::new()
    }

    /// Lets the system take back the memory of what was read so far.
    fn release(&self) {}

    /// The files, and how they are read where they do not say it themselves. Nothing for weights without a file.
    fn origin(&self) -> Option<Origin> {
        None
    }
}

/// The files of a model.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The files that hold weights, at least one.
    pub files: Vec<PathBuf>,
    /// How they are read.
    pub options: OpenOptions,
}

/// Which of the three layouts behind the one I2_S type id a GGUF file uses; nothing in the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum I2sLayout {
    /// The official file's: blocks of 128 weights in 32 bytes.
    #[default]
    X86,
    /// One byte holds a column of four consecutive rows.
    X86Interleaved,
    /// Blocks of 64 weights in 16 bytes.
    Arm,
}

/// Options of [`open`].
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Layout of I2_S tensors.
    pub i2s_layout: I2sLayout,
}

/// Opens `path`: a GGUF file, or a folder with `config.json` and safetensors. Files are mapped, not read.
pub fn open(path: &Path, options: OpenOptions) -> Result<Box<dyn WeightSource>, LoadError> {
    if path.is_dir() {
        Ok(Box::new(safetensors::SafetensorsModel::open(path)?))
    } else {
        Ok(Box::new(gguf::GgufModel::open(path, options)?))
    }
}
