//! Sizes: memory by model, and the bytes that one token needs.

use ternbench_measure::Record;
use ternbench_measure::record::{Body, Memory, Speed};

use crate::catalogue::Catalogue;
use crate::frame::memory_rows;
use crate::plots::pen::PARTS;
use crate::plots::{Bar, BarChart, Group, Series};

const GB: f64 = 1e9;

/// With a unit that leaves digits to read.
fn readable(bytes: u64) -> String {
    if bytes < 50_000_000 { format!("{:.1} MB", bytes as f64 / 1e6) } else { format!("{:.2} GB", bytes as f64 / GB) }
}

fn series(names: [&str; 4]) -> Vec<Series> {
    names.into_iter().zip(PARTS).map(|(name, color)| Series { name: name.into(), color }).collect()
}

/// Memory by model, in parts, with the resident peak.
pub(super) fn memory(records: &[Record], host: &str) -> Option<BarChart> {
    let mut rows = memory_rows(records);
    rows.dedup_by(|a, b| a.model == b.model && a.kernel == b.kernel);
    let group = |memory: &&Memory| {
        let parts = [memory.packed_bytes, memory.embedding_bytes, memory.kv_bytes, memory.scratch_bytes];
        let bar = Bar {
            segments: parts.into_iter().enumerate().map(|(i, bytes)| (i, bytes as f64 / GB)).collect(),
            interval: None,
            mark: Some(memory.peak_rss_bytes as f64 / GB),
            label: readable(memory.peak_rss_bytes),
        };
        let shape = memory.model.shape().unwrap_or(&memory.model.model);
        Group {
            title: Catalogue::get().title(shape).to_owned(),
            subtitle: format!("{} · {}", memory.model.weights, memory.kernel),
            bars: vec![bar],
        }
    };
    (!rows.is_empty()).then(|| BarChart {
        title: "Memory".into(),
        subtitle: format!("what the parts take, and the most that was resident · {host}"),
        axis: "GB (10⁹ bytes; less is better)".into(),
        series: series(["linear weights", "embedding and lm head", "KV cache", "scratch"]),
        groups: rows.iter().map(group).collect(),
        mark_name: Some("resident peak".into()),
    })
}

/// Bytes that must be read for one token, in parts: the longest decode of each model without a context before it.
pub(super) fn bytes_per_token(records: &[Record], host: &str) -> Option<BarChart> {
    let decodes = records.iter().filter_map(|record| match &record.body {
        Body::Speed(speed) if speed.is_plain_decode() => Some(speed),
        _ => None,
    });
    let mut rows: Vec<&Speed> = Vec::new();
    for speed in decodes.filter(|speed| speed.refused.is_none() && !speed.bytes_per_token_parts.is_empty()) {
        // Every kernel of one layout reads the same: one bar for all of them.
        let same = |row: &&mut &Speed| row.model == speed.model && row.bytes_per_token_parts["linear"] == linear(speed);
        match rows.iter_mut().filter(|row| row.bytes_per_token_parts.contains_key("linear")).find(same) {
            Some(row) if row.n_gen < speed.n_gen => *row = speed,
            Some(_) => {}
            None => rows.push(speed),
        }
    }
    rows.sort_by_key(|speed| speed.bytes_per_token);
    let group = |speed: &&Speed| {
        let known = ["linear", "lm_head", "kv"];
        let part = |name: &str| speed.bytes_per_token_parts.get(name).copied().unwrap_or(0);
        let rest: u64 = speed
            .bytes_per_token_parts
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_str()))
            .map(|(_, n)| n)
            .sum();
        let parts = [part("linear"), part("lm_head"), part("kv"), rest];
        let bar = Bar {
            segments: parts.into_iter().enumerate().map(|(i, bytes)| (i, bytes as f64 / GB)).collect(),
            label: readable(parts.iter().sum()),
            ..Bar::default()
        };
        let shape = speed.model.shape().unwrap_or(&speed.model.model);
        Group {
            title: Catalogue::get().title(shape).to_owned(),
            subtitle: format!("{} · {} · {}", speed.model.weights, speed.code.kernel, speed.workload),
            bars: vec![bar],
        }
    };
    (!rows.is_empty()).then(|| BarChart {
        title: "Bytes per token in decode".into(),
        subtitle: format!("what must be read from memory for each token: computed from shapes and layouts · {host}"),
        axis: "GB / token (10⁹ bytes; less is better)".into(),
        series: series(["linear weights", "lm head", "KV cache", "norms and other"]),
        groups: rows.iter().map(group).collect(),
        mark_name: None,
    })
}

fn linear(speed: &Speed) -> u64 {
    speed.bytes_per_token_parts.get("linear").copied().unwrap_or(0)
}
