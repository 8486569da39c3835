//! `ternbench rank`: kernels by the geometric mean over shapes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use ternbench_measure::Env;
use ternbench_report::{Run, rank};

use crate::output::{self, Output};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  ternbench kernels bench -o jsonl > bench.jsonl && ternbench rank bench.jsonl")]
pub struct Args {
    /// A run's folder or its records.jsonl, with kernels timed on their own
    run: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let run = Run::read(&args.run)?;
    let places = rank::rank(&run.records);
    if places.is_empty() {
        bail!("{} has no kernel timed on its own; `ternbench kernels bench` makes such records", args.run.display());
    }
    let note =
        "geometric mean over shapes of the speed against the best; bounded kernels are ranked apart from exact ones";
    output::print(&rank::table(&places), args.output, &[note.into()], env)?;
    Ok(ExitCode::SUCCESS)
}
