//! Rooflines: multiply-adds per second over multiply-adds per byte, of models and of kernels, under what the machine can do.

use std::collections::{BTreeMap, BTreeSet};

use super::{Workload, threads, title};
use crate::frame::{KernelRow, SpeedRow};
use crate::plots::pen::{OTHERS, SERIES, TERNARY};
use crate::plots::{Axis, Point, Style, XyChart, XySeries};
use crate::table::short_number;

/// Where something measured stands, and what limited it.
struct Place<'a> {
    /// Multiply-adds per byte.
    intensity: f64,
    arithmetic: &'a str,
    /// Bytes per second.
    bandwidth: f64,
    /// Multiply-adds per second.
    peak: f64,
}

/// Multiply-adds per second over multiply-adds per byte, at the most threads, under the measured peaks.
pub(super) fn models(rows: &[SpeedRow], host: &str) -> Option<XyChart> {
    let most = rows.iter().filter(|row| row.limit_tokens_per_s.is_some()).map(|row| row.n_threads).max()?;
    let usable = |row: &&SpeedRow| {
        row.n_threads == most && row.bandwidth_bytes_per_s > 0.0 && row.macs_per_s > 0.0 && row.bytes_per_token > 0.0
    };
    // The best of each model, decode of one sequence and all else apart.
    let mut best: BTreeMap<(&str, &str, &str, bool), &SpeedRow> = BTreeMap::new();
    for row in rows.iter().filter(usable) {
        let macs = |row: &SpeedRow| row.tokens_per_s.value * row.macs_per_token;
        let workload = Workload::of(&row.workload);
        let together = workload.prefill || workload.n_parallel > 1;
        let kept = best.entry((&row.shape, &row.weights, &row.kv, together)).or_insert(row);
        if macs(row) > macs(kept) {
            *kept = row;
        }
    }
    let intensity = |row: &SpeedRow| row.macs_per_token / row.bytes_per_token;
    let place = |row: &&SpeedRow| Place {
        intensity: intensity(row),
        arithmetic: row.arithmetic(),
        bandwidth: row.bandwidth_bytes_per_s,
        peak: row.macs_per_s,
    };
    let mut series = roofs(&best.values().map(place).collect::<Vec<_>>())?;
    let kinds = [
        ("ternary, decode", "ternary", false, TERNARY[0]),
        ("ternary, prefill or batch", "ternary", true, TERNARY[1]),
        ("others, decode", "", false, OTHERS[0]),
        ("others, prefill or batch", "", true, OTHERS[2]),
    ];
    for (name, weights, prefill, color) in kinds {
        let members =
            best.iter().filter(|((_, of, _, at), _)| (*of == "ternary") == (weights == "ternary") && *at == prefill);
        let point = |row: &SpeedRow| Point {
            x: intensity(row),
            y: row.tokens_per_s.value * row.macs_per_token / 1e9,
            interval: Some((
                row.tokens_per_s.low * row.macs_per_token / 1e9,
                row.tokens_per_s.high * row.macs_per_token / 1e9,
            )),
            label: match row.held().as_str() {
                "ternary" | "f16" => title(row).to_owned(),
                other => format!("{} {other}", title(row)),
            },
        };
        let points: Vec<Point> = members.map(|(_, row)| point(row)).collect();
        if !points.is_empty() {
            series.push(XySeries { name: name.into(), color, style: Style::Filled, points });
        }
    }
    let subtitle = format!("best kernel and length of each model, {} · {host}", threads(most));
    Some(chart("models", subtitle, "that must be read", series))
}

/// The fastest kernels from few tokens to many, for each number of threads: all layer shapes together, the weights in memory.
pub(super) fn kernels(rows: &[KernelRow], host: &str) -> Vec<(String, XyChart)> {
    let usable = |row: &&KernelRow| row.cache == "cold" && row.bandwidth_bytes_per_s > 0.0 && row.macs_per_s > 0.0;
    let mut by_threads: BTreeMap<u64, Vec<&KernelRow>> = BTreeMap::new();
    for row in rows.iter().filter(usable) {
        by_threads.entry(row.n_threads).or_default().push(row);
    }
    let chart = |(n_threads, rows): (u64, Vec<&KernelRow>)| {
        let chart = kernels_at(&rows, &format!("weights cold, {} · {host}", threads(n_threads)))?;
        Some((format!("roofline-kernels-t{n_threads}"), chart))
    };
    by_threads.into_iter().filter_map(chart).collect()
}

/// What a kernel needs for every layer shape once.
#[derive(Default)]
struct Total {
    shapes: usize,
    ns: f64,
    bytes: f64,
    macs: f64,
}

fn kernels_at(rows: &[&KernelRow], conditions: &str) -> Option<XyChart> {
    let shapes = rows.iter().map(|row| (row.n, row.k)).collect::<BTreeSet<_>>().len();
    let mut totals: BTreeMap<u64, BTreeMap<String, Total>> = BTreeMap::new();
    for row in rows {
        let total = totals.entry(row.m).or_default().entry(row.sums.mark(&row.kernel)).or_default();
        total.shapes += 1;
        total.ns += row.compute_ns.value;
        total.bytes += row.packed_bytes;
        total.macs += (row.n * row.k * row.m) as f64;
    }
    totals.values_mut().for_each(|kernels| kernels.retain(|_, total| total.shapes == shapes));
    // Those that were timed with every batch, by how many times the fastest's time they took, in the geometric mean.
    let mut slower: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for kernels in totals.values() {
        let best = kernels.values().map(|total| total.ns).fold(f64::MAX, f64::min);
        for (kernel, total) in kernels {
            let (batches, sum) = slower.entry(kernel).or_default();
            *batches += 1;
            *sum += (total.ns / best).ln();
        }
    }
    slower.retain(|_, (batches, _)| *batches == totals.len());
    let mut fastest: Vec<&str> = slower.keys().copied().collect();
    fastest.sort_by(|a, b| slower[a].1.total_cmp(&slower[b].1));
    fastest.truncate(SERIES.len());
    let first = rows.first()?;
    let places = totals.values().flatten().filter(|(kernel, _)| fastest.contains(&kernel.as_str()));
    let place = |(_, total): (&String, &Total)| Place {
        intensity: total.macs / total.bytes,
        arithmetic: "ternary",
        bandwidth: first.bandwidth_bytes_per_s,
        peak: first.macs_per_s,
    };
    let mut series = roofs(&places.map(place).collect::<Vec<_>>())?;
    // The number of tokens stands at the points of the fastest.
    for (i, kernel) in fastest.iter().enumerate() {
        let at = |(m, kernels): (&u64, &BTreeMap<String, Total>)| {
            let total = kernels.get(*kernel)?;
            let label = if i == 0 { format!("m = {m}") } else { String::new() };
            Some(Point { x: total.macs / total.bytes, y: total.macs / total.ns, interval: None, label })
        };
        let points = totals.iter().filter_map(at).collect();
        series.push(XySeries { name: (*kernel).into(), color: SERIES[i], style: Style::Line, points });
    }
    let subtitle = format!("the fastest from few tokens to many, {shapes} layer shapes together, {conditions}");
    Some(chart("kernels", subtitle, "of packed weights", series))
}

/// The chart of `what`, over multiply-adds per byte `of_what`.
fn chart(what: &str, subtitle: String, of_what: &str, series: Vec<XySeries>) -> XyChart {
    let axis = |label| Axis { label, log: true, ..Axis::default() };
    XyChart {
        title: format!("Roofline: how near the {what} come to the machine"),
        subtitle,
        x: axis(format!("arithmetic intensity, multiply-adds per byte {of_what}")),
        y: axis("10⁹ multiply-adds / s".to_owned()),
        series,
    }
}

/// The bandwidth's slope up to each arithmetic peak.
fn roofs(places: &[Place<'_>]) -> Option<Vec<XySeries>> {
    let bandwidth = places.iter().map(|at| at.bandwidth).max_by(f64::total_cmp)?;
    let lowest = places.iter().map(|at| at.intensity).min_by(f64::total_cmp)? / 2.0;
    let highest = places.iter().map(|at| at.intensity).max_by(f64::total_cmp)? * 2.0;
    let peak = |arithmetic: &str| {
        places.iter().filter(|at| at.arithmetic == arithmetic).map(|at| at.peak).max_by(f64::total_cmp)
    };
    let mut peaks: Vec<_> =
        ["ternary", "int8", "f32", "bf16", "split bf16"].map(|arithmetic| (arithmetic, peak(arithmetic))).into();
    peaks.retain(|(_, peak)| peak.is_some());
    if peaks.len() > 1 && peaks.iter().all(|(_, peak)| *peak == peaks[0].1) {
        peaks = vec![("arithmetic", peaks[0].1)];
    }
    let top = peaks.iter().filter_map(|(_, peak)| *peak).max_by(f64::total_cmp)?;
    let roof = |name: &str, points: Vec<(f64, f64, String)>| XySeries {
        name: name.into(),
        color: (193, 68, 50),
        style: Style::Dashes,
        points: points.into_iter().map(|(x, y, label)| Point { x, y: y / 1e9, interval: None, label }).collect(),
    };
    // Records that were edited may hold anything.
    if [bandwidth, lowest, highest].iter().any(|x| !x.is_finite()) {
        return None;
    }
    let knee = (top / bandwidth).clamp(lowest, highest);
    let slope = format!("{:.1} GB/s", bandwidth / 1e9);
    let mut roofs = vec![roof(
        "measured limits",
        vec![(lowest, lowest * bandwidth, slope), (knee, (knee * bandwidth).min(top), String::new())],
    )];
    for (name, peak) in peaks.into_iter().filter_map(|(name, peak)| Some((name, peak?))) {
        let label = format!("{name} peak {} G/s", short_number(peak / 1e9));
        let from = (peak / bandwidth).clamp(lowest, highest);
        roofs.push(roof("", vec![(from, peak, String::new()), (highest.max(from * 1.5), peak, label)]));
    }
    Some(roofs)
}
