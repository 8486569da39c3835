//! Accuracy against memory: what was published as open marks, what was measured here as filled ones.

use std::collections::BTreeMap;

use ternbench_measure::Record;
use ternbench_measure::record::{Accuracy, Body, Memory};
use ternbench_measure::stats;

use crate::catalogue::{Catalogue, PublishedModel};
use crate::plots::pen::{OTHERS, TERNARY};
use crate::plots::{Axis, Point, Style, XyChart, XySeries};

/// The tasks that have published scores: name, title, metrics from best known to least, and the published score.
type Task = (&'static str, &'static str, [&'static str; 3], fn(&PublishedModel) -> f64);
const TASKS: [Task; 2] = [
    ("gsm8k", "GSM8K", ["strict_correct", "strict", "flexible"], |model| model.published.gsm8k),
    ("piqa", "PIQA", ["acc_norm", "acc_norm_correct", "acc"], |model| model.published.piqa),
];

/// One chart per task that was scored on real weights whose size is known. `host` is where.
pub(super) fn against_memory(records: &[Record], host: &str) -> Vec<(String, XyChart)> {
    let charts = TASKS.into_iter().filter_map(|task| {
        let points = measured(records, &task);
        (!points.is_empty()).then(|| (task.0.to_owned(), chart(&task, points, host)))
    });
    charts.collect()
}

fn chart((_, title, _, published): &Task, measured: Vec<(bool, Point)>, host: &str) -> XyChart {
    let catalogue = Catalogue::get();
    let open = |ternary: bool| {
        let models = catalogue.models.iter().filter(move |model| model.ternary == ternary);
        models
            .map(|model| Point {
                x: model.published.memory_gb,
                y: published(model),
                label: model.title.clone(),
                interval: None,
            })
            .collect::<Vec<_>>()
    };
    let filled = |ternary: bool| -> Vec<Point> {
        measured.iter().filter(|(of, _)| *of == ternary).map(|(_, point)| point.clone()).collect()
    };
    let series = |name: &str, color, style, points| XySeries { name: name.into(), color, style, points };
    let mut all = vec![
        series("others, published", OTHERS[2], Style::Open, open(false)),
        series("ternary, published", TERNARY[1], Style::Open, open(true)),
        series("others, measured here", OTHERS[2], Style::Filled, filled(false)),
        series("ternary, measured here", TERNARY[1], Style::Filled, filled(true)),
    ];
    all.retain(|series| !series.points.is_empty());
    XyChart {
        title: format!("{title} against memory"),
        subtitle: format!("linear weights only, as the report counts memory; measured with 95 % interval · {host}"),
        x: Axis { label: "GB of linear weights (10⁹ bytes; less is better)".into(), log: true, ..Axis::default() },
        y: Axis { label: format!("{title}, % correct (more is better)"), zoom: true, ..Axis::default() },
        series: all,
    }
}

/// Whether ternary, and the point, of every real model with a score and a size; the score over most items counts.
fn measured(records: &[Record], (task, _, metrics, _): &Task) -> Vec<(bool, Point)> {
    let mut best: BTreeMap<&str, &Accuracy> = BTreeMap::new();
    let mut sizes: BTreeMap<&str, &Memory> = BTreeMap::new();
    for record in records {
        match &record.body {
            Body::Accuracy(a) if a.task.split('@').next() == Some(*task) && a.n > 0 && !a.model.is_synthetic() => {
                let kept = best.entry(&a.model.model).or_insert(a);
                if a.n > kept.n {
                    *kept = a;
                }
            }
            Body::Memory(memory) => {
                sizes.insert(&memory.model.model, memory);
            }
            _ => {}
        }
    }
    let point = |(model, accuracy): (&str, &Accuracy)| {
        let correct = metrics.iter().find_map(|metric| accuracy.correct.get(*metric))?;
        let score = stats::proportion(*correct, accuracy.n)?.scale(100.0);
        let bytes = sizes.get(model).map(|memory| memory.packed_bytes).filter(|&bytes| bytes > 0)?;
        let shape = accuracy.model.shape().unwrap_or(model);
        let part = match accuracy.n < accuracy.n_total {
            true => format!(", {} of {} items", accuracy.n, accuracy.n_total),
            false => String::new(),
        };
        let point = Point {
            x: bytes as f64 / 1e9,
            y: score.value,
            interval: Some((score.low, score.high)),
            label: format!("{} {}{part}", Catalogue::get().title(shape), accuracy.model.weights),
        };
        Some((accuracy.model.weights == "ternary", point))
    };
    best.into_iter().filter_map(point).collect()
}
