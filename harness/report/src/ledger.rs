//! The ledger: one row per claim, with a verdict and its reason.

use std::fmt;

use ternbench_measure::record;
use ternbench_measure::stats::Estimate;

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The whole interval lies on the claim's side.
    Reproduced,
    /// The whole interval lies on the other side.
    NotReproduced,
    /// Published for other hardware, or an "up to" that this machine does not reach.
    NotComparable,
    /// Measured, but the interval straddles the claim.
    Undecided,
    /// Nothing to judge by.
    NotMeasured,
}

impl Verdict {
    /// All verdicts, in the order of summaries.
    pub const ALL: [Self; 5] =
        [Self::Reproduced, Self::NotReproduced, Self::Undecided, Self::NotComparable, Self::NotMeasured];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::NotReproduced => "not reproduced",
            Self::NotComparable => "not comparable",
            Self::Undecided => "undecided",
            Self::NotMeasured => "not measured",
        }
    }

    /// Where an interval lies that should be at least `low`: above, below, or across it.
    pub fn at_least(estimate: Estimate, low: f64) -> Self {
        if estimate.low >= low {
            Self::Reproduced
        } else if estimate.high < low {
            Self::NotReproduced
        } else {
            Self::Undecided
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a rule found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The measured value in words, `–` where there is none.
    pub measured: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The command that would decide, where it is another than the one that measures.
    pub decide: Option<String>,
}

impl Finding {
    /// A finding.
    pub fn new(verdict: Verdict, measured: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { measured: measured.into(), verdict, reason: reason.into(), decide: None }
    }

    /// Nothing to judge by.
    pub fn not_measured(reason: impl Into<String>) -> Self {
        Self::new(Verdict::NotMeasured, "–", reason)
    }
}

/// One claim and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Id, with its part in brackets.
    pub id: String,
    /// The claim.
    pub claim: String,
    /// Letters of its sources.
    pub sources: Vec<String>,
    /// Conditions it was published under.
    pub conditions: String,
    /// Published value.
    pub published: String,
    /// What was found.
    pub finding: Finding,
    /// The command that would measure or decide it, for [`Verdict::NotMeasured`] and [`Verdict::Undecided`].
    pub command: Option<String>,
    /// Where or how to run the command.
    pub note: Option<String>,
}

impl Row {
    /// `2x (decode, F16 baselines)`.
    pub fn published_with_conditions(&self) -> String {
        match self.conditions.as_str() {
            "" => self.published.clone(),
            conditions => format!("{} ({conditions})", self.published),
        }
    }

    /// What to do about a claim that has no verdict yet: ``. To measure: `command` (note)``, or nothing.
    pub fn advice(&self) -> String {
        let aim = if self.finding.verdict == Verdict::Undecided { "decide" } else { "measure" };
        let note = self.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        self.command.as_ref().map_or(String::new(), |command| format!(". To {aim}: `{command}`{note}"))
    }
}

/// All claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    /// One row per claim, in the catalogue's order.
    pub rows: Vec<Row>,
}

impl Ledger {
    /// How many rows have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.finding.verdict == verdict).count()
    }

    /// Whether no claim that could be judged was refuted. What is undecided, not comparable or not measured was not judged.
    pub fn all_judged_hold(&self) -> bool {
        self.count(Verdict::NotReproduced) == 0
    }

    /// `3 reproduced, 1 not reproduced, 0 undecided, 2 not comparable, 10 not measured`.
    pub fn summary(&self) -> String {
        let parts = Verdict::ALL.map(|verdict| format!("{} {verdict}", self.count(verdict)));
        parts.join(", ")
    }

    /// The rows as records, for the run's file.
    pub fn to_records(&self) -> Vec<record::Claim> {
        let claim = |row: &Row| record::Claim {
            id: row.id.clone(),
            verdict: row.finding.verdict.name().into(),
            published: row.published.clone(),
            measured: row.finding.measured.clone(),
            reason: row.finding.reason.clone(),
        };
        self.rows.iter().map(claim).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_lies_above_below_or_across() {
        let estimate = |low, high| Estimate { value: (low + high) / 2.0, low, high, n: 5 };
        assert_eq!(Verdict::at_least(estimate(2.0, 2.5), 2.0), Verdict::Reproduced);
        assert_eq!(Verdict::at_least(estimate(1.5, 1.99), 2.0), Verdict::NotReproduced);
        assert_eq!(Verdict::at_least(estimate(1.9, 2.1), 2.0), Verdict::Undecided);
    }
}
