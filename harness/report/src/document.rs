//! What a report says, before it is Markdown or HTML.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use ternbench_measure::record::{Body, Probe};
use ternbench_measure::run_dir::write_atomic;
use ternbench_measure::{Host, Record};

use crate::claims::judge;
use crate::compare::noise_floor;
use crate::export::{self, Format};
use crate::frame::{FrameError, kernel_rows, speed_rows};
use crate::ledger::Ledger;
use crate::plots::{self, Plot, PlotError};
use crate::run::Run;
use crate::sections::{self, Section};
use crate::{html, markdown};

/// Why a report could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The records could not be tabulated.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A plot could not be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// A table could not be exported.
    #[error(transparent)]
    Export(#[from] export::ExportError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] ternbench_measure::run_dir::RunDirError),
}

/// A report.
#[derive(Clone, Debug)]
pub struct Document {
    /// When, what machine, which commit, which run.
    pub headline: String,
    /// The verdicts.
    pub ledger: Ledger,
    /// The plots.
    pub plots: Vec<Plot>,
    /// The tables.
    pub sections: Vec<Section>,
    /// What is known of the machine and the run: name and value.
    pub machine: Vec<(String, String)>,
}

impl Document {
    /// The report of a run.
    ///
    /// # Errors
    /// When the records cannot be tabulated.
    pub fn new(run: &Run) -> Result<Self, FrameError> {
        let records = &run.records;
        let (speeds, kernels) = (speed_rows(records)?, kernel_rows(records)?);
        let mut machine = machine(records, run.host.as_ref());
        machine.push(("Noise floor".into(), noise(records)));
        machine.extend(run.damaged.iter().map(|line| ("Damaged record".into(), line.clone())));
        Ok(Self {
            headline: headline(run),
            ledger: judge(run),
            plots: plots::all(records, &speeds, &kernels, &run.machine()),
            sections: sections::all(run, &speeds, &kernels),
            machine,
        })
    }

    /// Writes `report.md`, `report.html`, every plot as SVG and (unless without `png`) as PNG, and every table as CSV and Parquet into
    /// a folder that is there. Returns the files that people open first.
    ///
    /// # Errors
    /// When one cannot be made or written.
    pub fn save(&self, folder: &Path, png: bool) -> Result<[PathBuf; 2], ReportError> {
        // Drawing is most of the work of a report.
        self.plots.par_iter().try_for_each(|plot| {
            plot.save_svg(folder)?;
            if png { plot.save_png(folder) } else { Ok(()) }
        })?;
        let claims = ("claims", sections::claims(&self.ledger));
        let tables = self.sections.iter().map(|section| (section.title, section.table.clone())).chain([claims]);
        for (title, table) in tables {
            let name = ternbench_measure::host::slug(title);
            for (format, extension) in [(Format::Csv, "csv"), (Format::Parquet, "parquet")] {
                let path = folder.join(format!("{name}.{extension}"));
                write_atomic(&path, &export::write(&table, format)?)?;
            }
        }
        let (markdown, html) = (folder.join("report.md"), folder.join("report.html"));
        write_atomic(&markdown, markdown::report(self).as_bytes())?;
        write_atomic(&html, html::report(self)?.as_bytes())?;
        Ok([markdown, html])
    }
}

fn headline(run: &Run) -> String {
    let Some(first) = run.records.first() else {
        return "No records.".into();
    };
    let commit = match first.git_commit.as_str() {
        "unknown" => "an unknown commit".into(),
        commit => format!("commit {commit:.12}"),
    };
    let dirty = if first.git_dirty { " with local changes" } else { "" };
    let date = first.time.split('T').next().unwrap_or(&first.time);
    let machine = run.machine();
    format!("{date} · {machine} · ternbench {} at {commit}{dirty} · run {}", first.ternbench_version, first.run_id)
}

fn noise(records: &[Record]) -> String {
    noise_floor(records).map_or("not measured: there was no A/A run".into(), |floor| {
        format!("{:.1} %: what a contender differs from itself by at worst, in A/A runs", floor * 100.0)
    })
}

fn machine(records: &[Record], host: Option<&Host>) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    if let Some(host) = host {
        let size = |bytes: Option<u64>| {
            bytes.map_or("unknown".into(), |bytes| format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64))
        };
        let caches: Vec<String> =
            host.cache_bytes.iter().map(|(name, bytes)| format!("{name} {} KiB", bytes >> 10)).collect();
        let physical = host.physical_cores.map_or(String::new(), |cores| format!(" on {cores} physical"));
        let virtualised = match host.virtualised {
            Some(true) => ", virtualised",
            Some(false) => "",
            None => ", unknown whether virtualised",
        };
        fact("CPU", format!("{}, {} cores{physical}{virtualised}", host.cpu, host.logical_cores));
        fact("Features", host.features.join(", "));
        fact("Caches", caches.join(", "));
        fact("Memory", format!("{}, {} free at the start", size(host.memory_bytes), size(host.memory_available_bytes)));
        fact("System", format!("{}, kernel {}", host.os, host.os_kernel));
        fact("Frequency governor", host.governor.clone().unwrap_or("not visible".into()));
        fact("Load average at the start", host.load_average.map_or("unknown".into(), |load| format!("{load:.2}")));
    }
    for record in records {
        if let Body::Probe(probe) = &record.body
            && let Some(peak) = probe.peak_per_s()
        {
            let unit = if probe.name == Probe::BANDWIDTH { "GB/s" } else { "G MAC/s" };
            let threads = if probe.n_threads == 1 { "1 thread".into() } else { format!("{} threads", probe.n_threads) };
            let value =
                format!("{:.1} {unit} ({}, best of {})", peak / 1e9, probe.instructions, probe.samples_ns.len());
            fact(&format!("Peak {}, {threads}", probe.name.replace('_', " ")), value);
        }
    }
    facts
}
