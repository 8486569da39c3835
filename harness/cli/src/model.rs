//! `ternbench model`: what a model file holds, its tokens and its logits.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use ternbench_measure::Env;
use ternbench_model::tokenizer::SpecialText;
use ternbench_model::weights::{LinearName, LinearWeights};
use ternbench_model::{Engine, Logits, Segment, Tokenizer};

use crate::console::{bytes, count};
use crate::open::{self, LayoutArg, ModelArgs};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show architecture, shape, storage types and sizes
    #[command(
        after_help = "Examples:\n  ternbench model inspect -m model.gguf\n  ternbench model inspect -m synthetic:bitnet-2b4t -o json"
    )]
    Inspect {
        /// A GGUF file, a folder with config.json and safetensors, or synthetic:NAME
        #[arg(short, long)]
        model: String,
        #[command(flatten)]
        layout: LayoutArg,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print the logits behind given token ids
    #[command(after_help = "Example:\n  ternbench model logits -m model.gguf --ids 1,2,3 --all-positions -o json")]
    Logits {
        #[command(flatten)]
        model: ModelArgs,
        /// Token ids
        #[arg(long, value_delimiter = ',', required = true)]
        ids: Vec<u32>,
        /// A row for every position, not only the last
        #[arg(long)]
        all_positions: bool,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print the token ids of a text
    #[command(after_help = "Example:\n  ternbench model tokenize -m model.gguf --text-file prompt.txt")]
    Tokenize {
        /// A GGUF file, a folder, or a tokenizer file
        #[arg(short, long)]
        model: String,
        /// The text
        #[arg(long, conflicts_with = "text_file", required_unless_present = "text_file")]
        text: Option<String>,
        /// A file with the text, taken to the byte
        #[arg(long)]
        text_file: Option<PathBuf>,
        /// Read special tokens in the text as such
        #[arg(long)]
        special: bool,
    },
}

/// `-o`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

pub fn run(command: Command, env: &Env) -> Result<ExitCode> {
    match command {
        Command::Inspect { model, layout, output } => inspect(&model, layout, output)?,
        Command::Logits { model, ids, all_positions, output } => logits(&model, &ids, all_positions, output, env)?,
        Command::Tokenize { model, text, text_file, special } => tokenize(&model, text, text_file, special)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Sums over the linear layers of one storage type.
#[derive(Default, serde::Serialize)]
struct TypeSum {
    matrices: u64,
    weights: u64,
    stored_bytes: u64,
}

fn inspect(model: &str, layout: LayoutArg, output: Output) -> Result<()> {
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

fn logits(model: &ModelArgs, ids: &[u32], all: bool, output: Output, env: &Env) -> Result<()> {
    let (loaded, pool) = model.load(env)?;
    let mut engine = Engine::new(&loaded.model, &pool);
    let mut cache = engine.new_cache(ids.len());
    let wanted = if all { Logits::From(0) } else { Logits::Last };
    let logits = engine.forward(&mut [Segment { cache: &mut cache, tokens: ids, logits: wanted }])?;
    let rows: Vec<&[f32]> = logits.chunks_exact(loaded.model.config().vocab).collect();
    if output == Output::Json {
        println!("{}", serde_json::to_string(&json!({ "logits": rows }))?);
        return Ok(());
    }
    for row in rows {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let top: Vec<String> = order.iter().take(8).map(|&id| format!("{id}: {:.4}", row[id])).collect();
        println!("{}", top.join("  "));
    }
    Ok(())
}

fn tokenize(model: &str, text: Option<String>, file: Option<PathBuf>, special: bool) -> Result<()> {
    let text = match (text, file) {
        (Some(text), _) => text,
        (None, Some(file)) => std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?,
        (None, None) => bail!("give --text or --text-file"),
    };
    let tokenizer: Tokenizer = open::tokenizer(model)?;
    let ids = tokenizer.encode(&text, if special { SpecialText::Parsed } else { SpecialText::AsText })?;
    println!("{}", json!({ "ids": ids }));
    Ok(())
}
