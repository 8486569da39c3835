//! Writing GGUF files that llama.cpp, ik_llama.cpp and bitnet.cpp read as far as they know the types: their keys and tensor
//! names, keys in the order of the official 2B4T file.

use std::path::Path;

use ternbench_kernels::DenseType;

use super::config::{self, GEMMA3_LOCAL_THETA, GEMMA3_PATTERN, ROPE_FREQS};
use super::entry::{ALIGNMENT, Entry, header};
use super::types::{self, GgmlType};
use super::{EMBEDDING, HEAD, linear_name, vector_name};
use crate::config::{Activation, Architecture, ModelConfig, RopeLayout};
use crate::error::LoadError;
use crate::tokenizer::{Tokenizer, export};
use crate::weights::convert::{self, Conversion, Part, TokenizerFrom};
use crate::weights::encode::{self, StoredType};
use crate::weights::output::PartialFile;
use crate::weights::{LinearName, VectorName, WeightSource, inventory};

/// A tensor to be written.
struct Planned {
    name: String,
    part: Part,
    ty: StoredType,
    dims: Vec<usize>,
    bytes: usize,
}

fn type_id(ty: StoredType) -> Result<GgmlType, String> {
    let id = match ty {
        StoredType::I2S => types::I2_S,
        StoredType::Tq1_0 => types::TQ1_0,
        StoredType::Tq2_0 => types::TQ2_0,
        StoredType::Dense(DenseType::F32) => 0,
        StoredType::Dense(DenseType::F16) => 1,
        StoredType::Dense(DenseType::Q4_0) => 2,
        StoredType::Dense(DenseType::Q4_1) => 3,
        StoredType::Dense(DenseType::Q8_0) => 8,
        StoredType::Dense(DenseType::BF16) => 30,
    };
    GgmlType::from_id(id)
}

/// Writes `source` to the file `target`.
pub(in crate::weights) fn write(
    source: &dyn WeightSource,
    target: &Path,
    conversion: &Conversion<'_>,
    progress: &dyn Fn(usize, usize),
) -> Result<u64, LoadError> {
    let config = source.config();
    let bad = |reason: String| LoadError::file(target, reason);
    let arch = arch(config).map_err(bad)?;
    let plan = plan(config, conversion, target)?;
    let mut entries = vec![Entry::str("general.architecture", arch)];
    entries.extend(general(source, conversion));
    entries.extend(describe(config, arch, conversion.ty));
    entries.extend(tokenizer(conversion, config.vocab)?);

    let table: Vec<_> = plan
        .iter()
        .map(|tensor| Ok((tensor.name.clone(), tensor.dims.clone(), type_id(tensor.ty)?.id, tensor.bytes)))
        .collect::<Result<_, String>>()
        .map_err(bad)?;
    let mut out = PartialFile::create(target)?;
    out.write(&header(&entries, &table))?;
    let layout = rope_layout(config.architecture);
    for (done, tensor) in plan.iter().enumerate() {
        progress(done, plan.len());
        let start = out.bytes();
        stream(source, tensor, layout, &mut out)?;
        let written = (out.bytes() - start) as usize;
        if written != tensor.bytes {
            let reason = format!("{written} bytes were written, {} announced", tensor.bytes);
            return Err(LoadError::tensor(target, &tensor.name, reason));
        }
        out.write(&[0; ALIGNMENT][..written.next_multiple_of(ALIGNMENT) - written])?;
        source.release();
    }
    progress(plan.len(), plan.len());
    out.finish()
}

/// The name of a family. `bitnet` files run SiLU in bitnet.cpp and llama.cpp, `bitnet-b1.58` files relu².
fn arch(config: &ModelConfig) -> Result<&'static str, String> {
    match (config.architecture, config.activation) {
        (Architecture::Bitnet, Activation::Relu2) => Ok("bitnet-b1.58"),
        (Architecture::Bitnet, Activation::Silu) => Ok("bitnet"),
        (Architecture::Llama, Activation::Silu) => Ok("llama"),
        (Architecture::Qwen2, Activation::Silu) => Ok("qwen2"),
        (Architecture::Gemma3, Activation::GeluTanh) => Ok("gemma3"),
        (Architecture::Minicpm, Activation::Silu) => Ok("minicpm"),
        (family, activation) => Err(format!("GGUF has no name for a {family:?} model with {activation:?}")),
    }
}

/// How heads rotate in the files of a family.
fn rope_layout(architecture: Architecture) -> RopeLayout {
    match architecture {
        Architecture::Llama | Architecture::Minicpm => RopeLayout::Interleaved,
        _ => RopeLayout::HalfSplit,
    }
}

fn plan(config: &ModelConfig, conversion: &Conversion<'_>, target: &Path) -> Result<Vec<Planned>, LoadError> {
    let embedding = StoredType::Dense(conversion.embedding_type());
    let f32 = StoredType::Dense(DenseType::F32);
    let mut plan = Vec::new();
    let mut add = |name: String, part, ty: StoredType, dims: Vec<usize>| {
        let bytes = type_id(ty).ok().and_then(|id| id.tensor_bytes(&dims));
        let bytes = bytes.ok_or_else(|| {
            let reason = format!("its {} weights a row do not fit the blocks of {}", dims[0], ty.name());
            LoadError::tensor(target, &name, reason)
        })?;
        plan.push(Planned { name, part, ty, dims, bytes });
        Ok::<_, LoadError>(())
    };
    let vocabulary = vec![config.hidden, config.vocab];
    add(EMBEDDING.to_owned(), Part::Embedding, embedding, vocabulary.clone())?;
    if let Some(scaling) = config.rope_scaling {
        let known = (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context) == (1.0, 4.0, 8192);
        if !known {
            let reason = "GGUF files hold Llama 3's RoPE scaling with low 1, high 4 and original context 8192 only";
            return Err(LoadError::file(target, reason));
        }
        add(ROPE_FREQS.to_owned(), Part::RopeDivisors, f32, vec![config.head_dim / 2])?;
    }
    let vectors = inventory::vectors(config);
    for layer in 0..config.n_layers {
        for which in LinearName::ALL {
            let (n, k) = config.linear_shape(which);
            add(linear_name(layer, which) + ".weight", Part::Linear(layer, which), conversion.ty, vec![k, n])?;
        }
        for &name in vectors.iter().filter(|name| name.layer() == Some(layer)) {
            add(vector_name(name), Part::Vector(name), f32, vec![name.len(config)])?;
        }
    }
    let norm = VectorName::OutputNorm;
    add(vector_name(norm), Part::Vector(norm), f32, vec![norm.len(config)])?;
    if !config.tied {
        add(HEAD.to_owned(), Part::Head, embedding, vocabulary)?;
    }
    Ok(plan)
}

fn stream(
    source: &dyn WeightSource,
    tensor: &Planned,
    layout: RopeLayout,
    out: &mut PartialFile,
) -> Result<(), LoadError> {
    let Planned { name, part, ty, .. } = tensor;
    let config = source.config();
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    match (*part, *ty) {
        (Part::Linear(layer, which), StoredType::Dense(ty)) => {
            convert::write_linear(source, (layer, which), ty, layout, out, name)
        }
        (Part::Linear(layer, which), ty) => {
            let encoded = convert::trits(source, layer, which, layout).and_then(|trits| match ty {
                StoredType::I2S => encode::i2s(&trits),
                _ => encode::blocks(&trits, ty),
            });
            let encoded = encoded.map_err(|reason| LoadError::tensor(out.target(), name, reason))?;
            out.write(&encoded)
        }
        (Part::Vector(vector), _) => out.write(&floats(&convert::vector(source, vector, layout)?)),
        (Part::RopeDivisors, _) => {
            let divisor = |j| {
                let scaling = config.rope_scaling.as_ref();
                scaling.map_or(1.0, |scaling| config::llama3_divisor(scaling, config.rope_theta, j, config.head_dim))
            };
            out.write(&floats(&(0..config.head_dim / 2).map(divisor).collect::<Vec<_>>()))
        }
        (Part::Embedding | Part::Head | Part::Scale(..), ty) => {
            let head = if *part == Part::Head { source.head()? } else { None };
            let matrix = head.map_or_else(|| source.embedding(), Ok)?;
            let StoredType::Dense(ty) = ty else {
                return Err(LoadError::tensor(out.target(), name, "an embedding is stored as floats"));
            };
            convert::write_dense(&matrix, ty, |row| row, out, name)
        }
    }
}

/// `general.*` beside the architecture: what the origin says about itself, or the source's name.
fn general(source: &dyn WeightSource, conversion: &Conversion<'_>) -> Vec<Entry> {
    const OURS: [&str; 4] =
        ["general.architecture", "general.file_type", "general.alignment", "general.quantization_version"];
    let carried = conversion
        .gguf_origin()
        .map(|file| file.entries("general.").filter(|entry| !OURS.contains(&entry.key.as_str())).collect::<Vec<_>>());
    carried.unwrap_or_else(|| vec![Entry::str("general.name", source.name())])
}

/// The keys that [`config::config`] reads.
fn describe(c: &ModelConfig, arch: &str, ty: StoredType) -> Vec<Entry> {
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str, value: usize| Entry::u32(key(name), value as u32);
    let mut entries = vec![
        size("vocab_size", c.vocab),
        size("context_length", c.context),
        size("embedding_length", c.hidden),
        size("block_count", c.n_layers),
        size("feed_forward_length", c.ffn),
        size("rope.dimension_count", c.head_dim),
        size("attention.head_count", c.n_heads),
        size("attention.head_count_kv", c.n_kv_heads),
        Entry::f32(key("attention.layer_norm_rms_epsilon"), c.norm_eps),
        Entry::f32(key("rope.freq_base"), c.rope_theta),
    ];
    if c.head_dim * c.n_heads != c.hidden {
        entries.extend([size("attention.key_length", c.head_dim), size("attention.value_length", c.head_dim)]);
    }
    if let Some(sliding) = c.sliding {
        entries.push(size("attention.sliding_window", sliding.window));
        if sliding.pattern != GEMMA3_PATTERN {
            entries.push(size("attention.sliding_window_pattern", sliding.pattern));
        }
        if sliding.rope_theta != GEMMA3_LOCAL_THETA {
            entries.push(Entry::f32(key("rope.freq_base_swa"), sliding.rope_theta));
        }
    }
    if c.architecture == Architecture::Minicpm {
        entries.push(Entry::f32(key("embedding_scale"), c.embedding_scale));
        entries.push(Entry::f32(key("residual_scale"), c.residual_scale));
        entries.push(Entry::f32(key("logit_scale"), 1.0 / c.logit_scale));
    }
    entries.push(Entry::u32("general.file_type", ty.file_type()));
    entries.push(Entry::u32("general.quantization_version", 2));
    entries
}

/// The tokenizer's entries: copied from a GGUF file, or made from whatever else there is.
fn tokenizer(conversion: &Conversion<'_>, vocab: usize) -> Result<Vec<Entry>, LoadError> {
    let made = match &conversion.tokenizer {
        TokenizerFrom::None => return Ok(Vec::new()),
        TokenizerFrom::Made(tokenizer) => return export::gguf(tokenizer, vocab, Path::new("tokenizer")),
        TokenizerFrom::Path(path) => {
            let tokenizer_file = path.extension().is_some_and(|e| e == "json" || e == "model");
            if path.is_file() && !tokenizer_file {
                return Ok(super::GgufFile::open(path)?.entries("tokenizer.").collect());
            }
            (Tokenizer::for_model(path)?, path)
        }
    };
    export::gguf(&made.0, vocab, made.1)
}
