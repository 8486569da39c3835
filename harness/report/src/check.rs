//! What makes a run worse than a baseline run: slower, larger, wrong, or no longer measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ternbench_measure::Record;
use ternbench_measure::record::Body;

use crate::compare::{Change, Difference};

/// One thing that is worse.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// Surely slower, by more than the tolerance.
    Slower {
        /// What.
        what: String,
        /// Speed of the run over that of the baseline.
        ratio: f64,
    },
    /// More resident memory, by more than the tolerance.
    Larger {
        /// What.
        what: String,
        /// Peak of the run over that of the baseline.
        ratio: f64,
    },
    /// The baseline measured it, the run did not.
    Missing(String),
    /// The run refused it, or a kernel was wrong, and in the baseline that was not so.
    Void(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slower { what, ratio } => write!(f, "{what} is {:.1} % slower", (1.0 - ratio) * 100.0),
            Self::Larger { what, ratio } => write!(f, "{what} needs {:.1} % more memory", (ratio - 1.0) * 100.0),
            Self::Missing(what) => write!(f, "{what} is not in the run"),
            Self::Void(what) => f.write_str(what),
        }
    }
}

/// Everything that is worse than in the baseline. A slowdown counts if it is real (see [`Change::Slower`]) and its median is beyond
/// the tolerance, a share.
pub fn problems(before: &[Record], after: &[Record], differences: &[Difference], tolerance: f64) -> Vec<Problem> {
    let mut problems = Vec::new();
    for difference in differences {
        let c = &difference.contender;
        let what = format!("{} {} {} {}, {} threads", c.workload, c.model, c.weights, c.kernel, c.n_threads);
        let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
        match (difference.change, difference.ratio) {
            (Change::Slower, Some(ratio)) if ratio.value < 1.0 - tolerance => {
                problems.push(Problem::Slower { what, ratio: ratio.value });
            }
            (Change::Gone, _) => problems.push(Problem::Missing(what)),
            _ => {}
        }
    }
    let (peaks_before, peaks_after) = (peaks(before), peaks(after));
    for ((model, kernel), peak) in peaks_after {
        if let Some(old) = peaks_before.get(&(model, kernel)).filter(|&&old| old > 0) {
            let ratio = peak as f64 / *old as f64;
            if ratio > 1.0 + tolerance {
                problems.push(Problem::Larger { what: format!("{model} with {kernel}"), ratio });
            }
        }
    }
    // What the baseline refused as well is not worse: the engines that are wrong on purpose, for one.
    let known: BTreeSet<String> = before.iter().filter_map(void).map(|(what, _)| what).collect();
    let void = after.iter().filter_map(void).filter(|(what, _)| !known.contains(what));
    problems.extend(void.map(|(what, why)| Problem::Void(format!("{what}: {why}"))));
    problems
}

/// Resident peaks by model and kernel.
fn peaks(records: &[Record]) -> BTreeMap<(&str, &str), u64> {
    let peak = |record| match record {
        &Record { body: Body::Memory(ref memory), .. } => {
            Some(((memory.model.model.as_str(), memory.kernel.as_str()), memory.peak_rss_bytes))
        }
        _ => None,
    };
    records.iter().filter_map(peak).collect()
}

/// What is void and why, if a record is.
fn void(record: &Record) -> Option<(String, &str)> {
    match &record.body {
        Body::Speed(speed) => {
            let why = speed.refused.as_ref()?;
            Some((format!("{} {} {}", speed.workload, speed.model.model, speed.code.kernel), why))
        }
        Body::Kernel(kernel) => {
            let why = kernel.refused.as_ref()?;
            Some((format!("{}x{} m{} {}", kernel.n, kernel.k, kernel.m, kernel.code.kernel), why))
        }
        Body::Verify(verify) if !verify.ok && verify.skipped.is_none() => {
            let why = verify.first_mismatch.as_deref().unwrap_or("a sum differs from the oracle's");
            Some((format!("{} is wrong", verify.code.kernel), why))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ternbench_measure::record::{Memory, Verify};

    use super::*;
    use crate::claims::test_records::{code, model, records, speed};
    use crate::compare::diff;

    const BITNET: &str = "synthetic:bitnet-2b4t";

    fn run(rates: &[f64], peak: u64) -> Vec<Record> {
        let memory =
            Memory { model: model(BITNET, "ternary"), kernel: "k".into(), peak_rss_bytes: peak, ..Memory::default() };
        records([speed(BITNET, "ternary", 2, "g", rates).into(), memory.into()])
    }

    fn found(before: &[Record], after: &[Record]) -> Vec<String> {
        let problems = problems(before, after, &diff(before, after, 0.0), 0.05);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn slower_and_larger_beyond_the_tolerance_are_problems() {
        let before = run(&[10.0, 10.1, 9.9, 10.05, 9.95], 1000);
        assert_eq!(found(&before, &before), [""; 0]);
        assert_eq!(found(&before, &run(&[9.7, 9.7, 9.7, 9.7, 9.7], 1040)), [""; 0]);
        assert_eq!(
            found(&before, &run(&[9.0, 9.1, 8.9, 9.05, 8.95], 1100)),
            [
                "tg128 synthetic:bitnet-2b4t ternary avx2-i2s-maddubs, 2 threads is 10.0 % slower",
                "synthetic:bitnet-2b4t with k needs 10.0 % more memory"
            ]
        );
        // The median is 10 % slower, but the interval holds 1: not sure, so no alarm.
        assert_eq!(found(&before, &run(&[9.0, 12.0, 8.9, 9.0, 10.1], 1000)), [""; 0]);
    }

    #[test]
    fn what_is_gone_refused_or_wrong_is_a_problem() {
        let before = run(&[10.0; 5], 1000);
        let mut refused = speed(BITNET, "ternary", 2, "g", &[10.0; 5]);
        refused.refused = Some("impossible".into());
        let wrong = Verify { code: code("ternary"), first_mismatch: Some("1 for 2".into()), ..Verify::default() };
        let bad = records([refused.into(), wrong.into()]);
        assert_eq!(found(&bad, &bad), [""; 0], "no worse than the baseline");
        assert_eq!(
            found(&before, &bad),
            [
                "tg128 synthetic:bitnet-2b4t ternary avx2-i2s-maddubs, 2 threads is not in the run",
                "tg128 synthetic:bitnet-2b4t avx2-i2s-maddubs: impossible",
                "avx2-i2s-maddubs is wrong: 1 for 2"
            ]
        );
    }
}
