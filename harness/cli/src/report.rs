//! `ternbench report`: the report of a finished run, made anew from its raw records.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use ternbench_measure::{Env, run_dir};
use ternbench_report::table::Table;
use ternbench_report::{Document, Run, energy, frame, judge, sections};

use crate::claims;
use crate::output::{self, Output};
use crate::pairing;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench report results/runs/2026-01-31-host-claims       writes report.md, report.html, plots, CSV and Parquet into the run's folder
  ternbench report RUN --table samples -o parquet > s.parquet
  ternbench report RUN EVAL_RUN --out /tmp/both              several runs in one report
  ternbench report RUN --judge                               exit code 3 if a judged claim was not reproduced")]
pub struct Args {
    /// A run's folder or its records.jsonl; several make one report
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Folder the report and a copy of the records are written to [default: the first run's, where the records are]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Leave out the PNG twins of the SVG plots
    #[arg(long)]
    no_png: bool,
    /// Print this table instead of writing files
    #[arg(long, value_enum)]
    table: Option<Which>,
    /// Format of the table
    #[arg(short, long, value_enum, default_value_t, requires = "table")]
    output: Output,
    /// End with exit code 3 if a judged claim was not reproduced
    #[arg(long)]
    judge: bool,
}

/// `--table`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// The ledger
    Claims,
    /// Tokens per second
    Speed,
    /// Kernels on their own
    Kernels,
    /// A/A runs
    Noise,
    /// Memory
    Memory,
    /// Joules by the published formula
    Energy,
    /// Every raw sample
    Samples,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let mut run = Run::read_all(&args.runs)?;
    pairing::pair(&mut run);
    run.damaged.iter().for_each(|line| eprintln!("left out: {line}"));
    if let Some(which) = args.table {
        output::print(&table(&run, which)?, args.output, &[], env)?;
        return Ok(claims::exit_code(&judge(&run), args.judge));
    }
    let document = Document::new(&run)?;
    let folder = args.out.as_ref().unwrap_or(&run.folder);
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    if args.out.is_some() {
        keep_evidence(&run, folder)?;
    }
    for path in document.save(folder, !args.no_png)? {
        println!("{}", path.display());
    }
    println!("{}", document.ledger.summary());
    Ok(claims::exit_code(&document.ledger, args.judge))
}

/// A report elsewhere takes its records along: without them it could not be checked.
fn keep_evidence(run: &Run, folder: &Path) -> Result<()> {
    let mut lines = String::new();
    for record in &run.records {
        lines += &format!("{}\n", serde_json::to_string(record)?);
    }
    run_dir::write_atomic(&folder.join(run_dir::RECORDS), lines.as_bytes())?;
    if let Some(host) = &run.host {
        let json = format!("{}\n", serde_json::to_string_pretty(host)?);
        run_dir::write_atomic(&folder.join(run_dir::HOST), json.as_bytes())?;
    }
    Ok(())
}

fn table(run: &Run, which: Which) -> Result<Table> {
    Ok(match which {
        Which::Claims => sections::claims(&judge(run)),
        Which::Speed => sections::speed(&frame::speed_rows(&run.records)?),
        Which::Kernels => sections::kernels(&frame::kernel_rows(&run.records)?),
        Which::Noise => sections::noise(&run.records),
        Which::Memory => sections::memory(&run.records),
        Which::Energy => energy::table(),
        Which::Samples => sections::samples(&run.records),
    })
}
