//! `ternbench model inspect`: what a model file holds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use ternbench_measure::Env;
use ternbench_model::weights::gguf::{GgufFile, unpack};
use ternbench_model::weights::{LinearName, LinearWeights, ModelPart, WeightSource};
use ternbench_model::{Engine, Transformer, sanity};

use super::Output;
use crate::console::{bytes, count};
use crate::open::{self, I2sLayoutArg, LayoutArg};

/// Sums over the tensors of one part and storage type.
#[derive(Default, Serialize)]
struct TypeSum {
    matrices: u64,
    weights: u64,
    stored_bytes: u64,
    bits_per_weight: f64,
}

type Parts = BTreeMap<ModelPart, BTreeMap<String, TypeSum>>;

/// The trits of a model, counted.
#[derive(Default)]
struct Trits {
    all: u64,
    zeros: u64,
}

impl Trits {
    fn zero_share(&self) -> Option<f64> {
        (self.all > 0).then(|| self.zeros as f64 / self.all as f64)
    }
}

/// Where a file says what it may be used for.
fn licence(model: &str) -> Option<String> {
    let path = Path::new(model);
    if path.is_dir() {
        return ["LICENSE", "LICENSE.md", "LICENSE.txt"]
            .iter()
            .find_map(|name| path.join(name).is_file().then(|| format!("in {name}")));
    }
    let file = GgufFile::open(path).ok()?;
    file.str("general.license").ok().flatten().map(str::to_owned)
}

pub fn run(model: &str, layout: LayoutArg, output: Output) -> Result<()> {
    let source = open::source(model, layout.into())?;
    let config = source.config();
    let (parts, trits) = read(&*source)?;
    let hash = source.hash()?;
    let tokenizer = open::tokenizer(model).ok();
    if output == Output::Json {
        let value = json!({
            "model": source.name(), "sha256": hash, "file_bytes": source.stored_bytes(), "licence": licence(model),
            "config": config, "linear": parts.get(&ModelPart::Linear), "parts": parts, "zero_share": trits.zero_share(),
            "linear_parameters": config.linear_parameters(), "embedding_parameters": config.embedding_parameters(),
            "tokenizer": tokenizer.as_ref().map(|t| json!({
                "vocab": t.vocab_size(), "bos": t.bos_id(), "eos": t.eos_ids(), "chat_template": t.chat_template()
            })),
            "tensors": source.stored(),
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    println!("{}", source.name());
    println!("  sha256         {hash}");
    if source.stored_bytes() > 0 {
        println!("  file           {}", bytes(source.stored_bytes()));
    }
    println!("  licence        {}", licence(model).as_deref().unwrap_or("not said"));
    let c = config;
    println!(
        "  architecture   {:?}, {} layers, hidden {}, ffn {}, {:?}",
        c.architecture, c.n_layers, c.hidden, c.ffn, c.activation
    );
    println!(
        "  attention      {} heads of {}, {} kv heads, rope base {}",
        c.n_heads, c.head_dim, c.n_kv_heads, c.rope_theta
    );
    println!("  context        {} positions", c.context);
    println!(
        "  parameters     {} linear + {} embedding",
        count(c.linear_parameters()),
        count(c.embedding_parameters())
    );
    for (part, types) in &parts {
        for (name, sum) in types {
            print_sum(*part, name, sum, c.tied);
        }
    }
    if let Some(share) = trits.zero_share() {
        println!("  zero trits     {:.1} %", share * 100.0);
    }
    match tokenizer {
        Some(t) => {
            let template = match t.chat_template() {
                Some(template) => format!("a chat template of {} characters", template.chars().count()),
                None => "no chat template".to_owned(),
            };
            println!(
                "  tokenizer      {} tokens, bos {}, ends {:?}, {template}",
                t.vocab_size(),
                t.bos_id().map_or("none".to_owned(), |id| id.to_string()),
                t.eos_ids()
            );
        }
        None => println!("  tokenizer      none"),
    }
    Ok(())
}

fn print_sum(part: ModelPart, name: &str, sum: &TypeSum, tied: bool) {
    let title = match part {
        ModelPart::Linear => "linear",
        ModelPart::Embedding => "embedding",
        ModelPart::Head => "head",
        ModelPart::Vectors => "norms, scales",
    };
    let tied = if part == ModelPart::Embedding && tied { ", tied to the head" } else { "" };
    // Types without a kernel are multiplied as floats.
    let floats = unpack::NAMES.contains(&name);
    let floats = if floats { ", computed as F32 (model convert --type f16 repacks it)" } else { "" };
    println!(
        "  {title:14} {} x {name}, {} at {:.2} bits a weight{tied}{floats}",
        sum.matrices,
        bytes(sum.stored_bytes),
        sum.bits_per_weight
    );
}

/// Sums up the tensors, and counts the trits.
fn read(source: &dyn WeightSource) -> Result<(Parts, Trits)> {
    let config = source.config();
    let mut parts = Parts::new();
    let mut add = |part, name: &str, weights: u64, stored: u64| {
        let sum = parts.entry(part).or_default().entry(name.to_owned()).or_default();
        sum.matrices += 1;
        sum.weights += weights;
        sum.stored_bytes += stored;
        sum.bits_per_weight = sum.stored_bytes as f64 * 8.0 / sum.weights as f64;
    };
    let stored = source.stored();
    for tensor in &stored {
        add(tensor.part, &tensor.ty, tensor.shape.iter().product::<usize>() as u64, tensor.bytes);
    }
    let mut trits = Trits::default();
    let bar = crate::console::bar(config.n_layers as u64, "reading");
    for layer in 0..config.n_layers {
        for which in LinearName::ALL {
            match source.linear(layer, which)? {
                LinearWeights::Ternary(matrix) => {
                    trits.all += matrix.trits().len() as u64;
                    trits.zeros += matrix.trits().iter().map(|&trit| u64::from(trit == 0)).sum::<u64>();
                    if stored.is_empty() {
                        add(ModelPart::Linear, "trits", matrix.trits().len() as u64, matrix.trits().len() as u64 / 4);
                    }
                }
                LinearWeights::Dense(matrix) if stored.is_empty() => {
                    let weights = (matrix.n() * matrix.k()) as u64;
                    add(ModelPart::Linear, matrix.ty().name(), weights, matrix.data().len() as u64);
                }
                LinearWeights::Dense(_) => {}
            }
        }
        source.release();
        bar.inc(1);
    }
    bar.finish_and_clear();
    if stored.is_empty() {
        let embedding = source.embedding()?;
        let weights = (config.vocab * config.hidden) as u64;
        add(ModelPart::Embedding, embedding.ty().name(), weights, embedding.data().len() as u64);
    }
    Ok((parts, trits))
}

/// Reads English in every I2_S layout.
pub fn check_layout(model: &str, output: Output, env: &Env) -> Result<()> {
    let tokenizer = open::tokenizer(model)?;
    let pool = open::pool(open::threads(None, env))?;
    let kernel = open::kernel(None, env)?;
    let mut found = Vec::new();
    for layout in I2sLayoutArg::value_variants() {
        let name = layout.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        // A layout that the shapes rule out, or that has codes which are no trits, is not the file's.
        let loaded = open::source(model, LayoutArg { i2s_layout: *layout }.into())
            .and_then(|source| Ok(Transformer::load(&*source, kernel, &pool, &|_| {})?));
        let surprise = match loaded {
            Ok(transformer) => Some(sanity::surprise(&mut Engine::new(&transformer, &pool), &tokenizer)?),
            Err(_) => None,
        };
        found.push((name, surprise));
    }
    if output == Output::Json {
        let layouts: Vec<_> = found
            .iter()
            .map(|(name, s)| json!({ "layout": name, "nats_per_token": s.map(|s| s.nats), "noise": s.is_none_or(|s| s.is_noise()) }))
            .collect();
        println!("{}", serde_json::to_string_pretty(&layouts)?);
        return Ok(());
    }
    for (name, surprise) in found {
        match surprise {
            None => println!("  {name:16} cannot be read"),
            Some(s) if s.is_noise() => {
                println!("  {name:16} noise: {:.2} nats a token, chance is {:.2}", s.nats, s.chance)
            }
            Some(s) => println!("  {name:16} makes sense: {:.2} nats a token, chance is {:.2}", s.nats, s.chance),
        }
    }
    Ok(())
}
