//! Pairs the scores of finished runs item by item, for reports and verdicts.

use std::collections::BTreeMap;
use std::path::Path;

use ternbench_eval::items::Line;
use ternbench_eval::{compare, store};
use ternbench_measure::record::{Accuracy, Body};
use ternbench_measure::stats::Estimate;
use ternbench_report::Run;
use ternbench_report::catalogue::Catalogue;
use ternbench_report::pairing::{PairedMetric, Pairing};

/// Pairs every score that has an items file with the first of its task: that of the model whose claims are judged where it took
/// part, or else the first one recorded.
pub fn pair(run: &mut Run) {
    let mut tasks: BTreeMap<&str, Vec<(usize, &Accuracy)>> = BTreeMap::new();
    for (index, record) in run.records.iter().enumerate() {
        // A perplexity has no items that are right or wrong.
        if let Body::Accuracy(accuracy) = &record.body
            && !accuracy.correct.is_empty()
            && run.items.contains_key(&index)
        {
            tasks.entry(&accuracy.task).or_default().push((index, accuracy));
        }
    }
    let subject = Catalogue::get().subject().id.as_str();
    let mut pairings = Vec::new();
    for (task, mut scores) in tasks {
        scores.sort_by_key(|(_, accuracy)| accuracy.model.shape() != Some(subject));
        let Some(((first, a), others)) = scores.split_first() else { continue };
        // Read once, whatever comes of it: it is one side of every pair.
        let own = lines(&run.items[first], a);
        pairings.extend(others.iter().map(|(second, b)| Pairing {
            task: task.to_owned(),
            first: *first,
            second: *second,
            outcome: own.as_ref().map_err(Clone::clone).and_then(|own| metrics(own, &lines(&run.items[second], b)?)),
        }));
    }
    run.pairings = pairings;
}

/// The items of a score, if they are the ones that it was counted from.
fn lines(path: &Path, accuracy: &Accuracy) -> Result<Vec<Line>, String> {
    let lines = store::read(path).map_err(|error| error.to_string())?;
    for (metric, &correct) in &accuracy.correct {
        let name = metric.trim_end_matches("_correct");
        let right = |line: &&Line| line.verdicts().contains(&(name, true));
        let counted = lines.iter().filter(right).count();
        if counted as u64 != correct {
            return Err(format!("{} has {counted} items right by {name}, the record {correct}", path.display()));
        }
    }
    Ok(lines)
}

fn metrics(a: &[Line], b: &[Line]) -> Result<Vec<PairedMetric>, String> {
    let comparison = compare::compare(a, b)?;
    let metric = |paired: compare::Paired| {
        // One item has no interval: nothing is known of the next.
        let [low, high] = paired.interval.unwrap_or([-1.0, 1.0]);
        PairedMetric {
            metric: paired.metric,
            only_first: paired.only_a as u64,
            only_second: paired.only_b as u64,
            lead: Estimate { value: paired.difference, low, high, n: comparison.n },
            p: paired.p,
        }
    };
    Ok(comparison.metrics.into_iter().map(metric).collect())
}
