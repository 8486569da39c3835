//! Kernels on their own: a heat map of kernels and shapes per batch, threads and place of the weights.

use std::collections::{BTreeMap, BTreeSet};

use super::threads;
use crate::frame::KernelRow;
use crate::plots::{Cell, HeatMap};
use crate::sums::Sums;
use crate::table::short_number;

/// One heat map per class, with the name of its files. A class of one kernel is no comparison and gets none.
pub(super) fn heat_maps(rows: &[KernelRow], host: &str) -> Vec<(String, HeatMap)> {
    let mut classes: BTreeMap<(u64, u64, &str), Vec<&KernelRow>> = BTreeMap::new();
    for row in rows {
        classes.entry((row.m, row.n_threads, &row.cache)).or_default().push(row);
    }
    let map = |((m, n_threads, cache), members): ((u64, u64, &str), Vec<&KernelRow>)| {
        let kernels: BTreeSet<&str> = members.iter().map(|row| row.kernel.as_str()).collect();
        (kernels.len() > 1).then(|| {
            let subtitle = format!(
                "G multiply-adds / s, and time against the best of the column; m = {m}, {}, weights {cache} · {host}",
                threads(n_threads)
            );
            (format!("heat-m{m}-t{n_threads}-{cache}"), heat_map(&members, m, subtitle))
        })
    };
    classes.into_iter().filter_map(map).collect()
}

fn heat_map(members: &[&KernelRow], m: u64, subtitle: String) -> HeatMap {
    let shapes: BTreeSet<(u64, u64)> = members.iter().map(|row| (row.n, row.k)).collect();
    let find = |kernel: &str, shape: (u64, u64)| {
        members.iter().find(|row| row.kernel == kernel && (row.n, row.k) == shape).map(|row| row.compute_ns.value)
    };
    let best = |shape: (u64, u64)| {
        members.iter().filter(|row| (row.n, row.k) == shape).map(|row| row.compute_ns.value).fold(f64::MAX, f64::min)
    };
    let mut kernels: Vec<(&str, Sums, f64)> = Vec::new();
    for row in members {
        if !kernels.iter().any(|(kernel, ..)| *kernel == row.kernel) {
            let slower: Vec<f64> =
                shapes.iter().filter_map(|&shape| Some(find(&row.kernel, shape)? / best(shape))).collect();
            kernels.push((&row.kernel, row.sums, slower.iter().sum::<f64>() / slower.len().max(1) as f64));
        }
    }
    kernels.sort_by(|a, b| a.2.total_cmp(&b.2));
    let cell = |kernel: &str, &(n, k): &(u64, u64)| {
        let ns = find(kernel, (n, k))?;
        let slower = ns / best((n, k));
        let text = short_number((n * k * m) as f64 / ns);
        // The best is hottest; ten times slower is cold.
        Some(Cell { heat: 1.0 - slower.log10(), text, detail: format!("{}x the time", short_number(slower)) })
    };
    let row = |&(kernel, sums, _): &(&str, Sums, f64)| {
        (sums.mark(kernel), shapes.iter().map(|shape| cell(kernel, shape)).collect())
    };
    HeatMap {
        title: format!(
            "Kernels on the layer shapes, {}",
            if m == 1 { "one token".into() } else { format!("{m} tokens") }
        ),
        subtitle,
        columns: shapes.iter().map(|(n, k)| format!("{n} x {k}")).collect(),
        rows: kernels.iter().map(row).collect(),
    }
}
