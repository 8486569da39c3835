//! The twins' tables: two small trained models side by side, and engines that are wrong on purpose.
//!
//! Their scores are their own. They say how ternary training compares with plain training at this size and that the gate works,
//! nothing about BitNet 2B4T, GSM8K or PIQA.

use ternbench_measure::Record;
use ternbench_measure::record::{Accuracy, Body, Gate, Memory, Speed};
use ternbench_measure::stats::{self, Estimate};

use crate::sections::Section;
use crate::table::{Kind, Table, Value, column};

/// The tables, if the records hold the demonstration.
pub fn tables(records: &[Record]) -> Vec<Section> {
    let gates: Vec<&Gate> = bodies(records, |body| if let Body::Gate(gate) = body { Some(gate) } else { None });
    if gates.is_empty() {
        return Vec::new();
    }
    let mut tables = vec![models(records, &gates)];
    tables.extend(by_steps(records));
    tables
}

fn bodies<'r, T>(records: &'r [Record], pick: impl Fn(&'r Body) -> Option<&'r T>) -> Vec<&'r T> {
    records.iter().filter_map(|record| pick(&record.body)).collect()
}

fn models(records: &[Record], gates: &[&Gate]) -> Section {
    let accuracies: Vec<&Accuracy> = bodies(records, |body| if let Body::Accuracy(a) = body { Some(a) } else { None });
    let speeds: Vec<&Speed> = bodies(records, |body| if let Body::Speed(speed) = body { Some(speed) } else { None });
    let memories: Vec<&Memory> =
        bodies(records, |body| if let Body::Memory(memory) = body { Some(memory) } else { None });
    let row = |gate: &&Gate| {
        let name = &gate.model.model;
        let score = |task: &str, metric: &str| {
            let fits = |a: &&&Accuracy| a.model.model == *name && a.task.split('@').next() == Some(task);
            let accuracy = accuracies.iter().find(fits)?;
            percent(stats::proportion(*accuracy.correct.get(metric)?, accuracy.n)?).into()
        };
        let speed = |decode: bool| {
            let fits = |s: &&&Speed| {
                s.model.model == *name && (s.n_gen > 0) == decode && s.n_parallel <= 1 && s.refused.is_none()
            };
            let median = stats::median(&speeds.iter().find(fits)?.samples.tokens_per_s())?;
            Some(format!("{median:.0}"))
        };
        let memory = memories.iter().find(|memory| memory.model.model == *name);
        let or = |cell: Option<String>| {
            let refused = if gate.wrong.is_some() { "refused" } else { "" };
            cell.unwrap_or_else(|| refused.to_owned())
        };
        vec![
            name.clone(),
            perplexity(gate, &accuracies),
            or(score("word_problems", "strict")),
            or(score("common_sense", "acc")),
            memory.map_or(String::new(), |memory| format!("{:.2}", memory.stored_bytes as f64 / 1e6)),
            or(speed(false)),
            or(speed(true)),
            match (&gate.wrong, &gate.control) {
                (None, None) => "passes".to_owned(),
                (None, Some(_)) => "PASSES: not caught".to_owned(),
                (Some(reason), _) => format!("wrong: {reason}"),
            },
        ]
    };
    let columns = [
        column("model", "model", Kind::Text),
        column("perplexity", "perplexity", Kind::Text),
        column("word_problems", "word problems %", Kind::Text),
        column("common_sense", "common sense %", Kind::Text),
        column("file_mb", "file MB", Kind::Text),
        column("prefill_tokens_per_s", "prefill tok/s", Kind::Text),
        column("decode_tokens_per_s", "decode tok/s", Kind::Text),
        column("gate", "gate", Kind::Text),
    ];
    let cells = |gate: &&Gate| row(gate).into_iter().map(Value::from).collect();
    Section {
        title: "The twins",
        note: "Two small models trained on the same generated items, and wrong engines that the gate must stop. Their scores are \
               not GSM8K's or PIQA's, and say nothing of BitNet 2B4T.",
        table: Table::new(columns).with_rows(gates.iter().map(cells)),
    }
}

/// Of the whole text where it was scored, of the gate's part of it otherwise.
fn perplexity(gate: &Gate, accuracies: &[&Accuracy]) -> String {
    let scored = accuracies.iter().find(|a| a.model.model == gate.model.model && a.nll_sum.is_some());
    match scored.and_then(|a| Some((a.nll_sum?, a.nll_square_sum?, a.n as f64))) {
        Some((sum, squares, n)) => {
            let mean = sum / n;
            let error = mean.exp() * ((squares / n - mean * mean).max(0.0) / n).sqrt();
            format!("{:.3} ± {error:.3}", mean.exp())
        }
        None => format!("{:.3}", (gate.nll_sum / gate.n.max(1) as f64).exp()),
    }
}

fn percent(share: Estimate) -> String {
    let Estimate { value, low, high, n } = share.scale(100.0);
    format!("{value:.1} ({low:.1} to {high:.1}, n {n})")
}

/// Word problems by the number of steps of their solution.
fn by_steps(records: &[Record]) -> Option<Section> {
    let accuracies = bodies(records, |body| if let Body::Accuracy(a) = body { Some(a) } else { None });
    let scored: Vec<&Accuracy> = accuracies.into_iter().filter(|accuracy| !accuracy.by_steps.is_empty()).collect();
    let columns = [
        column("model", "model", Kind::Text),
        column("steps_1", "1 step, %", Kind::Estimate),
        column("steps_2", "2 steps, %", Kind::Estimate),
        column("steps_3", "3 steps, %", Kind::Estimate),
    ];
    let row = |accuracy: &&Accuracy| {
        let untrained = if accuracy.model.is_synthetic() { ", untrained" } else { "" };
        let cell = |n: &u64| {
            let share = accuracy.by_steps.get(n).and_then(|&[correct, of]| stats::proportion(correct, of));
            Value::from(share.map(|share| share.scale(100.0)))
        };
        [Value::from(format!("{}{untrained}", accuracy.model.model))]
            .into_iter()
            .chain([1, 2, 3].iter().map(cell))
            .collect()
    };
    (!scored.is_empty()).then(|| Section {
        title: "Word problems by steps",
        note: "Exact match on held-out generated problems, by the number of steps of their solution, with Wilson intervals. The \
               untrained model is the same network with random weights.",
        table: Table::new(columns).with_rows(scored.iter().map(row)),
    })
}
