//! `ternbench import`: results that llama-bench printed earlier, as records beside our own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use ternbench_measure::{Host, RecordWriter, RunContext, record};

use crate::opponent::{self, Row};

#[derive(clap::Args)]
#[command(after_help = "Example:
  llama-bench -m model.gguf -r 5 -o jsonl > saved.jsonl
  ternbench import saved.jsonl --records results/runs/mine/records.jsonl")]
pub struct Args {
    /// What llama-bench printed with `-o jsonl` or `-o json`
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// Append the records to this file; standard output when not given
    #[arg(long)]
    records: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut records = Vec::new();
    for file in &args.file {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
        let rows = opponent::parse(&text).with_context(|| format!("importing {name}"))?;
        let group = format!("imported {}", file.file_name().unwrap_or_default().to_string_lossy());
        records.extend(rows.iter().map(|row| to_record(row, &group)));
    }
    // Everything is read before anything is written: a bad file leaves no half of itself.
    let mut writer = match &args.records {
        Some(path) => RecordWriter::open(path)?,
        None => RecordWriter::stdout()?,
    };
    records.iter().try_for_each(|record| writer.append(record))?;
    Ok(ExitCode::SUCCESS)
}

/// The record of a row: it keeps the CPU and the time that the row names, and says that it was not measured here.
fn to_record(row: &Row, group: &str) -> record::Record {
    let cpu = if row.cpu_info.is_empty() { "unknown CPU" } else { &row.cpu_info };
    let host = Host { host_id: "imported".into(), cpu: cpu.into(), arch: "unknown".into(), ..Host::default() };
    let ns = row.samples_ns();
    let speed = record::Speed {
        group: group.to_owned(),
        samples: record::Samples {
            tokens: row.n_prompt + row.n_gen,
            rounds: (0..ns.len() as u32).collect(),
            ns,
            positions: Vec::new(),
        },
        refused: row.samples_ns().is_empty().then(|| "llama-bench printed no time".to_owned()),
        ..row.speed_record("imported")
    };
    let mut record = RunContext::new(group, &host).record(speed);
    if !row.test_time.is_empty() {
        record.time.clone_from(&row.test_time);
    }
    record
}
