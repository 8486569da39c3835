//! Two scores of one task, paired by the items that both answered. Made by whoever can read items files; see [`crate::Run::items`].

use ternbench_measure::stats::Estimate;

/// Two runs of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairing {
    /// Task with its version: `piqa@1`.
    pub task: String,
    /// Index of the first run's accuracy record.
    pub first: usize,
    /// Index of the second run's.
    pub second: usize,
    /// What pairing gave for each metric, the headline one first, or why nothing could be paired.
    pub outcome: Result<Vec<PairedMetric>, String>,
}

/// One metric of two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedMetric {
    /// `acc_norm`, `strict`.
    pub metric: String,
    /// Items that only the first has right.
    pub only_first: u64,
    /// Items that only the second has right.
    pub only_second: u64,
    /// By what share of all items the first leads, with its 95 % interval under resampling of items.
    pub lead: Estimate,
    /// McNemar's exact p: how likely so uneven a split is between equals.
    pub p: f64,
}

impl Pairing {
    /// By how much the record at index `own` leads that at `other` in a metric, and McNemar's p.
    pub fn lead_of(&self, own: usize, other: usize, metric: &str) -> Option<(Estimate, f64)> {
        let metrics = self.outcome.as_ref().ok()?;
        let paired = metrics.iter().find(|paired| paired.metric == metric.trim_end_matches("_correct"))?;
        let Estimate { value, low, high, n } = paired.lead;
        match (self.first == own && self.second == other, self.first == other && self.second == own) {
            (true, _) => Some((paired.lead, paired.p)),
            (_, true) => Some((Estimate { value: -value, low: -high, high: -low, n }, paired.p)),
            _ => None,
        }
    }
}
