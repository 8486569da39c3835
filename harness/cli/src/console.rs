//! What the commands show people: progress on a terminal, one-line errors, human units.

use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use comfy_table::ContentArrangement;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ternbench_measure::Env;
use ternbench_report::table::Output;

/// A progress bar of `len` steps on standard error; nothing when that is no terminal.
pub fn bar(len: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(len), target());
    let style = ProgressStyle::with_template("{msg:<44!} {bar:24} {pos}/{len}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    bar
}

/// A line on standard error that says what is going on, with the time it takes; nothing when that is no terminal.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_message(what.to_owned());
    // The spinner's own thread wakes rarely: it shares the cores with what is measured.
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr_with_hz(2) } else { ProgressDrawTarget::hidden() }
}

/// The standard output. What nobody reads any longer, as after `| head`, is dropped: the command may be writing a run, and its exit code
/// says what it found.
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        unless_nobody_reads(std::io::stdout().write(bytes), bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        unless_nobody_reads(std::io::stdout().flush(), ())
    }
}

fn unless_nobody_reads<T>(result: std::io::Result<T>, otherwise: T) -> std::io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(otherwise),
        result => result,
    }
}

/// Prints a line to [`Stdout`]. Where it cannot, the program ends.
pub fn print_line(line: Arguments<'_>) {
    if let Err(error) = writeln!(Stdout, "{line}") {
        warn_line(format_args!("ternbench: writing to the standard output: {error}"));
        std::process::exit(1);
    }
}

/// Prints a line to the standard error, if it can.
pub fn warn_line(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// How tables are set: to the terminal's width, plain when piped.
pub fn tables(env: &Env) -> Output {
    if !std::io::stdout().is_terminal() {
        return Output::Plain;
    }
    let width = comfy_table::Table::new().set_content_arrangement(ContentArrangement::Dynamic).width();
    Output::Terminal(width.or(env.columns).unwrap_or(120))
}

/// An error and its causes on one line.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `1.19 GB`: decimal units, as published sizes use.
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, f64); 3] = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let n = n as f64;
    UNITS.iter().find(|(_, size)| n >= *size).map_or(format!("{n} B"), |(unit, size)| {
        let value = n / size;
        if value < 10.0 { format!("{value:.2} {unit}") } else { format!("{value:.0} {unit}") }
    })
}

/// A number of things: `2.08 B`, `135 M`.
pub fn count(n: u64) -> String {
    const UNITS: [(&str, f64); 3] = [("B", 1e9), ("M", 1e6), ("k", 1e3)];
    let n = n as f64;
    UNITS.iter().find(|(_, size)| n >= *size).map_or(format!("{n}"), |(unit, size)| {
        let value = n / size;
        if value < 100.0 { format!("{value:.2} {unit}") } else { format!("{value:.0} {unit}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_decimal() {
        assert_eq!(bytes(1_187_801_280), "1.19 GB");
        assert_eq!(bytes(34_000_000), "34 MB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(count(2_084_044_800), "2.08 B");
    }

    #[test]
    fn errors_are_one_line_without_repetition() {
        let error = anyhow::anyhow!("a\nb").context("reading x: a\nb").context("loading");
        assert_eq!(one_line(&error), "loading: reading x: a b");
    }
}
