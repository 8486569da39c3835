//! Model manifests, `datasets/models/NAME.toml`: a model's shape, where its files are, what was published about it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{Activation, Architecture, ModelConfig, RopeScaling, SlidingWindow};
use crate::error::LoadError;

/// A manifest.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    /// The file's name without `.toml`.
    pub name: String,
    /// The family.
    pub architecture: Architecture,
    /// What people call it.
    pub title: String,
    /// How many parameters its authors' files have, norms included.
    pub parameters: Option<u64>,
    /// The shape.
    pub shape: Shape,
    /// What was published about it.
    pub published: Option<Published>,
}

/// The `[shape]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of ModelConfig")]
pub struct Shape {
    pub n_layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    pub rope_theta: f32,
    pub norm_eps: f32,
    pub activation: Activation,
    pub weights: SyntheticType,
    pub tied: bool,
    #[serde(default)]
    pub sub_norms: bool,
    #[serde(default)]
    pub qk_norm: bool,
    #[serde(default)]
    pub post_norms: bool,
    #[serde(default)]
    pub qkv_bias: bool,
    pub embedding_scale: Option<f32>,
    pub residual_scale: Option<f32>,
    pub logit_scale: Option<f32>,
    pub sliding_window: Option<usize>,
    pub sliding_pattern: Option<usize>,
    pub rope_theta_local: Option<f32>,
    pub rope_scaling: Option<RopeScaling>,
}

/// The `[published]` table; memory without embeddings, latency and energy as the report gives them.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "named after the report's columns")]
pub struct Published {
    pub piqa: f64,
    pub gsm8k: f64,
    pub memory_gb: f64,
    pub latency_ms: f64,
    pub energy_j: f64,
    pub source: String,
}

/// What synthetic linear layers are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyntheticType {
    /// Trits.
    Ternary,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Manifest {
    /// Reads `folder/NAME.toml`; an unknown name is answered with the names there are.
    pub fn find(folder: &Path, name: &str) -> Result<Self, LoadError> {
        let path = folder.join(format!("{name}.toml"));
        if !path.is_file() {
            let known = Self::names(folder).join(", ");
            let reason = format!("no model is called '{name}'; there are: {known}");
            return Err(LoadError::file(folder, reason));
        }
        Self::read(&path)
    }

    /// The names of all manifests in `folder`, sorted.
    pub fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let toml =
            |path: PathBuf| (path.extension()? == "toml").then(|| path.file_stem()?.to_str().map(str::to_owned))?;
        let mut names: Vec<String> = entries.filter_map(|entry| toml(entry.path())).collect();
        names.sort();
        names
    }

    /// Reads one manifest.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|error| LoadError::io(path, error))?;
        let manifest: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            LoadError::file(path, format!("line {line}: {}", error.message()))
        })?;
        let config = manifest.config();
        config.validate().map_err(|reason| LoadError::file(path, reason))?;
        match manifest.parameters {
            Some(said) if said != config.parameters() => {
                let reason = format!("parameters = {said}, but the shape has {}", config.parameters());
                Err(LoadError::file(path, reason))
            }
            _ => Ok(manifest),
        }
    }

    /// The forward pass's view of the shape.
    pub fn config(&self) -> ModelConfig {
        let s = &self.shape;
        let sliding = s.sliding_window.map(|window| SlidingWindow {
            window,
            pattern: s.sliding_pattern.unwrap_or(1),
            rope_theta: s.rope_theta_local.unwrap_or(s.rope_theta),
        });
        ModelConfig {
            context: s.context,
            rope_theta: s.rope_theta,
            norm_eps: s.norm_eps,
            activation: s.activation,
            rope_scaling: s.rope_scaling,
            tied: s.tied,
            sub_norms: s.sub_norms,
            qk_norm: s.qk_norm,
            post_norms: s.post_norms,
            qkv_bias: s.qkv_bias,
            embedding_scale: s.embedding_scale.unwrap_or(1.0),
            residual_scale: s.residual_scale.unwrap_or(1.0),
            logit_scale: s.logit_scale.unwrap_or(1.0),
            sliding,
            ..ModelConfig::new(
                self.architecture,
                s.n_layers,
                s.hidden,
                s.ffn,
                s.n_heads,
                s.n_kv_heads,
                s.head_dim,
                s.vocab,
            )
        }
    }
}
