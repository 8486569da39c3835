//! What is plotted: speeds, shares of the limit, memory.

use std::path::Path;

use ternbench_measure::Record;

use super::{Bar, BarChart, Group, PlotError, Series};
use crate::catalogue::Catalogue;
use crate::claims::short_number;
use crate::frame::{SpeedRow, memory_rows};

/// Blues for ternary weights, greys for the others; darker with more threads.
const TERNARY: [(u8, u8, u8); 3] = [(126, 182, 214), (27, 108, 163), (12, 61, 97)];
const OTHERS: [(u8, u8, u8); 3] = [(196, 203, 210), (137, 147, 158), (84, 94, 105)];
/// Parts of memory: linear weights, embedding, KV cache, scratch.
const PARTS: [(&str, (u8, u8, u8)); 4] = [
    ("linear weights", (27, 108, 163)),
    ("embedding and lm head", (126, 182, 214)),
    ("KV cache", (229, 173, 82)),
    ("scratch", (176, 184, 192)),
];

/// Makes every plot that the records have something for, into `folder`; returns the names, without extension.
///
/// # Errors
/// When a plot cannot be drawn or written.
pub fn all(records: &[Record], rows: &[SpeedRow], host: &str, folder: &Path) -> Result<Vec<String>, PlotError> {
    let mut charts: Vec<(String, BarChart)> = Vec::new();
    let mut workloads: Vec<&str> = rows.iter().map(|row| row.workload.as_str()).collect();
    workloads.sort_unstable_by_key(|workload| (workload.starts_with("pp"), *workload));
    workloads.dedup();
    for workload in workloads {
        let slug = ternbench_measure::host::slug(workload);
        charts.push((format!("speed-{slug}"), speeds(rows, workload, host)));
        charts.extend(limit_shares(rows, workload, host).map(|chart| (format!("limit-{slug}"), chart)));
    }
    charts.extend(memory(records, host).map(|chart| ("memory".into(), chart)));
    for (name, chart) in &charts {
        super::save(chart, folder, name)?;
    }
    Ok(charts.into_iter().map(|(name, _)| name).collect())
}

fn workload_words(workload: &str) -> String {
    let (base, depth) = workload.split_once("@d").map_or((workload, None), |(base, depth)| (base, Some(depth)));
    let words = match (base.strip_prefix("tg"), base.strip_prefix("pp")) {
        (Some(n), _) => format!("Decode, {n} tokens"),
        (_, Some(n)) => format!("Prefill, {n} tokens"),
        _ => base.to_owned(),
    };
    depth.map_or(words.clone(), |depth| format!("{words} after {depth}"))
}

/// Index of the colour of a row: by weights, then by threads from few to many.
fn series_of(rows: &[&SpeedRow]) -> (Vec<Series>, impl Fn(&SpeedRow) -> usize + use<>) {
    let key = |row: &SpeedRow| (row.weights != "ternary", row.n_threads);
    let mut keys: Vec<(bool, u64)> = rows.iter().map(|row| key(row)).collect();
    keys.sort_unstable();
    keys.dedup();
    let threads = |other: bool| keys.iter().filter(move |key| key.0 == other);
    let all_f16 = rows.iter().all(|row| row.weights == "ternary" || row.weights == "f16");
    let name = |&(other, n): &(bool, u64)| {
        let weights = if !other {
            "ternary"
        } else if all_f16 {
            "F16 baselines"
        } else {
            "dense baselines"
        };
        format!("{weights}, {n} thread{}", if n == 1 { "" } else { "s" })
    };
    let color = |key: &(bool, u64)| {
        let palette = if key.0 { OTHERS } else { TERNARY };
        let (place, count) = (threads(key.0).position(|other| other == key).unwrap_or(0), threads(key.0).count());
        // One thread count gets the middle shade, two the first two, three all.
        palette[if count == 1 { 1 } else { place.min(2) }]
    };
    let series = keys.iter().map(|key| Series { name: name(key), color: color(key) }).collect();
    (series, move |row| keys.iter().position(|other| *other == key(row)).unwrap_or(0))
}

/// Rows of one workload by model and kernel, best first; the bars of a group are its thread counts.
fn grouped<'a>(rows: &[&'a SpeedRow], value: impl Fn(&SpeedRow) -> f64) -> Vec<(Group, Vec<&'a SpeedRow>)> {
    let mut groups: Vec<(Group, Vec<&SpeedRow>)> = Vec::new();
    for &row in rows {
        let title = Catalogue::get().title(&row.shape).to_owned();
        let lossy = if row.exact { "" } else { " (lossy)" };
        let subtitle = format!("{}{lossy} · {}", row.weights, row.kernel);
        match groups.iter_mut().find(|(group, _)| group.title == title && group.subtitle == subtitle) {
            Some((_, members)) => members.push(row),
            None => groups.push((Group { title, subtitle, bars: Vec::new() }, vec![row])),
        }
    }
    for (_, members) in &mut groups {
        members.sort_by_key(|row| row.n_threads);
    }
    let best = |members: &[&SpeedRow]| members.iter().map(|row| value(row)).fold(0.0, f64::max);
    groups.sort_by(|a, b| best(&b.1).total_cmp(&best(&a.1)));
    groups
}

/// Tokens per second of one workload, by model and kernel.
pub fn speeds(rows: &[SpeedRow], workload: &str, host: &str) -> BarChart {
    let rows: Vec<&SpeedRow> = rows.iter().filter(|row| row.workload == workload).collect();
    let (series, series_of) = series_of(&rows);
    let bar = |row: &&SpeedRow| Bar {
        segments: vec![(series_of(row), row.tokens_per_s.value)],
        interval: Some((row.tokens_per_s.low, row.tokens_per_s.high)),
        mark: None,
        label: format!("{} (n = {})", short_number(row.tokens_per_s.value), row.tokens_per_s.n),
    };
    let groups = grouped(&rows, |row| row.tokens_per_s.value).into_iter();
    BarChart {
        title: format!("{}: tokens per second", workload_words(workload)),
        subtitle: format!("median, 95 % interval, n repetitions · {host}"),
        axis: "tokens / s (more is better)".into(),
        series,
        groups: groups.map(|(group, members)| Group { bars: members.iter().map(bar).collect(), ..group }).collect(),
        mark_name: None,
        reference: None,
    }
}

/// Shares of the limit, for the rows that have one.
pub fn limit_shares(rows: &[SpeedRow], workload: &str, host: &str) -> Option<BarChart> {
    let rows: Vec<&SpeedRow> =
        rows.iter().filter(|row| row.workload == workload && row.limit_tokens_per_s.is_some()).collect();
    if rows.is_empty() {
        return None;
    }
    let share = |row: &SpeedRow| row.share_of_limit().unwrap_or(0.0) * 100.0;
    let (series, series_of) = series_of(&rows);
    let bar = |row: &&SpeedRow| Bar {
        segments: vec![(series_of(row), share(row))],
        interval: None,
        mark: None,
        label: format!("{:.0} % of {} tok/s", share(row), short_number(row.limit_tokens_per_s.unwrap_or(0.0))),
    };
    let groups = grouped(&rows, share).into_iter();
    Some(BarChart {
        title: format!("{}: share of the hardware's limit", workload_words(workload)),
        subtitle: format!("limit: measured bandwidth or multiply-add peak, whichever binds · {host}"),
        axis: "share of the limit, %".into(),
        series,
        groups: groups.map(|(group, members)| Group { bars: members.iter().map(bar).collect(), ..group }).collect(),
        mark_name: None,
        reference: Some((100.0, "limit".into())),
    })
}

/// Memory by model, in parts, with the resident peak.
pub fn memory(records: &[Record], host: &str) -> Option<BarChart> {
    const GB: f64 = 1e9;
    let mut rows = memory_rows(records);
    rows.dedup_by(|a, b| a.model == b.model && a.kernel == b.kernel);
    if rows.is_empty() {
        return None;
    }
    let group = |memory: &&ternbench_measure::record::Memory| {
        let parts = [memory.packed_bytes, memory.embedding_bytes, memory.kv_bytes, memory.scratch_bytes];
        let bar = Bar {
            segments: parts.into_iter().enumerate().map(|(i, bytes)| (i, bytes as f64 / GB)).collect(),
            interval: None,
            mark: Some(memory.peak_rss_bytes as f64 / GB),
            label: format!("{:.2} GB", memory.peak_rss_bytes as f64 / GB),
        };
        let shape = memory.model.shape().unwrap_or(&memory.model.model);
        Group {
            title: Catalogue::get().title(shape).to_owned(),
            subtitle: format!("{} · {}", memory.model.weights, memory.kernel),
            bars: vec![bar],
        }
    };
    Some(BarChart {
        title: "Memory".into(),
        subtitle: format!("what the parts take, and the most that was resident · {host}"),
        axis: "GB (10⁹ bytes; less is better)".into(),
        series: PARTS.iter().map(|&(name, color)| Series { name: name.into(), color }).collect(),
        groups: rows.iter().map(group).collect(),
        mark_name: Some("resident peak".into()),
        reference: None,
    })
}
