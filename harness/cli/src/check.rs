//! `ternbench check`: fails on a regression against a baseline run, for CI.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use ternbench_measure::Env;
use ternbench_report::check::{self, Problem};
use ternbench_report::{Run, compare};

use crate::diff;
use crate::output::{self, Output};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  ternbench check results/runs/NEW --baseline results/runs/OLD --tolerance 5
Exit codes: 0 nothing is worse, 1 something is (or the runs cannot be read), 2 wrong usage.")]
pub struct Args {
    /// The run to check
    run: PathBuf,
    /// The run it must not be worse than
    #[arg(long)]
    baseline: PathBuf,
    /// How much slower or larger is allowed, in percent
    #[arg(long, default_value = "5", value_parser = diff::parse_percent)]
    tolerance: f64,
    /// Noise floor in percent, instead of the one that the runs show
    #[arg(long, value_parser = diff::parse_percent)]
    noise: Option<f64>,
    /// Contenders that only the baseline has are no problem
    #[arg(long)]
    allow_missing: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let (before, after) = (Run::read(&args.baseline)?, Run::read(&args.run)?);
    let diff::Compared { differences, mut notes } = diff::compare(&before, &after, args.noise);
    let mut problems = check::problems(&before.records, &after.records, &differences, args.tolerance);
    problems.retain(|problem| !args.allow_missing || !matches!(problem, Problem::Missing(_)));
    notes.extend(problems.iter().map(|problem| format!("WORSE: {problem}")));
    if problems.is_empty() {
        notes.push(format!("nothing is worse by more than {:.1} %", args.tolerance * 100.0));
    }
    output::print(&compare::diff_table(&differences), args.output, &notes, env)?;
    if args.output != Output::Text {
        problems.iter().for_each(|problem| eprintln!("WORSE: {problem}"));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
