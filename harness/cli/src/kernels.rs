//! `ternbench kernels`: the catalogue, its proof, its microbenchmark.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;
use ternbench_kernels::driver::{self, Scratch};
use ternbench_kernels::registry::{self, KERNELS};
use ternbench_kernels::verify::{self, Random};
use ternbench_kernels::{Linear, QuantizedActivations, TernaryKernel, TernaryMatrix};
use ternbench_measure::{Contender, Env, Host, Plan, RunContext, interleave, record, runner, stats};
use ternbench_model::ModelConfig;
use ternbench_model::weights::LinearName;
use ternbench_report::table::{self, Align};

use crate::console;
use crate::model::Output;
use crate::open;
use crate::probes::Probes;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List every kernel, and why one cannot run here
    #[command(after_help = "Example:\n  ternbench kernels list -o json")]
    List {
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Prove the kernels equal to the oracle on a model's shapes
    #[command(
        after_help = "Examples:\n  ternbench kernels verify\n  ternbench kernels verify --filter avx2 --shapes llama-3.2-1b -o json"
    )]
    Verify {
        /// Only kernels whose name contains this
        #[arg(long, default_value = "")]
        filter: String,
        /// The model whose layer shapes are used, a name of datasets/models
        #[arg(long, default_value = "bitnet-2b4t")]
        shapes: String,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Time every kernel on a model's shapes, verified first
    #[command(
        after_help = "Examples:\n  ternbench kernels bench\n  ternbench kernels bench --filter i2s -M 1,128 -t 2 -r 20"
    )]
    Bench {
        /// Only kernels whose name contains this
        #[arg(long, default_value = "")]
        filter: String,
        /// The model whose layer shapes are used, a name of datasets/models
        #[arg(long, default_value = "bitnet-2b4t")]
        shapes: String,
        /// Batch sizes
        #[arg(short = 'M', long = "batch", value_delimiter = ',', default_value = "1,128")]
        batch: Vec<usize>,
        /// Threads; all cores when not given
        #[arg(short, long)]
        threads: Option<usize>,
        /// Repetitions
        #[arg(short, long, default_value_t = 11)]
        repetitions: u32,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

pub fn run(command: Command, env: &Env) -> Result<ExitCode> {
    match command {
        Command::List { output } => list(output, env),
        Command::Verify { filter, shapes, output } => verify_command(&filter, &shapes, output),
        Command::Bench { filter, shapes, batch, threads, repetitions, output } => {
            bench(&filter, &shapes, &batch, open::threads(threads, env), repetitions, output, env)
        }
    }
}

fn list(output: Output, env: &Env) -> Result<ExitCode> {
    if output == Output::Json {
        let kernels: Vec<_> = KERNELS
            .iter()
            .map(|entry| {
                let i = entry.info;
                json!({
                    "name": i.name, "summary": i.summary, "isa": i.isa(), "layout": i.layout, "bits_per_weight": i.bits_per_weight,
                    "exactness": i.exactness.to_string(), "features": i.features.iter().map(|f| f.name()).collect::<Vec<_>>(),
                    "source": i.source, "supported": entry.kernel().is_ok(),
                    "unsupported_because": entry.kernel().err().map(|reason| reason.to_string()),
                    "default": i.name == registry::default_kernel().info().name,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&kernels)?);
        return Ok(ExitCode::SUCCESS);
    }
    let header =
        ["kernel", "layout", "bits", "exactness", "here", "what it does", "source"].map(|name| (name, Align::Left));
    let rows: Vec<Vec<String>> = KERNELS
        .iter()
        .map(|entry| {
            let i = entry.info;
            let here = match entry.kernel() {
                Ok(_) if i.name == registry::default_kernel().info().name => "default".to_owned(),
                Ok(_) => "yes".to_owned(),
                Err(reason) => reason.to_string(),
            };
            let bits = i.bits_per_weight.to_string();
            let texts = [i.name, i.layout, &bits, &i.exactness.to_string(), &here, i.summary, i.source];
            texts.map(str::to_owned).to_vec()
        })
        .collect();
    println!("{}", table::render(&header, &rows, console::tables(env)));
    Ok(ExitCode::SUCCESS)
}

/// The kernels whose name contains `filter`, with why any of them cannot run.
fn select(filter: &str) -> Result<(Vec<&'static dyn TernaryKernel>, Vec<record::Verify>)> {
    let (mut kernels, mut skipped) = (Vec::new(), Vec::new());
    for entry in KERNELS.iter().filter(|entry| entry.info.name.contains(filter)) {
        match entry.kernel() {
            Ok(kernel) => kernels.push(kernel),
            Err(reason) => skipped.push(record::Verify {
                code: open::code(entry.info.name),
                layout: entry.info.layout.to_owned(),
                skipped: Some(reason.to_string()),
                ..record::Verify::default()
            }),
        }
    }
    if kernels.is_empty() && skipped.is_empty() {
        let names: Vec<_> = KERNELS.iter().map(|entry| entry.info.name).collect();
        bail!("no kernel's name contains '{filter}'; there are: {}", names.join(", "));
    }
    Ok((kernels, skipped))
}

/// The distinct `(n, k)` of a model's linear layers.
pub fn layer_shapes(config: &ModelConfig) -> Vec<(usize, usize)> {
    let shapes: BTreeSet<_> = LinearName::ALL.iter().map(|&which| config.linear_shape(which)).collect();
    shapes.into_iter().collect()
}

/// Proves every kernel that runs here on `shapes`, and says why others do not run.
pub fn prove(filter: &str, shapes: &[(usize, usize)], batches: &[usize]) -> Result<Vec<record::Verify>> {
    let (kernels, skipped) = select(filter)?;
    let mut records: Vec<record::Verify> = kernels
        .iter()
        .map(|kernel| record::Verify {
            code: open::code(kernel.info().name),
            layout: kernel.info().layout.to_owned(),
            ok: true,
            ..record::Verify::default()
        })
        .collect();
    let bar = console::bar((shapes.len() * batches.len()) as u64, "verifying the kernels");
    for &(n, k) in shapes {
        for &m in batches {
            for (result, record) in verify::verify(&kernels, n, k, m).into_iter().zip(&mut records) {
                record.shapes.push([n, k, m]);
                match result {
                    Ok(cases) => record.cases += cases,
                    Err(mismatch) => {
                        record.ok = false;
                        record.first_mismatch.get_or_insert(mismatch.to_string());
                    }
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    records.extend(skipped);
    Ok(records)
}

/// Batches that `verify` tries: one token, and one more than a register tile.
pub const VERIFY_BATCHES: [usize; 2] = [1, 5];

fn verify_command(filter: &str, shapes: &str, output: Output) -> Result<ExitCode> {
    let config = open::manifest(shapes)?.config();
    let records = prove(filter, &layer_shapes(&config), &VERIFY_BATCHES)?;
    let all_ok = records.iter().all(|record| record.ok || record.skipped.is_some());
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&records)?);
    } else {
        for record in &records {
            let verdict = match (&record.skipped, &record.first_mismatch) {
                (Some(reason), _) => format!("skipped: {reason}"),
                (_, Some(mismatch)) => format!("WRONG: {mismatch}"),
                _ => format!("equal to the oracle in {} cases on {} shapes", record.cases, record.shapes.len()),
            };
            println!("{:32} {verdict}", record.code.kernel);
        }
    }
    Ok(if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bench(
    filter: &str,
    shapes: &str,
    batches: &[usize],
    n_threads: usize,
    repetitions: u32,
    output: Output,
    env: &Env,
) -> Result<ExitCode> {
    runner::refuse_debug_build(runner::DebugBuilds::Refuse)?;
    if batches.contains(&0) {
        bail!("a batch has at least one token");
    }
    let config = open::manifest(shapes)?.config();
    let pool = open::pool(n_threads)?;
    let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
    let host = Host::describe(&features);
    let context = RunContext::new("kernels-bench", &host);
    let proved = prove(filter, &layer_shapes(&config), &VERIFY_BATCHES)?;
    let probes = Probes::measure(&host, std::slice::from_ref(&pool), 2.0)?;
    let limits = probes.limits(n_threads, true);
    let (kernels, _) = select(filter)?;
    let mut records = Vec::new();
    for (n, k) in layer_shapes(&config) {
        for &m in batches {
            records.extend(bench_shape(&kernels, &proved, [n, k, m], &pool, repetitions, limits)?);
        }
    }
    if output == Output::Json {
        let records: Vec<_> = records.into_iter().map(|record| context.record(record)).collect();
        println!("{}", serde_json::to_string_pretty(&records)?);
        return Ok(ExitCode::SUCCESS);
    }
    probes.lines().iter().for_each(|line| println!("{line}"));
    println!("{}", bench_table(&records, console::tables(env)));
    Ok(ExitCode::SUCCESS)
}

/// Times one shape and batch on every kernel, weights cold: each run takes the next of so many copies that together they are
/// four times the last-level cache, as the layers of a model are.
fn bench_shape(
    kernels: &[&'static dyn TernaryKernel],
    proved: &[record::Verify],
    [n, k, m]: [usize; 3],
    pool: &ternbench_kernels::Pool,
    repetitions: u32,
    limits: record::Limits,
) -> Result<Vec<record::Kernel>> {
    let mut random = Random::new(7);
    let trits = (0..n * k).map(|_| random.below(3) as i8 - 1).collect();
    let w = TernaryMatrix::new(n, k, trits, 1.0)?;
    let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
    let quantized = QuantizedActivations::quantize(&x, m, k);
    struct State {
        copies: Vec<Linear>,
        next: usize,
        pack_ns: u64,
        prepare_ns: Vec<u64>,
        y: Vec<f32>,
        scratch: Scratch,
    }
    let mut states: Vec<State> = kernels
        .iter()
        .map(|kernel| {
            let start = Instant::now();
            let first = Linear::ternary(*kernel, &w);
            let pack_ns = start.elapsed().as_nanos() as u64;
            let n_copies = (4 * limits.cache_bytes as usize).div_ceil(first.weight_bytes()).clamp(2, 64);
            let mut copies = vec![first];
            copies.resize_with(n_copies, || Linear::ternary(*kernel, &w));
            State { copies, next: 0, pack_ns, prepare_ns: Vec::new(), y: vec![0.0; m * n], scratch: Scratch::default() }
        })
        .collect();
    let mut contenders: Vec<Contender<'_>> = states
        .iter_mut()
        .zip(kernels)
        .map(|(state, kernel)| {
            let (x, quantized) = (&x, &quantized);
            let mut prepared = ternbench_kernels::Prepared::default();
            Contender::new(kernel.info().name, move || {
                let start = Instant::now();
                kernel.prepare(black_box(quantized), &mut prepared);
                state.prepare_ns.push(start.elapsed().as_nanos() as u64);
                let linear = &state.copies[state.next % state.copies.len()];
                state.next += 1;
                let (y, scratch) = (&mut state.y, &mut state.scratch);
                Ok(pool.run(|team| {
                    let start = Instant::now();
                    driver::multiply(team, scratch, x, m, &mut [(linear, y)]);
                    start.elapsed().as_nanos() as u64
                }))
            })
        })
        .collect();
    let group = format!("{n}x{k} m{m}");
    let bar = console::spinner(&format!("timing {group}"));
    let plan = Plan { repetitions, warmup: 2, ..Plan::default() };
    let outcome = interleave(&mut contenders, &plan, &mut |_| ControlFlow::Continue(()))?;
    drop(contenders);
    bar.finish_and_clear();
    let results = outcome.series.into_iter().zip(states).zip(kernels);
    Ok(results
        .map(|((series, state), kernel)| {
            let name = kernel.info().name;
            let wrong = proved.iter().find(|v| v.code.kernel == name).and_then(|v| v.first_mismatch.clone());
            let samples = series.to_samples(m as u64);
            let sum: f64 = state.y.iter().map(|&y| f64::from(y)).sum();
            record::Kernel {
                code: open::code(name),
                n,
                k,
                m,
                n_threads: pool.n_threads(),
                cache: "cold".to_owned(),
                group: group.clone(),
                pack_ns: vec![state.pack_ns],
                prepare_ns: state.prepare_ns,
                compute_ns: samples.ns,
                samples_round: samples.rounds,
                packed_bytes: state.copies[0].weight_bytes() as u64,
                limits,
                output_checksum: format!("{:016x}", sum.to_bits()),
                refused: wrong.map(|wrong| format!("wrong: {wrong}")).or(series.failed),
            }
        })
        .collect())
}

/// Fastest first within a shape: time, bandwidth and arithmetic with their share of the limits.
fn bench_table(records: &[record::Kernel], output: table::Output) -> String {
    let median = |ns: &[u64]| stats::median(&ns.iter().map(|&ns| ns as f64).collect::<Vec<_>>()).unwrap_or(f64::NAN);
    let mut sorted: Vec<&record::Kernel> = records.iter().collect();
    sorted.sort_by(|a, b| a.group.cmp(&b.group).then(median(&a.compute_ns).total_cmp(&median(&b.compute_ns))));
    let rows: Vec<Vec<String>> = sorted
        .iter()
        .map(|r| {
            let ns = median(&r.compute_ns);
            let (bytes, macs) = (r.packed_bytes as f64 / ns, (r.n * r.k * r.m) as f64 / ns);
            let share = |per_ns: f64, limit: f64| format!("{:.0} %", per_ns * 1e11 / limit);
            vec![
                r.group.clone(),
                r.code.kernel.clone(),
                format!("{:.3}", ns / 1e6),
                format!("{bytes:.2}"),
                share(bytes, r.limits.bandwidth_bytes_per_s),
                format!("{macs:.1}"),
                share(macs, r.limits.macs_per_s),
                format!("{:.3}", median(&r.prepare_ns) / 1e6),
                format!("{:.1}", median(&r.pack_ns) / 1e6),
                r.refused.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let names = ["shape", "kernel", "ms", "GB/s", "of limit", "GMAC/s", "of limit", "prepare ms", "pack ms", "refused"];
    let align = |name| (name, if matches!(name, "shape" | "kernel" | "refused") { Align::Left } else { Align::Right });
    table::render(&names.map(align), &rows, output)
}
