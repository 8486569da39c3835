//! Models in GGUF files.

mod config;
pub mod entry;
pub mod file;
pub mod types;
pub mod unpack;
pub(super) mod write;

use std::collections::BTreeSet;
use std::path::Path;

use half::f16;
use ternbench_kernels::{AlignedBytes, DenseMatrix, DenseType, TernaryMatrix};

pub use self::file::GgufFile;
use self::file::TensorInfo;
use crate::config::{Architecture, ModelConfig};
use crate::error::LoadError;
use crate::weights::{
    LinearName, LinearWeights, ModelPart, OpenOptions, Origin, StoredTensor, VectorName, WeightSource, inventory,
    ternary,
};

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// A model in a GGUF file.
///
/// [`Self::open`] checks that every tensor is there with its shape and a readable type, and that there is none too many; what
/// can still be wrong afterwards is a tensor's content.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: ModelConfig,
    options: OpenOptions,
    name: String,
}

/// `blk.N.<part>`: the tensor name without its suffix (llama.cpp's `gguf-py/gguf/tensor_mapping.py`).
fn linear_name(layer: usize, which: LinearName) -> String {
    let part = match which {
        LinearName::Q => "attn_q",
        LinearName::K => "attn_k",
        LinearName::V => "attn_v",
        LinearName::O => "attn_output",
        LinearName::Gate => "ffn_gate",
        LinearName::Up => "ffn_up",
        LinearName::Down => "ffn_down",
    };
    format!("blk.{layer}.{part}")
}

fn vector_name(name: VectorName) -> String {
    let (layer, part) = match name {
        VectorName::OutputNorm => return "output_norm.weight".to_owned(),
        VectorName::Bias(layer, which) => return linear_name(layer, which) + ".bias",
        VectorName::AttnNorm(layer) => (layer, "attn_norm"),
        VectorName::AttnSubNorm(layer) => (layer, "attn_sub_norm"),
        VectorName::PostAttnNorm(layer) => (layer, "post_attention_norm"),
        VectorName::FfnNorm(layer) => (layer, "ffn_norm"),
        VectorName::FfnSubNorm(layer) => (layer, "ffn_sub_norm"),
        VectorName::PostFfnNorm(layer) => (layer, "post_ffw_norm"),
        VectorName::QNorm(layer) => (layer, "attn_q_norm"),
        VectorName::KNorm(layer) => (layer, "attn_k_norm"),
    };
    format!("blk.{layer}.{part}.weight")
}

/// A tensor that must be there as an `n x k` matrix.
fn matrix<'a>(file: &'a GgufFile, name: &str, n: usize, k: usize) -> Result<&'a TensorInfo, LoadError> {
    let tensor = file.tensor(name).ok_or_else(|| file.tensor_error(name, "is missing"))?;
    if tensor.matrix() != Some((n, k)) {
        let reason = format!("has dimensions {:?}, expected [{k}, {n}]", tensor.dims);
        return Err(file.tensor_error(name, reason));
    }
    Ok(tensor)
}

/// A float vector of `len` values that must be there.
fn vector<'a>(file: &'a GgufFile, name: &str, len: usize) -> Result<(&'a TensorInfo, DenseType), LoadError> {
    let tensor = matrix(file, name, 1, len)?;
    match tensor.ty.dense() {
        Some(ty @ (DenseType::F32 | DenseType::F16 | DenseType::BF16)) => Ok((tensor, ty)),
        _ => Err(file.tensor_error(name, format!("has type {}, expected F32, F16 or BF16", tensor.ty.name))),
    }
}

/// Reads a float vector, all of whose values must be finite.
fn read_vector(file: &GgufFile, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
    let (tensor, ty) = vector(file, name, len)?;
    let mut values = vec![0.0; len];
    ty.dequantize(&file.data(tensor)?, &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(file.tensor_error(name, format!("value {at} is {}, not a finite number", values[at]))),
        None => Ok(values),
    }
}

impl GgufModel {
    /// Opens and checks a file.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, LoadError> {
        let file = GgufFile::open(path)?;
        let config = config::config(&file)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let model = Self { file, config, options, name };
        model.check_tensors()?;
        Ok(model)
    }

    /// The file, with its metadata and tensor table.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    fn check_tensors(&self) -> Result<(), LoadError> {
        let (file, config) = (&self.file, &self.config);
        let mut known = BTreeSet::from([config::ROPE_FREQS.to_owned()]);
        for name in [EMBEDDING, HEAD].into_iter().filter(|&name| name == EMBEDDING || !config.tied) {
            let tensor = matrix(file, name, config.vocab, config.hidden)?;
            self.check_dense(tensor)?;
            known.insert(name.to_owned());
        }
        for name in inventory::vectors(config) {
            let tensor = vector_name(name);
            vector(file, &tensor, name.len(config))?;
            known.insert(tensor);
        }
        for (layer, which) in inventory::linears(config) {
            let (n, k) = config.linear_shape(which);
            let name = linear_name(layer, which);
            let weight = name.clone() + ".weight";
            let tensor = matrix(file, &weight, n, k)?;
            if !tensor.ty.is_ternary() {
                self.check_dense(tensor)?;
            } else if tensor.ty.id == types::I2_S
                && let Some(reason) = ternary::i2s_shape_error(n, k, self.options.i2s_layout)
            {
                return Err(file.tensor_error(&weight, reason));
            }
            known.insert(weight);
            let scale = name + ".scale";
            if config.architecture == Architecture::Bitnet && file.tensor(&scale).is_some() {
                vector(file, &scale, 1)?;
                known.insert(scale);
            }
        }
        match file.tensors().iter().find(|tensor| !known.contains(&tensor.name)) {
            Some(extra) => {
                let arch = file.str("general.architecture")?.unwrap_or_default();
                Err(file.tensor_error(
                    &extra.name,
                    format!("is not known in architecture '{arch}' with {} layers", config.n_layers),
                ))
            }
            None => Ok(()),
        }
    }

    /// Refuses what can be neither multiplied with nor turned into floats.
    fn check_dense(&self, tensor: &TensorInfo) -> Result<(), LoadError> {
        if tensor.ty.dense().is_some() || unpack::block(tensor.ty).is_some() {
            return Ok(());
        }
        let names: Vec<_> = DenseType::ALL.iter().map(|ty| ty.name()).chain(unpack::NAMES).collect();
        let reason = format!(
            "type {} ({}) is not supported here: {} are, and I2_S, TQ1_0, TQ2_0, IQ1_BN, IQ2_BN in linear layers",
            tensor.ty.name,
            tensor.ty.id,
            names.join(", ")
        );
        Err(self.file.tensor_error(&tensor.name, reason))
    }

    fn dense(&self, name: &str, n: usize, k: usize) -> Result<DenseMatrix, LoadError> {
        let tensor = matrix(&self.file, name, n, k)?;
        let data = self.file.data(tensor)?;
        for at in unpack::scales(tensor.ty) {
            let scale = |block: &[u8]| f16::from_le_bytes([block[*at], block[at + 1]]);
            if let Some(block) = data.chunks_exact(tensor.ty.block_bytes).position(|block| !scale(block).is_finite()) {
                let reason = format!("a scale of block {block} is not a finite number");
                return Err(self.file.tensor_error(name, reason));
            }
        }
        let matrix = match (tensor.ty.dense(), unpack::block(tensor.ty)) {
            (Some(ty), _) => DenseMatrix::new(n, k, ty, data),
            (None, Some(unpack)) => {
                let mut floats = AlignedBytes::zeroed(n * k * 4);
                let mut values = vec![0f32; tensor.ty.block_len];
                let blocks = data.chunks_exact(tensor.ty.block_bytes);
                for (block, out) in blocks.zip(floats.chunks_exact_mut(tensor.ty.block_len * 4)) {
                    unpack(block, &mut values);
                    out.chunks_exact_mut(4).zip(&values).for_each(|(out, w)| out.copy_from_slice(&w.to_le_bytes()));
                }
                DenseMatrix::new(n, k, DenseType::F32, floats.into())
            }
            (None, None) => None,
        };
        matrix.ok_or_else(|| self.file.tensor_error(name, "its size does not fit its shape"))
    }

    fn ternary(&self, name: &str, tensor: &TensorInfo, n: usize, k: usize) -> Result<TernaryMatrix, LoadError> {
        let bad = |reason: String| self.file.tensor_error(&tensor.name, reason);
        let data = self.file.data(tensor)?;
        let (trits, scale) = match tensor.ty.id {
            types::TQ1_0 => ternary::tq1_0(&data).map_err(bad)?,
            types::TQ2_0 => ternary::tq2_0(&data).map_err(bad)?,
            types::IQ1_BN => ternary::iq1_bn(&data, k).map_err(bad)?,
            types::IQ2_BN => ternary::iq2_bn(&data, k).map_err(bad)?,
            _ => {
                let (codes, tail) = data.split_at(data.len() - ternary::I2S_TAIL);
                let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
                (ternary::i2s(codes, k, self.options.i2s_layout), scale)
            }
        };
        let factor_name = format!("{name}.scale");
        let factor = match self.file.tensor(&factor_name) {
            Some(_) => read_vector(&self.file, &factor_name, 1)?[0],
            None => 1.0,
        };
        TernaryMatrix::new(n, k, trits, scale * factor).map_err(|error| bad(ternary::explain(error)))
    }
}

impl WeightSource for GgufModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        self.dense(EMBEDDING, self.config.vocab, self.config.hidden)
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        if self.config.tied { Ok(None) } else { self.dense(HEAD, self.config.vocab, self.config.hidden).map(Some) }
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        let (n, k) = self.config.linear_shape(which);
        let name = linear_name(layer, which);
        let weight = name.clone() + ".weight";
        let tensor = matrix(&self.file, &weight, n, k)?;
        if tensor.ty.is_ternary() {
            self.ternary(&name, tensor, n, k).map(LinearWeights::Ternary)
        } else {
            self.dense(&weight, n, k).map(LinearWeights::Dense)
        }
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        read_vector(&self.file, &vector_name(name), name.len(&self.config))
    }

    fn stored_bytes(&self) -> u64 {
        self.file.map().bytes().len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn hash(&self) -> Result<String, LoadError> {
        Ok(self.file.map().sha256())
    }

    fn stored(&self) -> Vec<StoredTensor> {
        let part = |name: &str| match name {
            EMBEDDING => ModelPart::Embedding,
            HEAD => ModelPart::Head,
            name if name.contains("norm") || !name.ends_with(".weight") || name == config::ROPE_FREQS => {
                ModelPart::Vectors
            }
            _ => ModelPart::Linear,
        };
        let stored = self.file.tensors().iter().map(|tensor| StoredTensor {
            name: tensor.name.clone(),
            part: part(&tensor.name),
            ty: tensor.ty.name.to_owned(),
            shape: tensor.dims.iter().rev().copied().collect(),
            bytes: tensor.bytes() as u64,
        });
        stored.collect()
    }

    fn release(&self) {
        self.file.map().release();
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin { files: vec![self.file.map().path().to_owned()], options: self.options })
    }
}
