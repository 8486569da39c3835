//! `ternbench speed`: prefill and decode tokens per second of models x kernels x threads, interleaved.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use indicatif::ProgressBar;
use ternbench_kernels::Pool;
use ternbench_measure::runner::{self, Event};
use ternbench_measure::{Contender, Env, Host, Plan, RecordWriter, RunContext, interleave, record};
use ternbench_model::Engine;
use ternbench_model::breakdown::Part;
use ternbench_report::{frame, table};

use crate::console;
use crate::open::{self, LayoutArg, Loaded};
use crate::probes::Probes;
use crate::workload::{self, Bench, Workload};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench speed -m synthetic:bitnet-2b4t -t 1,2
  ternbench speed -m model.gguf -k scalar-i2s-unpack,auto -p 128,512 -n 128 -r 5 -o jsonl
  ternbench speed -m synthetic:bitnet-2b4t -m synthetic:llama-3.2-1b -p 0 -n 128 --breakdown")]
pub struct Args {
    /// A GGUF file, a folder, or synthetic:NAME; give it again to compare models
    #[arg(short, long, required = true)]
    model: Vec<String>,
    /// Kernels of the ternary layers, comma-separated [env: TERNBENCH_KERNEL]
    #[arg(short, long, value_delimiter = ',')]
    kernel: Vec<String>,
    /// Numbers of threads, comma-separated; all cores when not given [env: TERNBENCH_THREADS]
    #[arg(short, long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Prefill lengths, 0 for none
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "128,512")]
    n_prompt: Vec<usize>,
    /// Decode lengths, 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Context depths to measure at
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Repetitions
    #[arg(short, long, default_value_t = 5)]
    repetitions: u32,
    /// Where the time of a token goes, by part
    #[arg(long)]
    breakdown: bool,
    #[command(flatten)]
    layout: LayoutArg,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Append the records to this file as well
    #[arg(long)]
    records: Option<PathBuf>,
}

/// `-o`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A table
    #[default]
    Text,
    /// One record per line
    Jsonl,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    runner::refuse_debug_build(runner::DebugBuilds::Refuse)?;
    let workloads = workload::workloads(&args.n_prompt, &args.n_gen, &args.depth)?;
    let threads = if args.threads.is_empty() { vec![open::threads(None, env)] } else { args.threads.clone() };
    let pools = threads.iter().map(|&n| open::pool(n)).collect::<Result<Vec<_>>>()?;
    let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
    let host = Host::describe(&features);
    let context = RunContext::new("speed", &host);
    let loaded = load_all(&args, env)?;
    let probes = Probes::measure(&host, &pools, 2.0)?;
    let mut writer = args.records.as_deref().map(RecordWriter::open).transpose()?;
    let mut keep = |body: record::Body| -> Result<record::Record> {
        let record = context.record(body);
        if let Some(writer) = &mut writer {
            writer.append(&record)?;
        }
        Ok(record)
    };
    let mut records = Vec::new();
    for probe in &probes.records {
        records.push(keep(probe.clone().into())?);
    }
    let plan = Plan { repetitions: args.repetitions, ..Plan::default() };
    for &workload in &workloads {
        let runs: Vec<_> = loaded.iter().flat_map(|l| pools.iter().map(move |pool| (l, pool, workload))).collect();
        for speed in measure(&runs, &workload.to_string(), &plan, &probes)? {
            let record = keep(speed.into())?;
            if args.output == Output::Jsonl {
                writeln!(std::io::stdout(), "{}", serde_json::to_string(&record)?)?;
            }
            records.push(record);
        }
    }
    if args.output == Output::Text {
        probes.lines().iter().for_each(|line| println!("{line}"));
        println!("{}", table::speeds(&frame::speed_rows(&records)?, console::tables(env)));
    }
    if args.breakdown {
        for l in &loaded {
            for pool in &pools {
                breakdown(l, pool, &workloads)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn load_all(args: &Args, env: &Env) -> Result<Vec<Loaded>> {
    let names =
        if args.kernel.is_empty() { vec![None] } else { args.kernel.iter().map(|k| Some(k.as_str())).collect() };
    let kernels = names.into_iter().map(|name| open::kernel(name, env)).collect::<Result<Vec<_>>>()?;
    let pool = open::pool(open::threads(None, env))?;
    let mut loaded = Vec::new();
    for model in &args.model {
        let source = open::source(model, args.layout.into())?;
        for &kernel in &kernels {
            let one = Loaded::new(&*source, kernel, &pool)?;
            let is_dense = one.info.weights != "ternary";
            loaded.push(one);
            if is_dense {
                break; // The kernels asked for are those of ternary layers.
            }
        }
    }
    Ok(loaded)
}

/// Measures every run of a group, interleaved. What fails becomes a refused record with the reason.
pub fn measure(
    runs: &[(&Loaded, &Pool, Workload)],
    group: &str,
    plan: &Plan,
    probes: &Probes,
) -> Result<Vec<record::Speed>> {
    let mut benches = runs
        .iter()
        .map(|&(loaded, pool, workload)| Bench::new(Engine::new(&loaded.model, pool), workload))
        .collect::<Result<Vec<_>>>()?;
    let bar = console::bar(u64::from(plan.warmup + plan.repetitions) * runs.len() as u64, group);
    let mut contenders: Vec<Contender<'_>> = benches
        .iter_mut()
        .zip(runs)
        .map(|(bench, (loaded, pool, workload))| {
            let name =
                format!("{} {workload}, {}, {}t", loaded.info.model, loaded.model.kernel_name(), pool.n_threads());
            Contender::new(name, || bench.run().map_err(Into::into))
        })
        .collect();
    let outcome = interleave(&mut contenders, plan, &mut |event| {
        show(&bar, event);
        ControlFlow::Continue(())
    })?;
    drop(contenders);
    bar.finish_and_clear();
    let results = outcome.series.into_iter().zip(&benches).zip(runs);
    Ok(results
        .map(|((series, bench), (loaded, pool, workload))| {
            let limits = probes.limits(pool.n_threads(), loaded.info.weights == "ternary");
            let samples = series.to_samples(workload.tokens() as u64);
            workload::speed_record(loaded, bench, samples, limits, group, series.failed)
        })
        .collect())
}

fn show(bar: &ProgressBar, event: Event<'_>) {
    match event {
        Event::WarmUp { name } => {
            bar.inc(1);
            bar.set_message(format!("{name} (warm-up)"));
        }
        Event::Start { name, .. } => bar.set_message(name.to_owned()),
        Event::Sample { .. } => bar.inc(1),
        Event::Failed { name, reason } => bar.println(format!("{name}: {reason}")),
    }
}

/// Runs every workload once more and prints where the time went.
fn breakdown(loaded: &Loaded, pool: &Pool, workloads: &[Workload]) -> Result<()> {
    for &workload in workloads {
        let mut bench = Bench::new(Engine::new(&loaded.model, pool), workload)?;
        bench.run()?;
        bench.engine().take_breakdown();
        let total = bench.run()? as f64;
        let times = bench.engine().take_breakdown();
        let per_token = |ns: f64| ns / 1e6 / workload.tokens() as f64;
        let mut line = format!("{} {workload}, {} threads, ms/token:", loaded.info.model, pool.n_threads());
        let mut sum = 0.0;
        for part in Part::ALL {
            let ns = times.time(part).as_nanos() as f64;
            sum += ns;
            line += &format!(" {part:?} {:.3} ({:.0} %),", per_token(ns), 100.0 * ns / total);
        }
        println!(
            "{line} rest {:.3} ({:.1} %), total {:.3}",
            per_token(total - sum),
            100.0 * (total - sum) / total,
            per_token(total)
        );
    }
    Ok(())
}
