//! Scores: each on its own, and pairs of runs that answered the same items.

use ternbench_measure::record::Body;
use ternbench_measure::stats;

use crate::catalogue::Catalogue;
use crate::run::Run;
use crate::table::{Kind, Table, Value, column};

/// Every score with its own interval.
pub(super) fn scores(run: &Run) -> Table {
    let columns = [
        column("title", "model", Kind::Text),
        column("model", "", Kind::Text),
        column("weights", "weights", Kind::Text),
        column("kernel", "kernel", Kind::Text),
        column("task", "task", Kind::Text),
        column("metric", "metric", Kind::Text),
        column("share", "% correct", Kind::Estimate),
        column("n_total", "in the set", Kind::Count),
    ];
    let mut table = Table::new(columns);
    for record in &run.records {
        let Body::Accuracy(accuracy) = &record.body else { continue };
        let model = &accuracy.model;
        let title = Catalogue::get().title(model.shape().unwrap_or(&model.model));
        let words = |metric: &str| {
            [title, &model.model, &model.weights, &accuracy.code.kernel, &accuracy.task, metric].map(Value::from)
        };
        for (metric, &correct) in &accuracy.correct {
            let share = stats::proportion(correct, accuracy.n).map(|share| share.scale(100.0));
            table.rows.push(words(metric).into_iter().chain([share.into(), accuracy.n_total.into()]).collect());
        }
        if let Some(nll) = accuracy.nll_sum.filter(|_| accuracy.n > 0) {
            let perplexity = Value::from((nll / accuracy.n as f64).exp());
            table.rows.push(words("perplexity").into_iter().chain([perplexity, accuracy.n_total.into()]).collect());
        }
    }
    table
}

/// Runs of one task against its first, item by item.
pub(super) fn paired(run: &Run) -> Table {
    let columns = [
        column("task", "task", Kind::Text),
        column("metric", "metric", Kind::Text),
        column("first", "first", Kind::Text),
        column("second", "second", Kind::Text),
        column("lead_points", "first leads by, points", Kind::Estimate),
        column("only_first", "only the first right", Kind::Count),
        column("only_second", "only the second right", Kind::Count),
        column("mcnemar_p", "McNemar p", Kind::Probability),
        column("note", "note", Kind::Text),
    ];
    let name = |index: usize| match &run.records[index].body {
        Body::Accuracy(accuracy) => {
            let model = &accuracy.model;
            let title = Catalogue::get().title(model.shape().unwrap_or(&model.model));
            let untrained = if model.is_synthetic() { " (random weights)" } else { "" };
            format!("{title}{untrained} {}, {}", model.weights, accuracy.code.kernel)
        }
        _ => String::new(),
    };
    let mut table = Table::new(columns);
    for pairing in &run.pairings {
        let words = |metric: &str| {
            [pairing.task.clone(), metric.to_owned(), name(pairing.first), name(pairing.second)].map(Value::from)
        };
        match &pairing.outcome {
            Ok(metrics) => table.rows.extend(metrics.iter().map(|paired| {
                let counts = [paired.only_first.into(), paired.only_second.into(), paired.p.into()];
                let lead: Value = paired.lead.scale(100.0).into();
                words(&paired.metric).into_iter().chain([lead]).chain(counts).chain(["".into()]).collect()
            })),
            Err(why) => {
                let nothing = [Value::None, Value::None, Value::None, Value::None];
                let why = format!("not paired: {why}").into();
                table.rows.push(words("–").into_iter().chain(nothing).chain([why]).collect());
            }
        }
    }
    table
}
