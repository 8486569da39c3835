//! `ternbench kernels bench`: every kernel on real layer shapes, proved first, interleaved, against the limits of this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use ternbench_kernels::probe::Arithmetic;
use ternbench_kernels::{Exactness, Pool, isa};
use ternbench_measure::{Env, Host, RunContext, RunDir, clock, record, runner};
use ternbench_report::table::{self, Align};

use super::timing::{self, Cache, Packed};
use super::{VERIFY_BATCHES, named_shapes, prove, select, tuning};
use crate::console;
use crate::model::Output;
use crate::open;
use crate::probes::Probes;

/// Above this many tokens scalar kernels are left out unless the filter names them: one run takes seconds.
const SCALAR_UP_TO: usize = 8;
/// What `--check` forgives: the noise of a shared machine.
const PICK_TOLERANCE: f64 = 1.05;

#[derive(clap::Args)]
pub struct Args {
    /// Only kernels whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// The layer shapes: a name of datasets/models or datasets/shapes
    #[arg(long, default_value = "bitnet-2b4t")]
    shapes: String,
    /// Batch sizes; scalar kernels are timed up to 8 tokens unless --filter names them
    #[arg(short = 'M', long = "batch", value_delimiter = ',', default_value = "1,2,4,8,32,128,512")]
    batch: Vec<usize>,
    /// Numbers of threads; 1 and all cores when not given
    #[arg(short, long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Repetitions, unless a shape takes longer than --budget
    #[arg(short, long, default_value_t = 11)]
    repetitions: u32,
    /// Seconds after which a shape gets no new round (three are always run)
    #[arg(long, value_name = "SECONDS", value_parser = open::seconds, default_value = "4")]
    budget: Duration,
    /// Weights from memory, as in a model, or from the cache, as far as they fit
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cold,hot")]
    cache: Vec<Cache>,
    /// Fail when the dispatcher's pick is more than 5 % behind the fastest exact kernel
    #[arg(long)]
    check: bool,
    /// Also write a run (records.jsonl, host.json) under this folder, for `ternbench report`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// Tokens of a batch, at most: their sums with the widest layer are some GB.
const MAX_BATCH: usize = 1 << 16;

pub fn run(args: &Args, env: &Env) -> Result<ExitCode> {
    runner::refuse_debug_build(runner::DebugBuilds::Refuse)?;
    if args.batch.contains(&0) {
        bail!("--batch 0: a batch has at least one token");
    }
    if let Some(batch) = args.batch.iter().find(|&&batch| batch > MAX_BATCH) {
        bail!("--batch {batch}: at most {MAX_BATCH} tokens");
    }
    args.threads.iter().try_for_each(|&n| open::check_threads(n))?;
    let shapes = named_shapes(&args.shapes)?;
    let mut threads = args.threads.clone();
    if threads.is_empty() {
        threads = vec![1, open::threads(None, env)];
    }
    threads.sort_unstable();
    threads.dedup();
    let pools = threads.iter().map(|&n| open::pool(n)).collect::<Result<Vec<_>>>()?;
    let features: Vec<&str> = isa::detected().iter().map(|feature| feature.name()).collect();
    let host = Host::describe(&features);
    let proved = prove(&args.filter, |_| true, &shapes, &VERIFY_BATCHES)?;
    let (kernels, _) = select(&args.filter)?;
    let probes = Probes::measure(&host, &pools, 2.0)?;
    let mut rows = Vec::new();
    for pool in &pools {
        let picks = tuning::dispatch(&shapes, pool, env)?;
        let limits = probes.limits(pool.n_threads(), Arithmetic::Ternary);
        for &(n, k) in &shapes {
            let packed = timing::pack(&kernels, &timing::random_matrix(n, k)?, limits.cache_bytes);
            let (scalar, vectorised): (Vec<_>, Vec<_>) =
                packed.into_iter().partition(|p| p.kernel.info().isa() == "scalar");
            for &m in &args.batch {
                for &cache in &args.cache {
                    let spinner = console::spinner(&format!("timing {n}x{k}, {m} tokens, {}", cache.name()));
                    let mut contest: Vec<&Packed> = vectorised.iter().collect();
                    if m <= SCALAR_UP_TO || args.filter.contains("scalar") || vectorised.is_empty() {
                        contest.extend(&scalar);
                    }
                    let at = Place { shape: [n, k, m], cache, pool, limits };
                    rows.extend(contested(&contest, &proved, &at, picks.of(n, k).at(m).info().name, args)?);
                    spinner.finish_and_clear();
                }
            }
        }
    }
    let late = rows.iter().filter(|row| row.late).count();
    if let Some(root) = &args.out {
        write_run(root, &host, &probes, &proved, &rows)?;
    }
    if args.json || args.output == Output::Json {
        let context = RunContext::new("kernels-bench", &host);
        let records: Vec<_> = rows.into_iter().map(|row| context.record(row.record)).collect();
        println!("{}", serde_json::to_string_pretty(&records)?);
    } else {
        probes.lines().iter().for_each(|line| println!("{line}"));
        println!("{}", render(&rows, console::tables(env)));
        println!("* the dispatcher's pick (--kernel auto). GB/s counts packed weights, once a run.");
    }
    if args.check && late > 0 {
        eprintln!(
            "check failed: the dispatcher's pick is more than 5 % behind the fastest exact kernel in {late} places (marked 'late')"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is timed, and where.
struct Place<'a> {
    shape: [usize; 3],
    cache: Cache,
    pool: &'a Pool,
    limits: record::Limits,
}

/// One kernel's line.
struct Row {
    record: record::Kernel,
    exact: bool,
    bits_per_weight: f32,
    pick: bool,
    /// The pick, more than the tolerance behind the fastest exact kernel.
    late: bool,
    ns: f64,
}

/// Times `contest` and returns its lines, fastest first.
fn contested(
    contest: &[&Packed],
    proved: &[record::Verify],
    at: &Place<'_>,
    pick: &str,
    args: &Args,
) -> Result<Vec<Row>> {
    let [n, k, m] = at.shape;
    let timings = timing::time(contest, at.shape, at.cache, at.pool, args.repetitions, Some(args.budget))?;
    let mut rows: Vec<Row> = timings
        .into_iter()
        .zip(contest)
        .map(|(timing, packed)| {
            let info = packed.kernel.info();
            let wrong = proved.iter().find(|v| v.code.kernel == info.name).and_then(|v| v.first_mismatch.clone());
            let ns = timing.compute_ns();
            let record = record::Kernel {
                code: open::code(info.name),
                n,
                k,
                m,
                n_threads: at.pool.n_threads(),
                cache: at.cache.name().to_owned(),
                group: format!("{n}x{k} m{m} {}t {}", at.pool.n_threads(), at.cache.name()),
                pack_ns: vec![packed.pack_ns],
                prepare_ns: timing.prepare_ns,
                compute_ns: timing.compute.ns,
                samples_round: timing.compute.rounds,
                packed_bytes: packed.bytes(),
                limits: at.limits,
                output_checksum: timing.checksum,
                refused: wrong.map(|wrong| format!("wrong: {wrong}")).or(timing.failed),
            };
            let exact = info.exactness == Exactness::Exact;
            Row { record, exact, bits_per_weight: info.bits_per_weight, pick: info.name == pick, late: false, ns }
        })
        .collect();
    rows.sort_by(|a, b| a.record.refused.is_some().cmp(&b.record.refused.is_some()).then(a.ns.total_cmp(&b.ns)));
    let best = rows.iter().find(|row| row.exact && row.record.refused.is_none()).map(|row| row.ns);
    for row in rows.iter_mut().filter(|row| row.pick && at.cache == Cache::Cold) {
        row.late = best.is_some_and(|best| row.ns > best * PICK_TOLERANCE);
    }
    Ok(rows)
}

/// Fastest first within a shape: time, bandwidth and arithmetic with their shares of the limits.
fn render(rows: &[Row], output: table::Output) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|Row { record: r, exact, bits_per_weight, pick, late, ns }| {
            let (bytes, macs) = (r.packed_bytes as f64 / ns, (r.n * r.k * r.m) as f64 / ns);
            let share = |per_ns: f64, limit: f64| {
                if limit > 0.0 { format!("{:.0} %", per_ns * 1e11 / limit) } else { "-".into() }
            };
            let mark = if *pick { " *" } else { "" };
            let mut remarks: Vec<String> = r.refused.iter().cloned().collect();
            if *late {
                remarks.push("late".into());
            }
            vec![
                r.group.clone(),
                format!("{}{mark}", r.code.kernel),
                format!("{ns:.0}"),
                format!("{bytes:.2}"),
                share(bytes, r.limits.bandwidth_bytes_per_s),
                format!("{macs:.1}"),
                share(macs, r.limits.macs_per_s),
                format!("{:.0}", timing::median(&r.prepare_ns)),
                format!("{:.1}", timing::median(&r.pack_ns) / 1e6),
                format!("{bits_per_weight:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
                if *exact { "exact" } else { "bounded" }.to_owned(),
                remarks.join("; "),
            ]
        })
        .collect();
    let names = [
        "shape",
        "kernel",
        "ns",
        "GB/s",
        "of limit",
        "GMAC/s",
        "of limit",
        "prepare ns",
        "pack ms",
        "bits",
        "sums",
        "",
    ];
    let align =
        |name| (name, if matches!(name, "shape" | "kernel" | "sums" | "") { Align::Left } else { Align::Right });
    table::render(&names.map(align), &cells, output)
}

/// Probes, proofs and timings as a run of their own.
fn write_run(
    root: &std::path::Path,
    host: &Host,
    probes: &Probes,
    proved: &[record::Verify],
    rows: &[Row],
) -> Result<()> {
    let run = RunDir::create(root, &clock::today(), "kernels-bench", host)?;
    let context = RunContext::new(run.run_id(), host);
    let mut records = run.records()?;
    for probe in &probes.records {
        records.append(&context.record(probe.clone()))?;
    }
    for proof in proved {
        records.append(&context.record(proof.clone()))?;
    }
    for row in rows {
        records.append(&context.record(row.record.clone()))?;
    }
    eprintln!("records: {}", run.path().display());
    Ok(())
}
