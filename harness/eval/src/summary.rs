//! What the lines of a run come to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::extract::INVALID;
use crate::items::Line;
use crate::stats::{Accuracy, LogLoss, Metric};

/// The outcome of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The task's name.
    pub task: String,
    /// The task's version.
    pub version: u64,
    /// Items evaluated; windows of a perplexity.
    pub n: usize,
    /// Items in the whole set.
    pub n_total: usize,
    /// Scores, the headline one first.
    pub metrics: Vec<Metric>,
    /// Share of items in which an extractor found nothing, by extractor.
    pub invalid: BTreeMap<String, f64>,
    /// Share of items in which two extractors found different answers; of generation tasks with more than one.
    pub disagreement: Option<f64>,
    /// Items whose prompt did not fit into the model's context.
    pub truncated_items: usize,
    /// Tokens scored or generated.
    pub tokens: u64,
    /// The file with a line per item.
    pub items: PathBuf,
    /// Right items by metric.
    #[serde(skip)]
    correct: BTreeMap<String, u64>,
    #[serde(skip)]
    log_loss: Option<LogLoss>,
}

impl Summary {
    /// Sums up `lines`, all of one task, which stand in the file `items`; the whole set has `n_total`.
    pub fn of(lines: &[Line], n_total: usize, items: &Path) -> Self {
        let first = lines.first();
        let mut summary = Self {
            task: first.and_then(|line| line.text("task")).unwrap_or_default().to_owned(),
            version: first.and_then(|line| line.number("task_version")).unwrap_or(0),
            n: lines.len(),
            n_total,
            metrics: Vec::new(),
            invalid: BTreeMap::new(),
            disagreement: None,
            truncated_items: lines.iter().filter(|line| line.number("truncated_tokens").unwrap_or(0) > 0).count(),
            tokens: lines.iter().map(n_tokens).sum(),
            items: items.to_owned(),
            correct: BTreeMap::new(),
            log_loss: None,
        };
        let names: Vec<String> =
            first.map_or(Vec::new(), |line| line.verdicts().iter().map(|(name, _)| (*name).to_owned()).collect());
        for (i, name) in names.into_iter().enumerate() {
            let right: Vec<bool> =
                lines.iter().map(|line| line.verdicts().get(i).is_some_and(|(_, right)| *right)).collect();
            let accuracy = Accuracy { n: right.len(), correct: right.iter().filter(|right| **right).count() };
            summary.metrics.push(accuracy.metric(&name));
            summary.correct.insert(name, accuracy.correct as u64);
        }
        summary.extractors(lines);
        if lines.iter().any(|line| line.get("nll").is_some()) {
            let mut all = LogLoss::default();
            lines.iter().for_each(|line| all.merge(loss(line)));
            summary.metrics.push(all.perplexity());
            summary.log_loss = Some(all);
        }
        summary
    }

    fn extractors(&mut self, lines: &[Line]) {
        let names = lines.first().map_or(Vec::new(), Line::extractors);
        let share = |n: usize| n as f64 / lines.len().max(1) as f64;
        for name in &names {
            let n = lines.iter().filter(|line| line.text(name) == Some(INVALID)).count();
            self.invalid.insert((*name).to_owned(), share(n));
        }
        if names.len() > 1 {
            let differ = |line: &&Line| names.windows(2).any(|pair| line.text(pair[0]) != line.text(pair[1]));
            self.disagreement = Some(share(lines.iter().filter(differ).count()));
        }
    }

    /// How many items each metric counts as right; empty for a perplexity.
    pub fn correct(&self) -> &BTreeMap<String, u64> {
        &self.correct
    }

    /// The sums of a perplexity.
    pub fn log_loss(&self) -> Option<LogLoss> {
        self.log_loss
    }

    /// Sentences for people: the scores with standard error and interval, and what to know beside them.
    pub fn lines(&self) -> Vec<String> {
        let show = |metric: &Metric| {
            let stderr = metric.stderr.map(|stderr| format!(" ± {stderr:.4}")).unwrap_or_default();
            let interval = metric.interval.map(|[low, high]| format!(" [{low:.4}, {high:.4}]")).unwrap_or_default();
            format!("{} {:.4}{stderr}{interval}", metric.name, metric.value)
        };
        let metrics: Vec<String> = self.metrics.iter().map(show).collect();
        let of = if self.n < self.n_total { format!(" of {}", self.n_total) } else { String::new() };
        let mut lines = vec![format!(
            "{}@{}: {}  ({}{of} items, {})",
            self.task,
            self.version,
            metrics.join(", "),
            self.n,
            self.items.display()
        )];
        if let Some(disagreement) = self.disagreement {
            let invalid: Vec<_> =
                self.invalid.iter().map(|(name, share)| format!("{name} {:.1} %", 100.0 * share)).collect();
            lines.push(format!(
                "  extractors differ on {:.1} % of the items; nothing found: {}",
                100.0 * disagreement,
                invalid.join(", ")
            ));
        }
        if self.truncated_items > 0 {
            let n = self.truncated_items;
            lines.push(format!("  {n} prompts did not fit into the context and lost their beginning"));
        }
        lines
    }
}

fn n_tokens(line: &Line) -> u64 {
    let list = |name| line.get(name).and_then(|value| value.as_array());
    match (list("generated_ids"), list("n_tokens")) {
        (Some(ids), _) => ids.len() as u64,
        (None, Some(counts)) => counts.iter().filter_map(|count| count.as_u64()).sum(),
        (None, None) => line.number("n_tokens").unwrap_or(0),
    }
}

fn loss(line: &Line) -> LogLoss {
    let float = |name| line.get(name).and_then(|value| value.as_f64()).unwrap_or(0.0);
    LogLoss { n: line.number("n_tokens").unwrap_or(0) as usize, sum: float("nll"), squares: float("nll_squares") }
}
