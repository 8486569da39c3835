//! `report.md`: the verdicts first, then the plots, then the numbers, then where and how.

use std::fmt::Write as _;

use ternbench_measure::record::{Body, Probe};
use ternbench_measure::{Host, Record};

use crate::catalogue::Catalogue;
use crate::claims::judge;
use crate::frame::{FrameError, SpeedRow, memory_rows, speed_rows};
use crate::ledger::{Ledger, Verdict};
use crate::table::{Align, SPEED_HEADER, speed_cells};

/// The report of a run. `plots` are names without extension, in the report's own folder; `host` is what `host.json` says.
///
/// # Errors
/// When the records cannot be tabulated.
pub fn report(records: &[Record], host: Option<&Host>, plots: &[String]) -> Result<String, FrameError> {
    let mut out = String::new();
    let ledger = judge(records);
    let _ = writeln!(out, "# ternbench report\n");
    let _ = writeln!(out, "{}\n", headline(records, host));
    let _ = writeln!(out, "## Verdicts\n\n{}.\n\n{}", ledger.summary(), ledger_table(&ledger));
    for table in crate::twins::tables(records) {
        let _ = writeln!(out, "{}", table.markdown());
    }
    if !plots.is_empty() {
        let _ = writeln!(out, "## Plots\n");
        for name in plots {
            let _ = writeln!(out, "![{}]({name}.svg)\n", name.replace('-', " "));
        }
    }
    let speeds = speed_rows(records)?;
    if !speeds.is_empty() {
        let _ = writeln!(out, "## Speed\n\nMedians over all repetitions; nothing was dropped.\n");
        let _ = writeln!(out, "{}", self::speeds(&speeds));
    }
    refused(&mut out, records);
    memory(&mut out, records);
    verification(&mut out, records);
    machine(&mut out, records, host);
    let _ = writeln!(
        out,
        "## Method\n\nProtocol, statistics, limits, verdict rules and known biases: [harness/METHODOLOGY.md](../../../harness/METHODOLOGY.md). \
         Raw samples: [records.jsonl](records.jsonl).\n\n### Sources\n"
    );
    for (letter, title) in &Catalogue::get().sources {
        let _ = writeln!(out, "- [{letter}] {title}");
    }
    Ok(out)
}

/// A Markdown table.
pub fn table(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut out = line(&mut header.iter().map(|(name, _)| (*name).to_owned()));
    out +=
        &line(&mut header.iter().map(|(_, align)| if *align == Align::Right { "---:".into() } else { "---".into() }));
    for row in rows {
        out += &line(&mut row.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")));
    }
    out
}

/// Speeds as a table.
pub fn speeds(rows: &[SpeedRow]) -> String {
    table(&SPEED_HEADER, &rows.iter().map(speed_cells).collect::<Vec<_>>())
}

/// The ledger as a Markdown table, for reports and the README.
pub fn ledger_table(ledger: &Ledger) -> String {
    let header = ["claim", "said", "published", "measured here", "verdict", "why"].map(|name| (name, Align::Left));
    let rows = ledger.rows.iter().map(|row| {
        let finding = &row.finding;
        let verdict = match finding.verdict {
            Verdict::Reproduced | Verdict::NotReproduced => format!("**{}**", finding.verdict),
            Verdict::NotComparable | Verdict::NotMeasured => finding.verdict.to_string(),
        };
        let conditions = if row.conditions.is_empty() { String::new() } else { format!(" ({})", row.conditions) };
        let said = format!("{} [{}]", row.claim, row.sources.join("]["));
        vec![
            row.id.clone(),
            said,
            format!("{}{conditions}", row.published),
            finding.measured.clone(),
            verdict,
            format!("{}{}", finding.reason, row.advice()),
        ]
    });
    table(&header, &rows.collect::<Vec<_>>())
}

fn headline(records: &[Record], host: Option<&Host>) -> String {
    let Some(first) = records.first() else {
        return "No records.".into();
    };
    let machine = host.map_or_else(|| first.cpu.clone(), Host::summary);
    let commit = if first.git_commit == "unknown" {
        "an unknown commit".into()
    } else {
        format!("commit {:.12}", first.git_commit)
    };
    let dirty = if first.git_dirty { " with local changes" } else { "" };
    let date = first.time.split('T').next().unwrap_or(&first.time);
    format!("{date} · {machine} · ternbench {} at {commit}{dirty} · run `{}`", first.ternbench_version, first.run_id)
}

fn refused(out: &mut String, records: &[Record]) {
    let mut rows = Vec::new();
    for record in records {
        if let Body::Speed(speed) = &record.body
            && let Some(reason) = &speed.refused
        {
            rows.push(vec![
                speed.model.model.clone(),
                speed.code.kernel.clone(),
                speed.workload.clone(),
                speed.n_threads.to_string(),
                reason.clone(),
            ]);
        }
    }
    if !rows.is_empty() {
        let header = [
            ("model", Align::Left),
            ("kernel", Align::Left),
            ("workload", Align::Left),
            ("threads", Align::Right),
            ("why", Align::Left),
        ];
        let _ = writeln!(out, "## Refused\n\nThese enter no table, ratio or verdict.\n\n{}", table(&header, &rows));
    }
}

fn memory(out: &mut String, records: &[Record]) {
    let rows = memory_rows(records);
    if rows.is_empty() {
        return;
    }
    let names = ["stored", "mapped", "packed linear", "embedding", "KV cache", "scratch", "resident peak"];
    let header: Vec<(&str, Align)> = [("model", Align::Left), ("weights", Align::Left), ("kernel", Align::Left)]
        .into_iter()
        .chain(names.map(|name| (name, Align::Right)))
        .collect();
    let row = |memory: &&ternbench_measure::record::Memory| {
        let bytes = [
            memory.stored_bytes,
            memory.mapped_bytes,
            memory.packed_bytes,
            memory.embedding_bytes,
            memory.kv_bytes,
            memory.scratch_bytes,
            memory.peak_rss_bytes,
        ];
        let shape = memory.model.shape().unwrap_or(&memory.model.model);
        let words = [Catalogue::get().title(shape), &memory.model.weights, &memory.kernel].map(str::to_owned);
        words.into_iter().chain(bytes.map(|bytes| format!("{:.3}", bytes as f64 / 1e9))).collect()
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    let _ = writeln!(out, "## Memory\n\nGB (10⁹ bytes).\n\n{}", table(&header, &rows));
}

fn verification(out: &mut String, records: &[Record]) {
    let mut rows = Vec::new();
    for record in records {
        match &record.body {
            Body::Verify(verify) => {
                let result = match (&verify.skipped, verify.ok) {
                    (Some(why), _) => format!("skipped: {why}"),
                    (None, true) if verify.code.exact => "equal to the oracle".into(),
                    (None, true) => "within its bound".into(),
                    (None, false) => format!("WRONG: {}", verify.first_mismatch.as_deref().unwrap_or("a sum differs")),
                };
                rows.push(vec![
                    verify.code.kernel.clone(),
                    "sums".into(),
                    format!("{} cases on {} shapes", verify.cases, verify.shapes.len()),
                    result,
                ]);
            }
            Body::Agreement(agreement) => {
                let what = format!("{} tokens of {} prompts", agreement.n_tokens, agreement.n_prompts);
                let result = format!("{} differ from {}", agreement.n_differ, agreement.reference_kernel);
                rows.push(vec![agreement.code.kernel.clone(), "greedy tokens".into(), what, result]);
            }
            _ => {}
        }
    }
    if !rows.is_empty() {
        let header = ["kernel", "compared", "how much", "result"].map(|name| (name, Align::Left));
        let _ = writeln!(out, "## Verification\n\nDone before anything was timed.\n\n{}", table(&header, &rows));
    }
}

fn machine(out: &mut String, records: &[Record], host: Option<&Host>) {
    let _ = writeln!(out, "## Machine\n");
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
        let _ = writeln!(out, "- CPU: {}, {} cores{physical}{virtualised}", host.cpu, host.logical_cores);
        let _ = writeln!(out, "- Features: {}", host.features.join(", "));
        let _ = writeln!(out, "- Caches: {}", caches.join(", "));
        let _ = writeln!(
            out,
            "- Memory: {}, {} free at the start",
            size(host.memory_bytes),
            size(host.memory_available_bytes)
        );
        let _ = writeln!(out, "- System: {}, kernel {}", host.os, host.os_kernel);
        let governor = host.governor.as_deref().unwrap_or("not visible");
        let load = host.load_average.map_or("unknown".into(), |load| format!("{load:.2}"));
        let _ = writeln!(out, "- Frequency governor: {governor}; load average at the start: {load}");
    }
    for record in records {
        if let Body::Probe(probe) = &record.body
            && let Some(peak) = probe.peak_per_s()
        {
            let (what, unit) = if probe.name == Probe::BANDWIDTH {
                ("read bandwidth", "GB/s")
            } else {
                ("int8 multiply-adds", "G MAC/s")
            };
            let threads = if probe.n_threads == 1 { "1 thread".into() } else { format!("{} threads", probe.n_threads) };
            let _ = writeln!(
                out,
                "- Peak {what}, {threads}: {:.1} {unit} ({}, best of {})",
                peak / 1e9,
                probe.instructions,
                probe.samples_ns.len()
            );
        }
    }
    let _ = writeln!(out);
}
