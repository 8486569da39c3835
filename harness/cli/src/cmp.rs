//! `ternbench cmp`: contenders of one run side by side.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use ternbench_measure::Env;
use ternbench_report::{Run, compare};

use crate::output::{self, Output};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench cmp RUN                     everything against the fastest of its group
  ternbench cmp RUN --by kernel         only pairs that differ in nothing but the kernel
  ternbench cmp RUN --base llama-3.2    against the contenders whose model or kernel contains this")]
pub struct Args {
    /// A run's folder or its records.jsonl
    run: PathBuf,
    /// What the two of a pair may differ in
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Compare with contenders whose model or kernel contains this, instead of with the fastest
    #[arg(long)]
    base: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `--by`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default)]
enum By {
    /// Anything
    #[default]
    Any,
    /// Only the kernel
    Kernel,
    /// Only the model or its weights
    Model,
    /// Only the threads
    Threads,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let run = Run::read(&args.run)?;
    let by = match args.by {
        By::Any => compare::By::Any,
        By::Kernel => compare::By::Kernel,
        By::Model => compare::By::Model,
        By::Threads => compare::By::Threads,
    };
    let pairs = compare::cmp(&run.records, by, args.base.as_deref());
    if pairs.is_empty() {
        bail!("{} has no two contenders of one group to compare like this", args.run.display());
    }
    output::print(&compare::cmp_table(&pairs), args.output, &[noise(&run)], env)?;
    Ok(ExitCode::SUCCESS)
}

/// The noise floor in words.
pub fn noise(run: &Run) -> String {
    match compare::noise_floor(&run.records) {
        Some(floor) => format!("noise floor of this run: {:.1} %, that of its worst A/A run", floor * 100.0),
        None => "no noise floor was measured: this run has no A/A run".into(),
    }
}
