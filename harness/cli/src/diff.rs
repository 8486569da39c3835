//! `ternbench diff`: which differences between two runs are real.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use ternbench_measure::Env;
use ternbench_report::compare::{self, Change};
use ternbench_report::{Run, compare::Difference};

use crate::output::{self, Output};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  ternbench diff results/runs/BEFORE results/runs/AFTER
A change is real if the interval of the ratio keeps away from 1 and the change is larger than the noise floor: that of the
worst A/A run of either run. Without any A/A run intervals alone decide.
Exit codes: 0 the runs were compared, whatever changed (`check` fails on a regression), 1 one cannot be read, 2 wrong usage.")]
pub struct Args {
    /// The run before
    before: PathBuf,
    /// The run after
    after: PathBuf,
    /// Noise floor in percent, instead of the one that the runs show
    #[arg(long, value_parser = parse_percent)]
    noise: Option<f64>,
    /// Show only real changes, and what is new or gone
    #[arg(long)]
    changed: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `3`, `3%` or `3.5 %` as a share.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim_end().parse::<f64>();
    match number {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("a percentage from 0 to 100 is wanted".into()),
    }
}

/// Two runs compared.
pub struct Compared {
    /// One row per contender.
    pub differences: Vec<Difference>,
    /// What has to be known to read them.
    pub notes: Vec<String>,
}

/// Compares two runs; `noise` replaces the floor that they show themselves.
pub fn compare(before: &Run, after: &Run, noise: Option<f64>) -> Compared {
    let floors = [compare::noise_floor(&before.records), compare::noise_floor(&after.records)];
    let floor = noise.or(floors.into_iter().flatten().reduce(f64::max));
    let mut notes = vec![match (noise, floor) {
        (Some(floor), _) => format!("noise floor: {:.1} %, as given", floor * 100.0),
        (None, Some(floor)) => {
            format!("noise floor: {:.1} %, that of the worst A/A run of either run", floor * 100.0)
        }
        (None, None) => {
            "no noise floor was measured: neither run has an A/A run; intervals alone decide (--noise sets a floor)"
                .into()
        }
    }];
    let host = |run: &Run| run.records.first().map(|record| (record.host_id.clone(), record.cpu.clone()));
    if host(before) != host(after) {
        notes.push("the runs are of different machines: the ratios are of machines as well as of programs".into());
    }
    Compared { differences: compare::diff(&before.records, &after.records, floor.unwrap_or(0.0)), notes }
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let (before, after) = (Run::read(&args.before)?, Run::read(&args.after)?);
    let Compared { mut differences, mut notes } = compare(&before, &after, args.noise);
    let count = |change: Change| differences.iter().filter(|difference| difference.change == change).count();
    let changes = [Change::Faster, Change::Slower, Change::Same, Change::New, Change::Gone];
    notes.push(changes.map(|change| format!("{} {}", count(change), change.name())).join(", "));
    differences.retain(|difference| !args.changed || difference.change != Change::Same);
    output::print(&compare::diff_table(&differences), args.output, &notes, env)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        assert_eq!(parse_percent("5"), Ok(0.05));
        assert_eq!(parse_percent("2.5 %"), Ok(0.025));
        assert!(parse_percent("-1").is_err() && parse_percent("x").is_err() && parse_percent("NaN").is_err());
    }
}
