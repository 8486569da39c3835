//! From a Hugging Face `config.json` to a [`ModelConfig`].
//!
//! Keys and defaults are those of transformers' configuration classes (`configuration_{bitnet,llama,qwen2,gemma3}.py`) and of
//! MiniCPM's own. What would change the forward pass in a way that it does not know is refused, not ignored.

use std::path::Path;

use serde_json::Value;

use crate::config::{Activation, Architecture, ModelConfig, RopeScaling, SlidingWindow};
use crate::error::LoadError;

/// How packed ternary weights use their scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearClass {
    /// `autobitlinear`: the output is multiplied by `weight_scale`.
    Multiply,
    /// `bitlinear`: the output is divided by it.
    Divide,
}

/// What `config.json` says.
#[derive(Clone, Debug)]
pub struct HfConfig {
    /// The shape.
    pub model: ModelConfig,
    /// `tie_word_embeddings`, where it is said.
    pub tied: Option<bool>,
    /// For ternary models: floats among the linear layers are quantised on loading, uint8 are packed trits.
    pub ternary: Option<LinearClass>,
}

/// The file, or the part of it that describes the language model.
struct Json<'a> {
    path: &'a Path,
    object: &'a Value,
}

impl Json<'_> {
    fn error(&self, reason: impl ToString) -> LoadError {
        LoadError::file(self.path, reason)
    }

    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, LoadError> {
        let read = |value| read(value).ok_or_else(|| self.error(format!("'{key}' is not {expected}")));
        self.get(key).map(read).transpose()
    }

    fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.typed(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn required(&self, key: &str) -> Result<usize, LoadError> {
        self.size(key)?.ok_or_else(|| self.error(format!("'{key}' is missing")))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.typed(key, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.error(format!("'{key}' is not a string"))))
            .transpose()
    }

    fn part(&self, key: &str) -> Option<Json<'_>> {
        self.get(key).map(|object| Json { path: self.path, object })
    }

    /// Refuses a switch that would change the forward pass.
    fn must_be_off(&self, key: &str) -> Result<(), LoadError> {
        match self.bool(key)? {
            Some(true) => Err(self.error(format!("'{key}' is true, which is not supported"))),
            _ => Ok(()),
        }
    }
}

/// Reads `config.json`, already parsed.
pub fn config(path: &Path, object: &Value) -> Result<HfConfig, LoadError> {
    let top = Json { path, object };
    let model_type = top.str("model_type")?.ok_or_else(|| top.error("'model_type' is missing"))?;
    let architecture = match model_type {
        "bitnet" => Architecture::Bitnet,
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "gemma3" | "gemma3_text" => Architecture::Gemma3,
        "minicpm" => Architecture::Minicpm,
        _ => {
            let shown = model_type.escape_debug();
            return Err(
                top.error(format!("model_type '{shown}' is not supported (bitnet, llama, qwen2, gemma3, minicpm are)"))
            );
        }
    };
    let text = top.part("text_config");
    let json = text.as_ref().unwrap_or(&top);
    let ternary = ternary(&top)?;

    let n_heads = json.required("num_attention_heads")?;
    let hidden = json.required("hidden_size")?;
    let head_dim = match json.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if architecture == Architecture::Gemma3 => 256,
        None if n_heads > 0 && hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => return Err(json.error(format!("{n_heads} heads do not divide hidden_size {hidden}"))),
    };
    let mut config = ModelConfig::new(
        architecture,
        json.required("num_hidden_layers")?,
        hidden,
        json.required("intermediate_size")?,
        n_heads,
        json.size("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        json.required("vocab_size")?,
    );
    let gemma = architecture == Architecture::Gemma3;
    config.context = json.size("max_position_embeddings")?.unwrap_or(if gemma { 131_072 } else { 2048 });
    config.norm_eps = json.f32("rms_norm_eps")?.unwrap_or(if gemma { 1e-6 } else { 1e-5 });
    config.activation = activation(json, architecture)?;
    rope(json, &mut config)?;
    family(json, &mut config)?;
    for switch in ["attention_bias", "mlp_bias", "use_sliding_window", "use_bidirectional_attention"] {
        // Qwen2 has its biases without saying so.
        json.must_be_off(switch)?;
    }
    config.validate().map_err(|reason| json.error(reason))?;
    Ok(HfConfig {
        model: config,
        tied: top.bool("tie_word_embeddings")?.or(json.bool("tie_word_embeddings")?),
        ternary,
    })
}

/// `quantization_config`: `BitNetQuantConfig` of transformers. Without it the linear layers are plain, as they are there.
fn ternary(top: &Json<'_>) -> Result<Option<LinearClass>, LoadError> {
    let Some(quantization) = top.part("quantization_config") else { return Ok(None) };
    match quantization.str("quant_method")? {
        Some("bitnet") => {}
        other => {
            let shown = other.unwrap_or("none").escape_debug();
            return Err(top.error(format!("quant_method '{shown}' is not supported (bitnet is)")));
        }
    }
    quantization.must_be_off("use_rms_norm")?;
    match quantization.str("linear_class")? {
        Some("autobitlinear") => Ok(Some(LinearClass::Multiply)),
        None | Some("bitlinear") => Ok(Some(LinearClass::Divide)),
        Some(other) => {
            Err(top
                .error(format!("linear_class '{}' is not supported (autobitlinear, bitlinear)", other.escape_debug())))
        }
    }
}

fn activation(json: &Json<'_>, architecture: Architecture) -> Result<Activation, LoadError> {
    let (key, default) = match architecture {
        Architecture::Gemma3 => ("hidden_activation", Activation::GeluTanh),
        Architecture::Bitnet => ("hidden_act", Activation::Relu2),
        _ => ("hidden_act", Activation::Silu),
    };
    match json.str(key)? {
        None => Ok(default),
        Some("relu2") => Ok(Activation::Relu2),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => {
            let shown = other.escape_debug();
            Err(json.error(format!("{key} '{shown}' is not supported (relu2, silu, gelu_pytorch_tanh are)")))
        }
    }
}

/// `rope_theta` and `rope_scaling`, or `rope_parameters` of newer versions, which holds both.
fn rope(json: &Json<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    let default = if config.architecture == Architecture::Gemma3 { 1_000_000.0 } else { 10_000.0 };
    config.rope_theta = json.f32("rope_theta")?.unwrap_or(default);
    if let Some(parameters) = json.part("rope_parameters") {
        let global = parameters.part("full_attention");
        let global = global.as_ref().unwrap_or(&parameters);
        config.rope_theta = global.f32("rope_theta")?.unwrap_or(config.rope_theta);
        config.rope_scaling = scaling(global)?;
    }
    if let Some(parameters) = json.part("rope_scaling") {
        config.rope_scaling = scaling(&parameters)?;
    }
    Ok(())
}

fn scaling(json: &Json<'_>) -> Result<Option<RopeScaling>, LoadError> {
    let kind = json.str("rope_type")?.or(json.str("type")?);
    match kind {
        None | Some("default") => Ok(None),
        Some("llama3") => {
            let number =
                |key: &str| json.f32(key)?.ok_or_else(|| json.error(format!("rope scaling: '{key}' is missing")));
            let scaling = RopeScaling {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: json.required("original_max_position_embeddings")?,
            };
            let RopeScaling { factor, low_freq_factor: low, high_freq_factor: high, original_context } = scaling;
            if !(factor.is_finite()
                && factor >= 1.0
                && low > 0.0
                && high > low
                && high.is_finite()
                && original_context > 0)
            {
                return Err(json.error("rope scaling: the factors make no sense (factor >= 1, 0 < low < high)"));
            }
            Ok(Some(scaling))
        }
        Some(other) => Err(json.error(format!("rope scaling '{}' is not supported (llama3 is)", other.escape_debug()))),
    }
}

/// What each family adds to the plain transformer.
fn family(json: &Json<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    match config.architecture {
        Architecture::Bitnet => config.sub_norms = true,
        Architecture::Llama => {}
        Architecture::Qwen2 => config.qkv_bias = true,
        Architecture::Gemma3 => {
            config.qk_norm = true;
            config.post_norms = true;
            config.embedding_scale = (config.hidden as f32).sqrt();
            let scalar = json.f32("query_pre_attn_scalar")?.unwrap_or(256.0);
            if scalar != config.head_dim as f32 {
                let reason = format!(
                    "query_pre_attn_scalar {scalar} is not head_dim {}, which is not supported",
                    config.head_dim
                );
                return Err(json.error(reason));
            }
            for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
                if json.get(key).is_some() {
                    return Err(json.error(format!("'{key}' is not supported")));
                }
            }
            config.sliding = sliding(json, config.n_layers)?;
        }
        Architecture::Minicpm => {
            let n_layers = config.n_layers as f32;
            config.embedding_scale = json.f32("scale_emb")?.unwrap_or(1.0);
            config.residual_scale = json.f32("scale_depth")?.map_or(1.0, |depth| depth / n_layers.sqrt());
            config.logit_scale = json.f32("dim_model_base")?.map_or(1.0, |base| base / config.hidden as f32);
        }
    }
    Ok(())
}

/// Gemma's local layers: `sliding_window`, and a pattern as a number or as a list of layer types.
fn sliding(json: &Json<'_>, n_layers: usize) -> Result<Option<SlidingWindow>, LoadError> {
    let window = json.size("sliding_window")?.unwrap_or(4096);
    let mut pattern = json.size("sliding_window_pattern")?.or(json.size("_sliding_window_pattern")?).unwrap_or(6);
    if let Some(types) = json.get("layer_types") {
        let types = types.as_array().filter(|types| types.len() == n_layers);
        let types = types.ok_or_else(|| json.error(format!("'layer_types' is not a list of {n_layers} layers")))?;
        let global: Vec<bool> = types.iter().map(|ty| ty == "full_attention").collect();
        // Without a global layer any pattern longer than the model says so.
        pattern = global.iter().position(|&global| global).map_or(n_layers + 1, |first| first + 1);
        if global.iter().enumerate().any(|(layer, &global)| global != (layer + 1).is_multiple_of(pattern)) {
            return Err(json.error("'layer_types' has no regular pattern, which is not supported"));
        }
    }
    if window == 0 || pattern == 0 {
        return Err(json.error("the sliding window or its pattern is 0"));
    }
    let local = json.part("rope_parameters");
    let local = local.as_ref().and_then(|parameters| parameters.part("sliding_attention"));
    let local_theta = local.map(|local| local.f32("rope_theta")).transpose()?.flatten();
    let rope_theta = local_theta.or(json.f32("rope_local_base_freq")?).unwrap_or(10_000.0);
    Ok(Some(SlidingWindow { window, pattern, rope_theta }))
}
