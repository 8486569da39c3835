//! What is plotted. A chart appears only if there are records for it.

mod accuracy;
mod kernels;
mod roofline;
mod size;
mod speed;

use ternbench_measure::Record;

use super::{Chart, Plot};
use crate::catalogue::Catalogue;
use crate::frame::{KernelRow, SpeedRow};

/// Every plot that the records have something for, in the order of a report. `host` stands under every title.
pub fn all(records: &[Record], speeds: &[SpeedRow], kernels: &[KernelRow], host: &str) -> Vec<Plot> {
    let mut plots = Vec::new();
    let mut add = |name: String, chart: Chart| plots.push(Plot { name, chart });
    let mut workloads: Vec<Workload<'_>> = speeds.iter().map(|row| Workload::of(&row.workload)).collect();
    // Decode first, the longest first: what is asked about most.
    workloads
        .sort_by_key(|workload| (workload.prefill, workload.n_parallel, std::cmp::Reverse(workload.n), workload.depth));
    workloads.dedup();
    for workload in workloads.iter().filter(|workload| workload.depth == 0) {
        add(format!("speed-{}", workload.slug()), Chart::Bars(speed::by_kernel(speeds, workload, host)));
    }
    for workload in &workloads {
        if let Some(chart) = speed::scaling(speeds, workload, host) {
            add(format!("scaling-{}", workload.slug()), Chart::Xy(chart));
        }
    }
    speed::latency_by_depth(speeds, host).into_iter().for_each(|chart| add("latency-depth".into(), Chart::Xy(chart)));
    roofline::models(speeds, host).into_iter().for_each(|chart| add("roofline".into(), Chart::Xy(chart)));
    size::memory(records, host).into_iter().for_each(|chart| add("memory".into(), Chart::Bars(chart)));
    size::bytes_per_token(records, host)
        .into_iter()
        .for_each(|chart| add("bytes-per-token".into(), Chart::Bars(chart)));
    for (task, chart) in accuracy::against_memory(records, host) {
        add(format!("accuracy-{task}"), Chart::Xy(chart));
    }
    for (name, chart) in roofline::kernels(kernels, host) {
        add(name, Chart::Xy(chart));
    }
    for (name, map) in kernels::heat_maps(kernels, host) {
        add(name, Chart::Heat(map));
    }
    plots
}

/// A workload, taken apart: `tg128@d512` decodes 128 tokens after 512, `tg32x8` 32 tokens of each of 8 sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Workload<'a> {
    name: &'a str,
    prefill: bool,
    n: u64,
    n_parallel: u64,
    depth: u64,
    draft: u64,
}

impl<'a> Workload<'a> {
    fn of(name: &'a str) -> Self {
        let (rest, draft) = name.split_once("+draft").unwrap_or((name, "0"));
        let (base, depth) = rest.split_once("@d").unwrap_or((rest, "0"));
        let number = |text: &str| text.parse().unwrap_or(0);
        let (base, n_parallel) = base.split_once('x').unwrap_or((base, "1"));
        let n = number(base.trim_start_matches(|c: char| !c.is_ascii_digit()));
        Self {
            name,
            prefill: base.starts_with("pp"),
            n,
            n_parallel: number(n_parallel),
            depth: number(depth),
            draft: number(draft),
        }
    }

    fn slug(&self) -> String {
        ternbench_measure::host::slug(self.name)
    }

    /// `Decode, 128 tokens after 512`.
    fn words(&self) -> String {
        let mut after = if self.depth == 0 { String::new() } else { format!(" after {}", self.depth) };
        if self.draft > 0 {
            after += &format!(", up to {} drafted a pass", self.draft);
        }
        match (self.prefill, self.name.starts_with("tg")) {
            (true, _) => format!("Prefill, {} tokens{after}", self.n),
            (_, true) if self.n_parallel > 1 => {
                format!("Decode, {} tokens of each of {} sequences{after}", self.n, self.n_parallel)
            }
            (_, true) => format!("Decode, {} tokens{after}", self.n),
            _ => self.name.to_owned(),
        }
    }
}

/// What a report calls the shape of a row.
fn title(row: &SpeedRow) -> &str {
    Catalogue::get().title(&row.shape)
}

/// `1 thread`, `2 threads`.
fn threads(n: u64) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_in_words() {
        for (name, words) in [
            ("tg128@d512", "Decode, 128 tokens after 512"),
            ("pp64", "Prefill, 64 tokens"),
            ("tg8+draft4", "Decode, 8 tokens, up to 4 drafted a pass"),
            ("tg32x8@d64", "Decode, 32 tokens of each of 8 sequences after 64"),
            ("mix", "mix"),
        ] {
            assert_eq!(Workload::of(name).words(), words);
        }
    }
}
