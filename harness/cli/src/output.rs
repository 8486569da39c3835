//! `-o`: one table to standard output, in the format asked for.

use std::io::{IsTerminal, Write};

use anyhow::{Result, bail};
use ternbench_measure::Env;
use ternbench_report::export::{self, Format};
use ternbench_report::table::Table;

use crate::console;

/// `-o`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A table for people
    #[default]
    Text,
    /// A Markdown table
    Md,
    /// Comma-separated values
    Csv,
    /// An array of objects
    Json,
    /// One object per line
    Jsonl,
    /// Apache Parquet; redirect it to a file
    Parquet,
}

/// What cannot be printed is said before there is anything to lose.
pub fn check(output: Output) -> Result<()> {
    if output == Output::Parquet && std::io::stdout().is_terminal() {
        bail!("-o parquet is binary: redirect it to a file, or ask for csv");
    }
    Ok(())
}

/// Prints a table. Only text has `notes` below it; other formats are for programs.
pub fn print(table: &Table, output: Output, notes: &[String], env: &Env) -> Result<()> {
    let mut stdout = console::Stdout;
    let format = match output {
        Output::Text => {
            writeln!(stdout, "{}", table.text(console::tables(env)))?;
            for note in notes {
                writeln!(stdout, "{note}")?;
            }
            return Ok(());
        }
        Output::Md => Format::Markdown,
        Output::Csv => Format::Csv,
        Output::Json => Format::Json,
        Output::Jsonl => Format::Jsonl,
        Output::Parquet => Format::Parquet,
    };
    check(output)?;
    stdout.write_all(&export::write(table, format)?)?;
    Ok(stdout.flush()?)
}
