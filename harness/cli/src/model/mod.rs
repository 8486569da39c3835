//! `ternbench model`: what a model file holds, its tokens and its logits; conversion between formats.

mod convert;
mod inspect;
mod verify;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use ternbench_measure::Env;
use ternbench_model::tokenizer::SpecialText;
use ternbench_model::{Logits, Segment, Tokenizer};

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
        /// Read a short English text in every I2_S layout, and say which one makes sense
        #[arg(long)]
        check_layout: bool,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Convert between GGUF and safetensors, and between storage types
    #[command(after_help = convert::EXAMPLES)]
    Convert(convert::Args),
    /// Compare two files of one model: trits, scales, floats and logits
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Args),
    /// Write a synthetic model of a known shape to a file that other engines can load
    #[command(after_help = convert::SYNTH_EXAMPLES)]
    Synth(convert::SynthArgs),
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
        /// A file with the text, taken to the byte, at most 64 MiB
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
        Command::Inspect { model, check_layout: true, output, .. } => inspect::check_layout(&model, output, env)?,
        Command::Inspect { model, layout, output, .. } => inspect::run(&model, layout, output)?,
        Command::Convert(args) => convert::run(args)?,
        Command::Verify(args) => return verify::run(args, env),
        Command::Synth(args) => convert::synth(args)?,
        Command::Logits { model, ids, all_positions, output } => logits(&model, &ids, all_positions, output, env)?,
        Command::Tokenize { model, text, text_file, special } => tokenize(&model, text, text_file, special)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn logits(model: &ModelArgs, ids: &[u32], all: bool, output: Output, env: &Env) -> Result<()> {
    let (loaded, pool) = model.load(env)?;
    let context = loaded.model.config().context;
    ensure!(ids.len() <= context, "{} token ids are more than the model's context of {context}", ids.len());
    let mut engine = loaded.engine(&pool);
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

/// A file's text, at most 64 MiB: a device may never end.
fn read_text(file: &Path) -> Result<String> {
    const LARGEST: u64 = 64 << 20;
    let named = || file.display().to_string();
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    let len = read.with_context(named)?;
    ensure!(len as u64 <= LARGEST, "{}: more than {} MiB of text: cut it into parts", named(), LARGEST >> 20);
    String::from_utf8(bytes).with_context(named)
}

fn tokenize(model: &str, text: Option<String>, file: Option<PathBuf>, special: bool) -> Result<()> {
    let text = match (text, file) {
        (Some(text), _) => text,
        (None, Some(file)) => read_text(&file)?,
        (None, None) => bail!("give --text or --text-file"),
    };
    let tokenizer: Tokenizer = open::tokenizer(model)?;
    let ids = tokenizer.encode(&text, if special { SpecialText::Parsed } else { SpecialText::AsText })?;
    println!("{}", json!({ "ids": ids }));
    Ok(())
}
