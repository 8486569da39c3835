//! `ternbench tasks`: data for evaluations.

use std::num::ParseIntError;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use ternbench_eval::synthetic::{self, Sizes};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make word problems, common-sense items and plain text, for training and testing, in the formats of GSM8K and PIQA
    #[command(
        after_help = "Example:\n  ternbench tasks generate --out my-tasks && ternbench eval -m model.gguf --task piqa,gsm8k --data my-tasks\n\nScores on generated tasks are not GSM8K or PIQA scores."
    )]
    Generate {
        /// Folder for gsm8k/, piqa/, perplexity/ and drills/; must not exist
        #[arg(short, long)]
        out: PathBuf,
        /// The same seed gives the same items
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Items to train on: word problems, common-sense items, paragraphs
        #[arg(long, value_name = "N,N,N", value_parser = sizes, default_value = "1000,1000,200")]
        train: Sizes,
        /// Rows of ten calculations to train on besides, in drills/
        #[arg(long, value_name = "N", value_parser = count, default_value = "0")]
        drills: usize,
        /// Items to test with, of the same kinds; none shares a template instance with one to train on
        #[arg(long, value_name = "N,N,N", value_parser = sizes, default_value = "500,200,150")]
        test: Sizes,
    },
}

pub fn run(command: Command) -> Result<ExitCode> {
    let Command::Generate { out, seed, train, drills, test } = command;
    if out.exists() {
        bail!("{}: there already; choose another --out, or move it away", out.display());
    }
    for file in synthetic::write(&out, seed, train, drills, test)? {
        println!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Items of a kind, at most: drawing more is a slip of the finger.
const MAX_ITEMS: usize = 10_000_000;

fn count(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|error: ParseIntError| error.to_string())?;
    if count <= MAX_ITEMS { Ok(count) } else { Err(format!("at most {MAX_ITEMS} items of a kind")) }
}

/// `500,200,150`.
fn sizes(text: &str) -> Result<Sizes, String> {
    let counts = text.split(',').map(|text| count(text.trim())).collect::<Result<Vec<_>, _>>()?;
    match counts[..] {
        [word_problems, common_sense, paragraphs] => Ok(Sizes { word_problems, common_sense, paragraphs }),
        _ => Err("three numbers with commas are needed: word problems, common-sense items, paragraphs".to_owned()),
    }
}
