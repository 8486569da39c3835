//! Speeds: by kernel and threads, over threads, and over context depth.

use std::collections::BTreeMap;

use super::{Workload, threads, title};
use crate::frame::SpeedRow;
use crate::plots::pen::{OTHERS, SERIES, TERNARY};
use crate::plots::{Axis, Bar, BarChart, Group, Point, Series, Style, XyChart, XySeries};
use crate::table::short_number;

/// Models and kernels in one chart: as many as a page holds.
const MOST_GROUPS: usize = 30;

/// `avx2-i2s-maddubs`, marked where it is not exact.
fn kernel(row: &SpeedRow) -> String {
    row.sums.mark(&row.kernel)
}

/// Index of the colour of a row: by weights, then by threads from few to many.
fn series_of(rows: &[&SpeedRow]) -> (Vec<Series>, impl Fn(&SpeedRow) -> usize + use<>) {
    let key = |row: &SpeedRow| (row.weights != "ternary", row.n_threads);
    let mut keys: Vec<(bool, u64)> = rows.iter().map(|row| key(row)).collect();
    keys.sort_unstable();
    keys.dedup();
    let same_kind = |other: bool| keys.iter().filter(move |key| key.0 == other);
    let all_f16 = rows.iter().all(|row| row.weights == "ternary" || row.weights == "f16");
    let name = |&(other, n): &(bool, u64)| {
        let weights = match (other, all_f16) {
            (false, _) => "ternary",
            (true, true) => "F16",
            (true, false) => "not ternary",
        };
        format!("{weights}, {}", threads(n))
    };
    let color = |key: &(bool, u64)| {
        let palette = if key.0 { OTHERS } else { TERNARY };
        let (place, count) = (same_kind(key.0).position(|other| other == key).unwrap_or(0), same_kind(key.0).count());
        // One thread count gets the middle shade, two the first two, three all.
        palette[if count == 1 { 1 } else { place.min(2) }]
    };
    let series = keys.iter().map(|key| Series { name: name(key), color: color(key) }).collect();
    (series, move |row| keys.iter().position(|other| *other == key(row)).unwrap_or(0))
}

/// Tokens per second of one workload, by model and kernel, best first; the bars of a group are its thread counts.
pub(super) fn by_kernel(rows: &[SpeedRow], workload: &Workload<'_>, host: &str) -> BarChart {
    let rows: Vec<&SpeedRow> = rows.iter().filter(|row| row.workload == workload.name).collect();
    let (series, series_of) = series_of(&rows);
    let mut groups: Vec<(Group, Vec<&SpeedRow>)> = Vec::new();
    for &row in &rows {
        let subtitle = format!("{} · {}", row.held(), kernel(row));
        match groups.iter_mut().find(|(group, _)| group.title == title(row) && group.subtitle == subtitle) {
            Some((_, members)) => members.push(row),
            None => groups.push((Group { title: title(row).to_owned(), subtitle, bars: Vec::new() }, vec![row])),
        }
    }
    let best = |members: &[&SpeedRow]| members.iter().map(|row| row.tokens_per_s.value).fold(0.0, f64::max);
    groups.sort_by(|a, b| best(&b.1).total_cmp(&best(&a.1)));
    let part = match groups.len() {
        all if all > MOST_GROUPS => format!("the fastest {MOST_GROUPS} of {all}, the tables have them all; "),
        _ => String::new(),
    };
    groups.truncate(MOST_GROUPS);
    let bar = |row: &SpeedRow| Bar {
        segments: vec![(series_of(row), row.tokens_per_s.value)],
        interval: Some((row.tokens_per_s.low, row.tokens_per_s.high)),
        mark: row.limit_tokens_per_s,
        label: match row.share_of_limit() {
            Some(share) => format!("{} · {:.0} %", short_number(row.tokens_per_s.value), share * 100.0),
            None => short_number(row.tokens_per_s.value),
        },
    };
    let finish = |(mut group, mut members): (Group, Vec<&SpeedRow>)| {
        members.sort_by_key(|row| row.n_threads);
        group.bars = members.into_iter().map(bar).collect();
        group
    };
    BarChart {
        title: format!("{}: tokens per second", workload.words()),
        subtitle: format!("{part}median with 95 % interval, and share of the hardware's limit · {host}"),
        axis: "tokens / s (more is better)".into(),
        series,
        groups: groups.into_iter().map(finish).collect(),
        mark_name: rows
            .iter()
            .any(|row| row.limit_tokens_per_s.is_some())
            .then(|| "limit of bandwidth or arithmetic".into()),
    }
}

/// Rows by what is one line of a chart.
fn lines<'a>(
    rows: impl Iterator<Item = &'a SpeedRow>,
    name: impl Fn(&SpeedRow) -> String,
    x: impl Fn(&SpeedRow) -> u64,
) -> Vec<(String, Vec<&'a SpeedRow>)> {
    let mut lines: BTreeMap<String, BTreeMap<u64, &SpeedRow>> = BTreeMap::new();
    for row in rows {
        lines.entry(name(row)).or_default().insert(x(row), row);
    }
    let best = |of: &[&SpeedRow]| of.iter().map(|row| row.tokens_per_s.value).fold(0.0, f64::max);
    let mut lines: Vec<(String, Vec<&SpeedRow>)> =
        lines.into_iter().filter(|(_, of)| of.len() > 1).map(|(name, of)| (name, of.into_values().collect())).collect();
    lines.sort_by(|a, b| best(&b.1).total_cmp(&best(&a.1)));
    // More could not be told apart; the tables have them all.
    lines.truncate(SERIES.len());
    lines
}

/// Speed over threads, for what ran with several.
pub(super) fn scaling(rows: &[SpeedRow], workload: &Workload<'_>, host: &str) -> Option<XyChart> {
    let rows = rows.iter().filter(|row| row.workload == workload.name);
    let lines = lines(rows, |row| format!("{} {} · {}", title(row), row.held(), kernel(row)), |row| row.n_threads);
    let (_, first) = lines.first()?;
    let mut ticks: Vec<f64> = lines.iter().flat_map(|(_, of)| of.iter().map(|row| row.n_threads as f64)).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    // What the fastest would reach if every thread added as much as the first.
    let per_thread = first[0].tokens_per_s.value / first[0].n_threads as f64;
    let at = |n: f64| Point { x: n, y: n * per_thread, ..Point::default() };
    let ideal = XySeries {
        name: "in proportion to threads".into(),
        color: OTHERS[1],
        style: Style::Dashes,
        points: vec![at(first[0].n_threads as f64), at(first[first.len() - 1].n_threads as f64)],
    };
    let line = |(i, (name, of)): (usize, (String, Vec<&SpeedRow>))| XySeries {
        name,
        color: SERIES[i],
        style: Style::Line,
        points: of
            .iter()
            .map(|row| Point {
                x: row.n_threads as f64,
                y: row.tokens_per_s.value,
                interval: Some((row.tokens_per_s.low, row.tokens_per_s.high)),
                label: short_number(row.tokens_per_s.value),
            })
            .collect(),
    };
    Some(XyChart {
        title: format!("{}: scaling over threads", workload.words()),
        subtitle: format!("median with 95 % interval · {host}"),
        x: Axis { label: "threads".into(), ticks, ..Axis::default() },
        y: Axis { label: "tokens / s".into(), ..Axis::default() },
        series: std::iter::once(ideal).chain(lines.into_iter().enumerate().map(line)).collect(),
    })
}

/// Decode latency over the tokens that are in the context already.
pub(super) fn latency_by_depth(rows: &[SpeedRow], host: &str) -> Option<XyChart> {
    let depth = |row: &SpeedRow| Workload::of(&row.workload).depth;
    let single = |row: &&SpeedRow| row.workload.starts_with("tg") && Workload::of(&row.workload).n_parallel == 1;
    let decodes = rows.iter().filter(single);
    let name = |row: &SpeedRow| format!("{} {} · {}, {}", title(row), row.held(), kernel(row), threads(row.n_threads));
    let lines = lines(decodes, name, depth);
    let line = |(i, (name, of)): (usize, (String, Vec<&SpeedRow>))| XySeries {
        name,
        color: SERIES[i],
        style: Style::Line,
        points: of
            .iter()
            .map(|row| {
                let latency = row.tokens_per_s.recip().scale(1e3);
                Point {
                    x: depth(row) as f64,
                    y: latency.value,
                    interval: Some((latency.low, latency.high)),
                    label: short_number(latency.value),
                }
            })
            .collect(),
    };
    (!lines.is_empty()).then(|| XyChart {
        title: "Decode latency over context depth".into(),
        subtitle: format!("median with 95 % interval; less is better · {host}"),
        x: Axis { label: "tokens in the context".into(), ..Axis::default() },
        y: Axis { label: "ms / token".into(), ..Axis::default() },
        series: lines.into_iter().enumerate().map(line).collect(),
    })
}
