//! `ternbench`: the referee for ternary LLMs. One file per subcommand; this one parses the command line and turns an error into
//! one line and an exit code: 0 done, 1 failed, 2 wrong usage, 3 a judged claim was not reproduced (only with `--judge`),
//! 130 ended by Ctrl-C.

/// `println!` that does not panic where nobody reads any more, or a disk is full.
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print_line(format_args!($($argument)*)) };
}

/// `eprintln!` that does not panic either: there is nowhere to say so.
macro_rules! eprintln {
    ($($argument:tt)*) => { $crate::console::warn_line(format_args!($($argument)*)) };
}

mod breakdown;
mod check;
mod claims;
mod cmp;
mod console;
mod diff;
mod eval;
mod eval_runs;
mod footprint;
mod generate;
mod import;
mod kernels;
mod model;
mod open;
mod opponent;
mod output;
mod pairing;
mod probes;
mod race;
mod rank;
mod report;
mod serve;
mod speed;
mod suite;
mod tasks;
mod twins;
mod workload;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use ternbench_measure::interrupt::{self, Interrupted};

/// The referee for ternary LLMs: proves kernels correct, then times them, then judges the published claims.
#[derive(Parser)]
#[command(name = "ternbench", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Judge the published claims of BitNet b1.58 2B4T on this machine (the main job)
    Claims(claims::Args),
    /// List, verify and benchmark the ternary kernels
    #[command(subcommand)]
    Kernels(kernels::Command),
    /// Measure prefill and decode tokens per second
    Speed(speed::Args),
    /// Turn saved results of llama-bench into records
    Import(import::Args),
    /// Write the report of a finished run: Markdown, HTML, plots, CSV, Parquet
    Report(report::Args),
    /// Compare the contenders of a run: kernels, models, threads
    Cmp(cmp::Args),
    /// Compare two runs: which change is real
    Diff(diff::Args),
    /// Rank kernels by the geometric mean over shapes
    Rank(rank::Args),
    /// Fail if a run is worse than a baseline run
    Check(check::Args),
    /// Score PIQA, GSM8K or the perplexity of a text
    Eval(eval::Args),
    /// Show the whole experiment on two small trained models that ship with ternbench
    Twins(twins::Args),
    /// Make data for evaluations and training
    #[command(subcommand)]
    Tasks(tasks::Command),
    /// Continue a prompt, streaming
    Generate(generate::Args),
    /// Serve a model to OpenAI-compatible clients
    Serve(serve::Args),
    /// Look into a model: its tensors, tokens and logits
    #[command(subcommand)]
    Model(model::Command),
    /// Print a shell completion script
    #[command(
        after_help = "Example:\n  ternbench completions bash > ~/.local/share/bash-completion/completions/ternbench"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    // Before the first thread, which would make an arena of its own.
    ternbench_measure::memory::return_freed_blocks();
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: a chain's parts often repeat each other.
            let _ = writeln!(std::io::stderr(), "ternbench: {}", console::one_line(&error));
            if error.is::<Interrupted>() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let env = ternbench_measure::Env::read()?;
    match command {
        Command::Claims(args) => claims::run(args, &env),
        Command::Kernels(command) => kernels::run(command, &env),
        Command::Speed(args) => speed::run(args, &env),
        Command::Import(args) => import::run(args),
        Command::Report(args) => report::run(args, &env),
        Command::Cmp(args) => cmp::run(args, &env),
        Command::Diff(args) => diff::run(args, &env),
        Command::Rank(args) => rank::run(args, &env),
        Command::Check(args) => check::run(args, &env),
        Command::Eval(args) => eval::run(args, &env),
        Command::Twins(args) => twins::run(args, &env),
        Command::Tasks(command) => tasks::run(command),
        Command::Generate(args) => generate::run(args, &env),
        Command::Serve(args) => serve::run(args, &env),
        Command::Model(command) => model::run(command, &env),
        Command::Completions { shell } => {
            // To memory first: clap_complete panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ternbench", &mut script);
            console::Stdout.write_all(&script).context("writing to the standard output")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// `ternbench generate … | head` is no failure, nor is `-o jsonl`: what goes on as long as somebody reads.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
