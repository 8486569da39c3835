//! The plan of a group of interleaved runs: how often, and when to stop.

use std::time::Duration;

use crate::record::Protocol;
use crate::runner::Series;
use crate::stats::{self, Compared};

/// Rounds before the width of an interval may end the measuring: narrower ones of fewer samples are luck.
pub const MIN_ROUNDS_FOR_PRECISION: u32 = 10;

/// How often to run, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Runs of each contender before the first one that counts.
    pub warmup: u32,
    /// Rounds, unless the intervals are narrow or the budget ends first.
    pub repetitions: u32,
    /// Rounds that are run even when the budget is over.
    pub min_repetitions: u32,
    /// End early once every interval reaches no further than this share from its estimate: 0.01 is 1 %.
    pub precision: Option<f64>,
    /// No round is begun that would, at the pace so far, end after this (warm-up included).
    pub budget: Option<Duration>,
    /// Seed of the order within each round.
    pub seed: u64,
    /// Run the contender that was fastest in warm-up a second time in every round, for the noise floor.
    pub twin: bool,
    /// What to do in a build with debug assertions.
    pub debug_builds: DebugBuilds,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            warmup: 1,
            repetitions: 5,
            min_repetitions: 3,
            precision: None,
            budget: None,
            seed: stats::SEED,
            twin: false,
            debug_builds: DebugBuilds::Refuse,
        }
    }
}

impl Plan {
    /// The plan as records hold it, with what ended the measuring.
    pub fn protocol(&self, stopped: Stopped, pinned: bool) -> Protocol {
        Protocol {
            seed: self.seed,
            warmup: self.warmup,
            repetitions: self.repetitions,
            precision: self.precision,
            budget_s: self.budget.map(|budget| budget.as_secs_f64()),
            stopped: stopped.name().to_owned(),
            pinned,
        }
    }

    /// Whether the intervals after `rounds` rounds are narrow enough to stop: of one contender the median's, of several the ratios
    /// to the first. Only the width decides, never the value, so that stopping favours nobody.
    pub(crate) fn is_narrow(&self, rounds: u32, series: &[Series]) -> bool {
        let Some(precision) = self.precision else { return false };
        // Looked at after every tenth more rounds: often enough to stop in time, seldom enough to be free.
        if rounds < self.min_repetitions.max(MIN_ROUNDS_FOR_PRECISION) || !rounds.is_multiple_of(rounds / 10) {
            return false;
        }
        let mut alive = series.iter().filter(|one| one.failed.is_none());
        let Some(first) = alive.next() else { return true };
        let others: Vec<&Series> = alive.collect();
        let width = |estimate: Option<stats::Estimate>| {
            estimate.map_or(f64::INFINITY, |e| (e.high - e.value).max(e.value - e.low) / e.value)
        };
        if others.is_empty() {
            let times: Vec<f64> = first.samples.iter().map(|sample| sample.ns as f64).collect();
            return width(stats::median_interval(&times)) <= precision;
        }
        others.iter().all(|other| width(Compared::Paired(first.pairs_with(other)).interval(stats::SEED)) <= precision)
    }
}

/// Whether a build with debug assertions may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugBuilds {
    /// No: its numbers mean nothing.
    Refuse,
    /// Yes: for tests of the protocol, which look at no number.
    AllowInTests,
}

/// Why the runner stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// All repetitions were done.
    Done,
    /// The intervals were narrow enough.
    Narrow,
    /// The time budget was used up.
    Budget,
    /// The progress callback asked for it, or Ctrl-C was pressed.
    Interrupted,
    /// Every contender failed.
    AllFailed,
}

impl Stopped {
    /// In a word, as records hold it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "repetitions",
            Self::Narrow => "narrow",
            Self::Budget => "budget",
            Self::Interrupted => "interrupted",
            Self::AllFailed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Sample;

    fn series(ns: impl IntoIterator<Item = u64>) -> Series {
        let sample = |(round, ns)| Sample { round: round as u32, position: 0, ns, joules: None };
        Series { name: String::new(), samples: ns.into_iter().enumerate().map(sample).collect(), failed: None }
    }

    #[test]
    fn one_contender_is_held_to_its_median_and_two_to_their_ratio() {
        let plan = Plan { precision: Some(0.01), ..Plan::default() };
        // Both swing between 100 and 200 together, so the medians are wide and the ratio is exact.
        let swing = || (0..12).map(|i| 1000 * (1 + i % 2));
        assert!(!plan.is_narrow(12, &[series(swing())]));
        assert!(plan.is_narrow(12, &[series(swing()), series(swing().map(|ns| ns * 3))]));
        assert!(!plan.is_narrow(12, &[series(swing()), series(swing().rev())]));
        assert!(plan.is_narrow(12, &[series([1000; 12])]));
        assert!(!plan.is_narrow(9, &[series([1000; 9])]), "too few rounds to judge a width by");
        assert!(!Plan::default().is_narrow(12, &[series([1000; 12])]), "only where it was asked for");
        let failed = Series { failed: Some("no".into()), ..series([1]) };
        assert!(plan.is_narrow(12, &[failed, series([1000; 12])]), "who failed is not waited for");
    }
}
