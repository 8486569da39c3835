//! `ternbench model inspect`: what a model file holds.

use anyhow::Result;
use serde_json::json;
use ternbench_model::weights::{LinearName, LinearWeights};

use super::Output;
use crate::console::{bytes, count};
use crate::open::{self, LayoutArg};

/// Sums over the linear layers of one storage type.
#[derive(Default, serde::Serialize)]
struct TypeSum {
    matrices: u64,
    weights: u64,
    stored_bytes: u64,
}

pub fn run(model: &str, layout: LayoutArg, output: Output) -> Result<()> {
    let source = open::source(model, layout.into())?;
    let config = source.config();
    let mut types = std::collections::BTreeMap::<String, TypeSum>::new();
    let (mut trits, mut zeros) = (0u64, 0u64);
    let bar = crate::console::bar(config.n_layers as u64, "reading");
    for layer in 0..config.n_layers {
        for which in LinearName::ALL {
            let (name, weights, stored) = match source.linear(layer, which)? {
                LinearWeights::Ternary(matrix) => {
                    trits += matrix.trits().len() as u64;
                    zeros += matrix.trits().iter().map(|&trit| u64::from(trit == 0)).sum::<u64>();
                    ("ternary".to_owned(), matrix.trits().len() as u64, matrix.trits().len() as u64 / 4)
                }
                LinearWeights::Dense(matrix) => {
                    (matrix.ty().name().to_owned(), (matrix.n() * matrix.k()) as u64, matrix.data().len() as u64)
                }
            };
            let sum = types.entry(name).or_default();
            sum.matrices += 1;
            sum.weights += weights;
            sum.stored_bytes += stored;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let embedding = source.embedding()?;
    let hash = source.hash()?;
    let tokenizer = open::tokenizer(model).ok();
    if output == Output::Json {
        let value = json!({
            "model": source.name(), "sha256": hash, "file_bytes": source.stored_bytes(), "config": config,
            "linear": types, "zero_share": (trits > 0).then(|| zeros as f64 / trits as f64),
            "embedding": { "type": embedding.ty().name(), "bytes": embedding.data().len() },
            "linear_parameters": config.linear_parameters(), "embedding_parameters": config.embedding_parameters(),
            "tokenizer": tokenizer.as_ref().map(|t| json!({ "vocab": t.vocab_size(), "bos": t.bos_id(), "eos": t.eos_ids() })),
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    println!("{}", source.name());
    println!("  sha256         {hash}");
    if source.stored_bytes() > 0 {
        println!("  file           {}", bytes(source.stored_bytes()));
    }
    let c = config;
    println!("  architecture   {:?}, {} layers, hidden {}, ffn {}", c.architecture, c.n_layers, c.hidden, c.ffn);
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
    for (name, sum) in &types {
        let bits = sum.stored_bytes as f64 * 8.0 / sum.weights as f64;
        println!(
            "  linear         {} matrices {name}, {} at {bits:.2} bits a weight",
            sum.matrices,
            bytes(sum.stored_bytes)
        );
    }
    if trits > 0 {
        println!("  zero trits     {:.1} %", zeros as f64 * 100.0 / trits as f64);
    }
    let tied = if c.tied { ", tied to the head" } else { "" };
    println!(
        "  embedding      {} x {} {}, {}{tied}",
        c.vocab,
        c.hidden,
        embedding.ty().name(),
        bytes(embedding.data().len() as u64)
    );
    match tokenizer {
        Some(t) => {
            let template = if t.chat_template().is_some() { "a chat template" } else { "no chat template" };
            println!(
                "  tokenizer      {} tokens, bos {:?}, ends {:?}, {template}",
                t.vocab_size(),
                t.bos_id(),
                t.eos_ids()
            );
        }
        None => println!("  tokenizer      none"),
    }
    Ok(())
}
