//! Writing Hugging Face folders: `config.json`, `model.safetensors` and the tokenizer's files. Ternary models are written as
//! packed uint8 with their `weight_scale`, by which outputs are multiplied, like microsoft/bitnet-b1.58-2B-4T.

use std::path::Path;

use serde_json::{Map, Value, json};
use ternbench_kernels::DenseType;

use super::{EMBEDDING, PLACES, linear_name, vector_name};
use crate::config::{Activation, Architecture, ModelConfig, RopeLayout};
use crate::error::LoadError;
use crate::tokenizer::Tokenizer;
use crate::weights::convert::{self, Conversion, Part, TokenizerFrom};
use crate::weights::encode::{self, StoredType};
use crate::weights::output::{PartialFile, PartialFolder};
use crate::weights::{LinearName, LinearWeights, WeightSource, inventory};

/// The files of a tokenizer, which are carried from folder to folder as they are.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "LICENSE",
];

struct Planned {
    name: String,
    part: Part,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

/// Writes `source` to the folder `target`.
pub(in crate::weights) fn write(
    source: &dyn WeightSource,
    target: &Path,
    conversion: &Conversion<'_>,
    progress: &dyn Fn(usize, usize),
) -> Result<u64, LoadError> {
    let config = source.config();
    let ternary = matches!(source.linear(0, LinearName::Q)?, LinearWeights::Ternary(_));
    let ty = match conversion.ty {
        StoredType::I2S => None,
        StoredType::Dense(ty @ (DenseType::F32 | DenseType::F16 | DenseType::BF16)) if !ternary => Some(ty),
        StoredType::Dense(DenseType::F32 | DenseType::F16 | DenseType::BF16) => {
            let reason = "a ternary model is stored in safetensors as packed trits (floats would be quantised anew when \
                          they are loaded): use --type i2_s, or name a .gguf file";
            return Err(LoadError::file(target, reason));
        }
        other => {
            let reason = format!("safetensors cannot hold {}: use f32, f16, bf16 or i2_s", other.name());
            return Err(LoadError::file(target, reason));
        }
    };
    let embedding = conversion.embedding_type();
    let plan = plan(config, ty, embedding, target)?;

    let folder = PartialFolder::create(target)?;
    let json = config_json(config, ty.is_none(), embedding);
    folder.write("config.json", format!("{json:#}\n").as_bytes())?;
    tokenizer(conversion, &folder, target)?;
    let mut out = folder.file("model.safetensors")?;
    out.write(&header(&plan))?;
    for (done, tensor) in plan.iter().enumerate() {
        progress(done, plan.len());
        stream(source, tensor, ty, embedding, &mut out)?;
        source.release();
    }
    progress(plan.len(), plan.len());
    let bytes = out.finish()?;
    folder.finish()?;
    Ok(bytes)
}

fn dtype(ty: DenseType) -> &'static str {
    match ty {
        DenseType::F32 => "F32",
        DenseType::BF16 => "BF16",
        _ => "F16",
    }
}

fn plan(
    config: &ModelConfig,
    linear: Option<DenseType>,
    embedding: DenseType,
    target: &Path,
) -> Result<Vec<Planned>, LoadError> {
    if !matches!(embedding, DenseType::F32 | DenseType::F16 | DenseType::BF16) {
        return Err(LoadError::file(target, "safetensors embeddings are f32, f16 or bf16"));
    }
    let (prefix, head) = PLACES[0];
    let mut plan = Vec::new();
    let mut add = |name: String, part, ty: Option<DenseType>, shape: Vec<usize>| {
        let bytes = shape.iter().product::<usize>() * ty.map_or(1, DenseType::block_bytes);
        plan.push(Planned { name, part, dtype: ty.map_or("U8", dtype), shape, bytes });
    };
    let vocabulary = vec![config.vocab, config.hidden];
    add(format!("{prefix}{EMBEDDING}"), Part::Embedding, Some(embedding), vocabulary.clone());
    if !config.tied {
        add(head.to_owned(), Part::Head, Some(embedding), vocabulary);
    }
    for (layer, which) in inventory::linears(config) {
        let (n, k) = config.linear_shape(which);
        let name = format!("{prefix}{}.weight", linear_name(layer, which));
        if linear.is_none() {
            if !n.is_multiple_of(4) {
                return Err(LoadError::tensor(target, &name, format!("{n} rows cannot be packed by four")));
            }
            add(name.clone(), Part::Linear(layer, which), None, vec![n / 4, k]);
            add(name + "_scale", Part::Scale(layer, which), Some(DenseType::F32), vec![1]);
        } else {
            add(name, Part::Linear(layer, which), linear, vec![n, k]);
        }
    }
    for name in inventory::vectors(config) {
        let tensor = format!("{prefix}{}", vector_name(name, config.architecture));
        add(tensor, Part::Vector(name), Some(DenseType::F32), vec![name.len(config)]);
    }
    // Larger elements first, so that each lies at a multiple of its size, as the format's own writer does.
    let size = |tensor: &Planned| match tensor.dtype {
        "F32" => 4,
        "U8" => 1,
        _ => 2,
    };
    plan.sort_by(|a, b| size(b).cmp(&size(a)).then_with(|| a.name.cmp(&b.name)));
    Ok(plan)
}

fn header(plan: &[Planned]) -> Vec<u8> {
    let mut table = Map::new();
    table.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut start = 0;
    for tensor in plan {
        let offsets = [start, start + tensor.bytes];
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets });
        table.insert(tensor.name.clone(), entry);
        start = offsets[1];
    }
    let mut json = Value::Object(table).to_string();
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json.as_bytes());
    out
}

fn stream(
    source: &dyn WeightSource,
    tensor: &Planned,
    linear: Option<DenseType>,
    embedding: DenseType,
    out: &mut PartialFile,
) -> Result<(), LoadError> {
    let layout = RopeLayout::HalfSplit;
    let name = &tensor.name;
    let refused = |reason: String, out: &PartialFile| LoadError::tensor(out.named(), name, reason);
    match tensor.part {
        Part::Linear(layer, which) => match linear {
            Some(ty) => convert::write_linear(source, (layer, which), ty, layout, out, name),
            None => {
                let packed = convert::trits(source, layer, which, layout).and_then(|trits| encode::hf_packed(&trits));
                let packed = packed.map_err(|reason| refused(reason, out))?;
                out.write(&packed)
            }
        },
        Part::Scale(layer, which) => {
            let trits = convert::trits(source, layer, which, layout).map_err(|reason| refused(reason, out))?;
            out.write(&trits.scale().to_le_bytes())
        }
        Part::Vector(vector) => {
            // Gemma stores its gains less one.
            let less = if source.config().architecture == Architecture::Gemma3 { 1.0 } else { 0.0 };
            let values = convert::vector(source, vector, layout)?;
            out.write(&values.iter().flat_map(|value| (value - less).to_le_bytes()).collect::<Vec<_>>())
        }
        Part::Embedding | Part::Head | Part::RopeDivisors => {
            let head = if tensor.part == Part::Head { source.head()? } else { None };
            let matrix = head.map_or_else(|| source.embedding(), Ok)?;
            convert::write_dense(&matrix, embedding, |row| row, out, name)
        }
    }
}

/// The keys that [`super::config::config`] reads, under the names that transformers gives them.
fn config_json(c: &ModelConfig, packed: bool, embedding: DenseType) -> Value {
    let (model_type, class) = match c.architecture {
        Architecture::Bitnet => ("bitnet", "BitNetForCausalLM"),
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
        Architecture::Minicpm => ("minicpm", "MiniCPMForCausalLM"),
    };
    let activation = match c.activation {
        Activation::Relu2 => "relu2",
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let mut json = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": activation,
        "max_position_embeddings": c.context,
        "rms_norm_eps": number(c.norm_eps),
        "rope_theta": number(c.rope_theta),
        "tie_word_embeddings": c.tied,
        "torch_dtype": match embedding { DenseType::F32 => "float32", DenseType::BF16 => "bfloat16", _ => "float16" },
    });
    if packed {
        json["quantization_config"] =
            json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline" });
    }
    if let Some(scaling) = c.rope_scaling {
        json["rope_scaling"] = json!({
            "rope_type": "llama3",
            "factor": number(scaling.factor),
            "low_freq_factor": number(scaling.low_freq_factor),
            "high_freq_factor": number(scaling.high_freq_factor),
            "original_max_position_embeddings": scaling.original_context,
        });
    }
    if c.architecture == Architecture::Gemma3 {
        json["hidden_activation"] = activation.into();
        json["query_pre_attn_scalar"] = c.head_dim.into();
        if let Some(sliding) = c.sliding {
            json["sliding_window"] = sliding.window.into();
            json["sliding_window_pattern"] = sliding.pattern.into();
            json["rope_local_base_freq"] = number(sliding.rope_theta);
        }
    }
    if c.architecture == Architecture::Minicpm {
        json["scale_emb"] = number(c.embedding_scale);
        json["scale_depth"] = (f64::from(c.residual_scale) * (c.n_layers as f64).sqrt()).into();
        json["dim_model_base"] = (f64::from(c.logit_scale) * c.hidden as f64).into();
    }
    json
}

/// A float as its shortest decimal, not as the f64 next to it.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn tokenizer(conversion: &Conversion<'_>, folder: &PartialFolder, target: &Path) -> Result<(), LoadError> {
    let made;
    let tokenizer = match &conversion.tokenizer {
        TokenizerFrom::None => return Ok(()),
        TokenizerFrom::Made(tokenizer) => *tokenizer,
        TokenizerFrom::Path(path) if path.is_dir() => {
            for name in TOKENIZER_FILES.iter().filter(|name| path.join(name).is_file()) {
                let from = path.join(name);
                let bytes = std::fs::read(&from).map_err(|error| LoadError::io(&from, error))?;
                folder.write(name, &bytes)?;
            }
            return Ok(());
        }
        TokenizerFrom::Path(path) => {
            made = Tokenizer::for_model(path)?;
            &made
        }
    };
    let files = tokenizer.to_hugging_face().map_err(|error| LoadError::file(target, error))?;
    for (name, json) in files {
        folder.write(name, json.as_bytes())?;
    }
    Ok(())
}
