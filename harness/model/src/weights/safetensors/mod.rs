//! Models in Hugging Face folders: `config.json` with `model.safetensors` or its shards.
//!
//! Ternary models come in two layouts. "Online" checkpoints hold float master weights, quantised here as the model does
//! ([`TernaryMatrix::from_absmean`]); "offline" ones hold packed trits as uint8 `[n / 4, k]` with a `weight_scale`, by which
//! the output is multiplied or divided ([`LinearClass`]).

pub mod config;
pub mod file;
pub(super) mod write;

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;
use ternbench_kernels::{DenseMatrix, DenseType, TernaryMatrix};

use self::config::{HfConfig, LinearClass};
use self::file::{Checkpoint, Entry};
use crate::config::{Architecture, ModelConfig};
use crate::error::LoadError;
use crate::weights::{
    LinearName, LinearWeights, ModelPart, OpenOptions, Origin, StoredTensor, VectorName, WeightSource, inventory,
    ternary,
};

/// A model in a folder.
///
/// [`Self::open`] checks that every tensor is there with its shape and a readable type, and that there is none too many; what
/// can still be wrong afterwards is a tensor's content.
#[derive(Debug)]
pub struct SafetensorsModel {
    checkpoint: Checkpoint,
    config: ModelConfig,
    ternary: Option<LinearClass>,
    prefix: &'static str,
    head: &'static str,
    name: String,
}

const EMBEDDING: &str = "embed_tokens.weight";

/// Where the language model's tensors and its head are: alone, or inside Gemma 3's image and text model (old and new names).
const PLACES: [(&str, &str); 3] = [
    ("model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
];

/// Parts of image and text models that the language model does not need.
const IGNORED_PREFIXES: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// The name without prefix and suffix.
fn linear_name(layer: usize, which: LinearName) -> String {
    let part = match which {
        LinearName::Q => "self_attn.q_proj",
        LinearName::K => "self_attn.k_proj",
        LinearName::V => "self_attn.v_proj",
        LinearName::O => "self_attn.o_proj",
        LinearName::Gate => "mlp.gate_proj",
        LinearName::Up => "mlp.up_proj",
        LinearName::Down => "mlp.down_proj",
    };
    format!("layers.{layer}.{part}")
}

fn vector_name(name: VectorName, architecture: Architecture) -> String {
    let gemma = architecture == Architecture::Gemma3;
    let (layer, part) = match name {
        VectorName::OutputNorm => return "norm.weight".to_owned(),
        VectorName::Bias(layer, which) => return linear_name(layer, which) + ".bias",
        VectorName::AttnNorm(layer) => (layer, "input_layernorm"),
        VectorName::AttnSubNorm(layer) => (layer, "self_attn.attn_sub_norm"),
        VectorName::PostAttnNorm(layer) => (layer, "post_attention_layernorm"),
        VectorName::FfnNorm(layer) if gemma => (layer, "pre_feedforward_layernorm"),
        VectorName::FfnNorm(layer) => (layer, "post_attention_layernorm"),
        VectorName::FfnSubNorm(layer) => (layer, "mlp.ffn_sub_norm"),
        VectorName::PostFfnNorm(layer) => (layer, "post_feedforward_layernorm"),
        VectorName::QNorm(layer) => (layer, "self_attn.q_norm"),
        VectorName::KNorm(layer) => (layer, "self_attn.k_norm"),
    };
    format!("layers.{layer}.{part}.weight")
}

fn dense_type(dtype: Dtype) -> Option<DenseType> {
    match dtype {
        Dtype::F32 => Some(DenseType::F32),
        Dtype::F16 => Some(DenseType::F16),
        Dtype::BF16 => Some(DenseType::BF16),
        _ => None,
    }
}

impl SafetensorsModel {
    /// Opens and checks a folder.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let config_path = folder.join("config.json");
        let HfConfig { model: mut config, tied, ternary } =
            config::config(&config_path, &file::read_json(&config_path)?)?;
        let checkpoint = Checkpoint::open(folder)?;
        let (prefix, head) = PLACES
            .into_iter()
            .find(|(prefix, _)| checkpoint.get(&format!("{prefix}{EMBEDDING}")).is_some())
            .ok_or_else(|| checkpoint.error(&format!("{}{EMBEDDING}", PLACES[0].0), "is missing"))?;
        let folder_name = folder.canonicalize().ok().and_then(|folder| folder.file_name().map(|name| name.to_owned()));
        let name = folder_name.unwrap_or(folder.as_os_str().to_owned()).to_string_lossy().into_owned();
        config.tied = tied.unwrap_or(checkpoint.get(head).is_none());
        let model = Self { checkpoint, config, ternary, prefix, head, name };
        model.check_tensors()?;
        Ok(model)
    }

    /// The tensor table.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    fn embedding_name(&self) -> String {
        format!("{}{EMBEDDING}", self.prefix)
    }

    /// A tensor that must be there with one of these shapes.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, LoadError> {
        let entry = self.checkpoint.get(name).ok_or_else(|| self.checkpoint.error(name, "is missing"))?;
        if entry.shape != shape {
            return Err(self.checkpoint.error(name, format!("has shape {:?}, expected {shape:?}", entry.shape)));
        }
        Ok(entry)
    }

    /// The same, of floats.
    fn float(&self, name: &str, shape: &[usize]) -> Result<(&Entry, DenseType), LoadError> {
        let entry = self.entry(name, shape)?;
        let ty = dense_type(entry.dtype);
        let ty = ty.ok_or_else(|| {
            self.checkpoint.error(name, format!("has type {:?}, expected F32, F16 or BF16", entry.dtype))
        })?;
        Ok((entry, ty))
    }

    fn check_tensors(&self) -> Result<(), LoadError> {
        let config = &self.config;
        let mut known = BTreeSet::new();
        self.float(&self.embedding_name(), &[config.vocab, config.hidden])?;
        known.insert(self.embedding_name());
        if !config.tied {
            self.float(self.head, &[config.vocab, config.hidden])?;
        }
        // Some tied checkpoints store the embedding a second time under this name.
        known.insert(self.head.to_owned());
        for name in inventory::vectors(config) {
            let tensor = self.vector_name(name);
            self.float(&tensor, &[name.len(config)])?;
            known.insert(tensor);
        }
        for (layer, which) in inventory::linears(config) {
            let (n, k) = config.linear_shape(which);
            let name = format!("{}{}", self.prefix, linear_name(layer, which));
            let weight = format!("{name}.weight");
            if self.is_packed(&weight) {
                if !n.is_multiple_of(4) {
                    return Err(self.checkpoint.error(&weight, format!("{n} rows cannot be packed by four")));
                }
                self.entry(&weight, &[n / 4, k])?;
                self.scale(&name)?;
                known.insert(format!("{name}.weight_scale"));
            } else {
                self.float(&weight, &[n, k])?;
            }
            known.insert(weight);
        }
        let ignored = |name: &str| {
            name.ends_with(".rotary_emb.inv_freq") || IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        };
        match self.checkpoint.names().find(|&name| !known.contains(name) && !ignored(name)) {
            Some(extra) => {
                let reason =
                    format!("is not known in a {:?} model with {} layers", config.architecture, config.n_layers);
                Err(self.checkpoint.error(extra, reason))
            }
            None => Ok(()),
        }
    }

    fn vector_name(&self, name: VectorName) -> String {
        format!("{}{}", self.prefix, vector_name(name, self.config.architecture))
    }

    fn is_packed(&self, weight: &str) -> bool {
        self.ternary.is_some() && self.checkpoint.get(weight).is_some_and(|entry| entry.dtype == Dtype::U8)
    }

    /// The `weight_scale` of a packed layer, one float: shape `[1]`, or `[]` as some writers have it.
    fn scale(&self, name: &str) -> Result<(String, DenseType), LoadError> {
        let name = format!("{name}.weight_scale");
        let scalar = self.checkpoint.get(&name).is_some_and(|entry| entry.shape.is_empty());
        let (_, ty) = self.float(&name, if scalar { &[] } else { &[1] })?;
        Ok((name, ty))
    }

    /// Reads floats, all of which must be finite.
    fn floats(&self, name: &str, ty: DenseType, len: usize) -> Result<Vec<f32>, LoadError> {
        let entry = self.checkpoint.get(name).ok_or_else(|| self.checkpoint.error(name, "is missing"))?;
        let mut values = vec![0.0; len];
        ty.dequantize(&self.checkpoint.data(name, entry)?, &mut values);
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(self.checkpoint.error(name, format!("value {at} is {}, not a finite number", values[at]))),
            None => Ok(values),
        }
    }

    fn dense(&self, name: &str, n: usize, k: usize) -> Result<DenseMatrix, LoadError> {
        let (entry, ty) = self.float(name, &[n, k])?;
        let matrix = DenseMatrix::new(n, k, ty, self.checkpoint.data(name, entry)?);
        matrix.ok_or_else(|| self.checkpoint.error(name, "its size does not fit its shape"))
    }

    fn packed(&self, name: &str, n: usize, k: usize, class: LinearClass) -> Result<TernaryMatrix, LoadError> {
        let weight = format!("{name}.weight");
        let (scale_name, ty) = self.scale(name)?;
        let stored = self.floats(&scale_name, ty, 1)?[0];
        let scale = match class {
            LinearClass::Multiply => stored,
            LinearClass::Divide => 1.0 / stored,
        };
        if !scale.is_finite() {
            return Err(self.checkpoint.error(&scale_name, format!("is {stored}, by which outputs cannot be divided")));
        }
        let entry = self.entry(&weight, &[n / 4, k])?;
        let trits = ternary::hf_packed(&self.checkpoint.data(&weight, entry)?);
        TernaryMatrix::new(n, k, trits, scale).map_err(|error| self.checkpoint.error(&weight, ternary::explain(error)))
    }
}

impl WeightSource for SafetensorsModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        self.dense(&self.embedding_name(), self.config.vocab, self.config.hidden)
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        if self.config.tied {
            return Ok(None);
        }
        self.dense(self.head, self.config.vocab, self.config.hidden).map(Some)
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        let (n, k) = self.config.linear_shape(which);
        let name = format!("{}{}", self.prefix, linear_name(layer, which));
        let weight = format!("{name}.weight");
        match self.ternary {
            None => self.dense(&weight, n, k).map(LinearWeights::Dense),
            Some(class) if self.is_packed(&weight) => self.packed(&name, n, k, class).map(LinearWeights::Ternary),
            Some(_) => {
                let (_, ty) = self.float(&weight, &[n, k])?;
                let matrix = TernaryMatrix::from_absmean(n, k, &self.floats(&weight, ty, n * k)?);
                matrix
                    .map(LinearWeights::Ternary)
                    .map_err(|error| self.checkpoint.error(&weight, ternary::explain(error)))
            }
        }
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        let tensor = self.vector_name(name);
        let len = name.len(&self.config);
        let (_, ty) = self.float(&tensor, &[len])?;
        let mut values = self.floats(&tensor, ty, len)?;
        // Gemma stores its gains less one.
        if self.config.architecture == Architecture::Gemma3 && !matches!(name, VectorName::Bias(..)) {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }

    fn stored_bytes(&self) -> u64 {
        self.checkpoint.stored_bytes()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn hash(&self) -> Result<String, LoadError> {
        Ok(self.checkpoint.sha256())
    }

    fn stored(&self) -> Vec<StoredTensor> {
        let embedding = self.embedding_name();
        let part = |name: &str| match name {
            name if name == embedding => ModelPart::Embedding,
            name if name == self.head => ModelPart::Head,
            name if name.contains("_proj.weight") && !name.ends_with("_scale") => ModelPart::Linear,
            _ => ModelPart::Vectors,
        };
        let stored = self.checkpoint.tensors().iter().map(|(name, entry)| {
            let packed = self.is_packed(name);
            let mut shape = entry.shape.clone();
            if let (true, Some(rows)) = (packed, shape.first_mut()) {
                *rows *= 4;
            }
            StoredTensor {
                name: name.clone(),
                part: part(name),
                ty: if packed { "U8 trits".to_owned() } else { format!("{:?}", entry.dtype) },
                shape,
                bytes: entry.bytes(),
            }
        });
        stored.collect()
    }

    fn release(&self) {
        self.checkpoint.release();
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin { files: self.checkpoint.files(), options: OpenOptions::default() })
    }
}
