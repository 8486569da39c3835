//! From GGUF metadata to a [`ModelConfig`].
//!
//! The keys are llama.cpp's (`gguf-py/gguf/constants.py`), the conventions those of its converters (`convert_hf_to_gguf.py`):
//! `llama` and `minicpm` files have the rows of q and k permuted for interleaved RoPE, the others do not; `gemma3` norms are
//! stored as 1 + w; MiniCPM's `logit_scale` is a divisor.

use super::file::{GgufFile, Value};
use crate::config::{Activation, Architecture, ModelConfig, RopeLayout, RopeScaling, SlidingWindow};
use crate::error::LoadError;

/// The tensor with Llama 3's frequency factors.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// How many layers Gemma 3 27B has: the one size whose attention is not scaled by its head size.
const GEMMA3_27B_LAYERS: usize = 62;

/// Every how many-th layer of Gemma 3 is global, and the RoPE base of the others: not in older files.
pub(super) const GEMMA3_PATTERN: usize = 6;
pub(super) const GEMMA3_LOCAL_THETA: f32 = 10_000.0;

/// Reads the configuration, and checks what it needs of the tensors that it depends on.
pub fn config(file: &GgufFile) -> Result<ModelConfig, LoadError> {
    let arch =
        file.str("general.architecture")?.ok_or_else(|| file.error("metadata 'general.architecture' is missing"))?;
    let architecture = match arch {
        "bitnet-b1.58" | "bitnet-25" | "bitnet" => Architecture::Bitnet,
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "gemma3" => Architecture::Gemma3,
        "minicpm" => Architecture::Minicpm,
        _ => {
            return Err(file.error(format!(
                "architecture '{}' is not supported (bitnet-b1.58, bitnet-25, bitnet, llama, qwen2, gemma3, minicpm are)",
                arch.escape_debug()
            )));
        }
    };
    if file.u64("split.count")?.is_some_and(|count| count > 1) {
        return Err(file.error("is one part of a split model: join the parts with `llama-gguf-split --merge`"));
    }
    let keys = Keys { file, arch };

    let n_heads = keys.required("attention.head_count")?;
    let hidden = keys.required("embedding_length")?;
    let embedding = super::EMBEDDING;
    let (rows, _) = file
        .tensor(embedding)
        .ok_or_else(|| file.tensor_error(embedding, "is missing"))?
        .matrix()
        .ok_or_else(|| file.tensor_error(embedding, "is not a matrix"))?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if n_heads > 0 && hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => return Err(file.error(format!("{n_heads} heads do not divide the embedding length {hidden}"))),
    };

    let mut config = ModelConfig::new(
        architecture,
        keys.required("block_count")?,
        hidden,
        keys.required("feed_forward_length")?,
        n_heads,
        keys.size("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        rows,
    );
    config.context = keys.required("context_length")?;
    config.rope_theta = keys.f32("rope.freq_base")?.unwrap_or(10_000.0);
    config.norm_eps = keys.required_f32("attention.layer_norm_rms_epsilon")?;
    config.tied = file.tensor(super::HEAD).is_none();
    family(&keys, &mut config)?;

    keys.must_equal("attention.value_length", config.head_dim)?;
    keys.must_equal("rope.dimension_count", config.head_dim)?;
    keys.must_equal("vocab_size", rows)?;
    if let Some(tokens) = file.array_len("tokenizer.ggml.tokens")?
        && tokens != rows
    {
        return Err(file.error(format!("the tokenizer has {tokens} tokens, the embedding {rows} rows")));
    }
    config.validate().map_err(|reason| file.error(reason))?;
    config.rope_scaling = rope_scaling(&keys, &config)?;
    Ok(config)
}

/// What each family adds to the plain transformer.
fn family(keys: &Keys<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    match config.architecture {
        Architecture::Bitnet => {
            config.sub_norms = true;
            // bitnet.cpp: `LLM_FFN_SILU` for the community models' `bitnet`, `LLM_FFN_RELU_SQR` for 2B4T.
            config.activation = if keys.arch == "bitnet" { Activation::Silu } else { Activation::Relu2 };
        }
        Architecture::Llama => config.rope_layout = RopeLayout::Interleaved,
        Architecture::Qwen2 => config.qkv_bias = true,
        Architecture::Gemma3 => {
            if config.n_layers == GEMMA3_27B_LAYERS {
                return Err(keys.file.error("Gemma 3 27B scales its attention differently and is not supported"));
            }
            config.activation = Activation::GeluTanh;
            config.qk_norm = true;
            config.post_norms = true;
            config.embedding_scale = (config.hidden as f32).sqrt();
            let pattern = match keys.value("attention.sliding_window_pattern") {
                None => GEMMA3_PATTERN,
                Some(_) => keys.required("attention.sliding_window_pattern")?,
            };
            let window = keys.size("attention.sliding_window")?.filter(|&window| window > 0);
            config.sliding = window.map(|window| SlidingWindow { window, pattern, rope_theta: GEMMA3_LOCAL_THETA });
            if let (Some(sliding), Some(theta)) = (&mut config.sliding, keys.f32("rope.freq_base_swa")?) {
                sliding.rope_theta = theta;
            }
        }
        Architecture::Minicpm => {
            config.rope_layout = RopeLayout::Interleaved;
            // The defaults are MiniCPM 2B's, for files older than the keys.
            config.embedding_scale = keys.f32("embedding_scale")?.unwrap_or(12.0);
            config.residual_scale = keys.f32("residual_scale")?.unwrap_or(1.4 / (config.n_layers as f32).sqrt());
            config.logit_scale = 1.0 / keys.f32("logit_scale")?.unwrap_or(config.hidden as f32 / 256.0);
        }
    }
    Ok(())
}

/// Llama 3's scaling comes as a tensor of frequency divisors instead of its four parameters. Only the released ones exist:
/// low 1, high 4, original context 8192, and the factor is the largest divisor.
fn rope_scaling(keys: &Keys<'_>, config: &ModelConfig) -> Result<Option<RopeScaling>, LoadError> {
    let file = keys.file;
    let factor = keys.f32("rope.scaling.factor")?.unwrap_or(1.0);
    match file.str(&keys.key("rope.scaling.type"))? {
        None | Some("none") => {}
        Some("linear") if factor == 1.0 => {}
        Some(other) => {
            return Err(
                file.error(format!("RoPE scaling '{}' (factor {factor}) is not supported", other.escape_debug()))
            );
        }
    }
    let Some(tensor) = file.tensor(ROPE_FREQS) else { return Ok(None) };
    let half = config.head_dim / 2;
    let divisors = super::read_vector(file, ROPE_FREQS, half)?;
    debug_assert_eq!(tensor.dims, [half]);
    let largest = divisors.iter().copied().fold(1.0, f32::max);
    let scaling = RopeScaling { factor: largest, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let expected = (0..half).map(|j| llama3_divisor(&scaling, config.rope_theta, j, config.head_dim));
    if expected.zip(&divisors).any(|(expected, &divisor)| (expected - divisor).abs() > 1e-3 * expected) {
        let reason = "is not Llama 3's scaling (low 1, high 4, original context 8192); no other is supported";
        return Err(file.tensor_error(ROPE_FREQS, reason));
    }
    Ok((largest > 1.0).then_some(scaling))
}

/// By what frequency `j` of a head is divided (`LlamaModel.generate_extra_tensors` of llama.cpp's converter).
pub(super) fn llama3_divisor(scaling: &RopeScaling, theta: f32, j: usize, head_dim: usize) -> f32 {
    let wavelength = std::f32::consts::TAU * theta.powf(2.0 * j as f32 / head_dim as f32);
    let context = scaling.original_context as f32;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    if wavelength < context / high {
        1.0
    } else if wavelength > context / low {
        scaling.factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / scaling.factor + smooth)
    }
}

/// Keys with the architecture's prefix.
struct Keys<'a> {
    file: &'a GgufFile,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.file.metadata().get(&self.key(name))
    }

    fn size(&self, name: &str) -> Result<Option<usize>, LoadError> {
        let key = self.key(name);
        if let Some(Value::Array(_)) = self.value(name) {
            return Err(self.file.error(format!("metadata '{key}' differs per layer, which is not supported")));
        }
        let value = self.file.u64(&key)?;
        value
            .map(|value| usize::try_from(value).map_err(|_| self.file.error(format!("metadata '{key}' is {value}"))))
            .transpose()
    }

    fn required(&self, name: &str) -> Result<usize, LoadError> {
        self.size(name)?.ok_or_else(|| self.file.error(format!("metadata '{}' is missing", self.key(name))))
    }

    fn f32(&self, name: &str) -> Result<Option<f32>, LoadError> {
        self.file.f32(&self.key(name))
    }

    fn required_f32(&self, name: &str) -> Result<f32, LoadError> {
        self.f32(name)?.ok_or_else(|| self.file.error(format!("metadata '{}' is missing", self.key(name))))
    }

    fn must_equal(&self, name: &str, expected: usize) -> Result<(), LoadError> {
        match self.size(name)? {
            Some(value) if value != expected => {
                Err(self.file.error(format!("metadata '{}' is {value}, expected {expected}", self.key(name))))
            }
            _ => Ok(()),
        }
    }
}
