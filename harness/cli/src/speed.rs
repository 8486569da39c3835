//! `ternbench speed`: prefill and decode tokens per second of models x kernels x threads, interleaved, beside other programs.

use std::io::Write;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use ternbench_kernels::dense::{self, Activations};
use ternbench_kernels::isa::Feature;
use ternbench_kernels::{Dispatch, Pool, TernaryKernel, registry};
use ternbench_measure::energy::{Counters, SYS};
use ternbench_measure::interrupt::{self, Interrupted};
use ternbench_measure::record::{self, Body};
use ternbench_measure::{Env, Host, Plan, Record, RecordWriter, RunContext, clock, runner};
use ternbench_model::weights::{LinearName, LinearWeights, WeightSource};
use ternbench_report::{frame, sections};

use crate::breakdown;
use crate::console;
use crate::footprint;
use crate::kernels;
use crate::open::{self, ActivationsArg, HeadArg, KvArg, LayoutArg, Loaded};
use crate::opponent::Opponent;
use crate::output::{self, Output};
use crate::probes::Probes;
use crate::race::{self, Entrant, Rules};
use crate::suite::{self, Suite};
use crate::workload::{self, Workload};

/// Pairs of `--aa`: enough for the interval's stated coverage.
const AA_PAIRS: u32 = 30;
/// Rounds that `--precision` gives up after.
const MAX_REPETITIONS: u32 = 200;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench speed -m synthetic:bitnet-2b4t -t 1,2
  ternbench speed -m model.gguf -k scalar-i2s-unpack,auto -p 128,512 -n 128 -r 5 -o jsonl
  ternbench speed -m synthetic:bitnet-2b4t -m synthetic:llama-3.2-1b -w tg128,tg128@d512 --precision 0.01
  ternbench speed -m model.gguf --opponent llama-bench=llama.cpp/build/bin/llama-bench:model.gguf
  ternbench speed --suite quick --dry-run

Exit code: 0 every result counts, 1 one was refused or nothing could be measured, 2 wrong usage, 130 Ctrl-C.")]
pub struct Args {
    /// A GGUF file, a folder, or synthetic:NAME; give it again to compare models
    #[arg(short, long, required_unless_present_any = ["suite", "list"])]
    model: Vec<String>,
    /// Kernels of the ternary layers, comma-separated; `all` means every one that runs here [env: TERNBENCH_KERNEL]
    #[arg(short, long, value_delimiter = ',')]
    kernel: Vec<String>,
    /// What dense weights are multiplied by, comma-separated; ternary layers take int8 anyway, and a head of halves floats
    /// [default: rounded, and f32 beside it where that means AMX tiles, which are slower for one token]
    #[arg(long, value_enum, value_delimiter = ',')]
    activations: Vec<ActivationsArg>,
    /// What the KV cache keeps keys and values as
    #[arg(long, value_enum, default_value = "f16")]
    kv: KvArg,
    /// Decode a second time with up to so many drafted tokens a pass, which must give the same tokens
    #[arg(long, value_name = "N")]
    speculate: Option<NonZeroU8>,
    /// Numbers of threads, comma-separated; all cores when not given [env: TERNBENCH_THREADS]
    #[arg(short, long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Prefill lengths, 0 for none [default: 128,512]
    #[arg(short = 'p', long, value_delimiter = ',')]
    n_prompt: Vec<usize>,
    /// Decode lengths, 0 for none [default: 128]
    #[arg(short = 'n', long, value_delimiter = ',')]
    n_gen: Vec<usize>,
    /// Context depths to measure at
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Workloads by name, instead of -p, -n and -d: pp512, tg128, tg128@d512, tg32x8 (32 tokens of each of 8 sequences at once)
    #[arg(short, long, value_delimiter = ',', conflicts_with_all = ["n_prompt", "n_gen", "depth"])]
    workload: Vec<Workload>,
    /// Repetitions [default: 5]
    #[arg(short, long)]
    repetitions: Option<u32>,
    /// Go on after the repetitions until every 95 % interval is within this share of its value: 0.01 is 1 %
    #[arg(long, value_parser = share)]
    precision: Option<f64>,
    /// Seconds that each workload may take; at least three repetitions are done
    #[arg(long, value_name = "SECONDS", value_parser = open::seconds)]
    budget: Option<Duration>,
    /// Seed of the order of runs within each repetition
    #[arg(long, default_value_t = ternbench_measure::stats::SEED)]
    seed: u64,
    /// A/A: at least 30 repetitions, for the noise floor above all
    #[arg(long)]
    aa: bool,
    /// Bind each thread to a core of its own
    #[arg(long)]
    pin: bool,
    /// Another program in the same rounds, llama-bench=PATH:MODEL.gguf; give it again for more
    #[arg(long)]
    opponent: Vec<Opponent>,
    /// Take what is not given here from a suite: a name of datasets/suites, or a .toml file
    #[arg(long)]
    suite: Option<String>,
    /// List the suites and stop
    #[arg(long)]
    list: bool,
    /// Say what would be measured and stop
    #[arg(long)]
    dry_run: bool,
    /// Where the time of a token goes, by part
    #[arg(long)]
    breakdown: bool,
    #[command(flatten)]
    layout: LayoutArg,
    #[command(flatten)]
    head: HeadArg,
    /// Output format; json and jsonl are the records with raw samples, jsonl one by one, as soon as they are there
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Append all records to this file as well: limits, loading and memory too
    #[arg(long)]
    records: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a share between 0 and 1, such as 0.01".into()),
    }
}

pub fn run(mut args: Args, env: &Env) -> Result<ExitCode> {
    if args.list {
        return list();
    }
    if let Some(name) = &args.suite {
        let suite = suite::find(name)?;
        args.fill_from(suite)?;
    }
    output::check(args.output)?;
    let workloads = args.workloads()?;
    let threads = if args.threads.is_empty() { vec![open::threads(None, env)] } else { args.threads.clone() };
    threads.iter().try_for_each(|&n| open::check_threads(n))?;
    let plan = args.plan()?;
    let kernels = args.kernels(env)?;
    let sources = args.model.iter().map(|model| open::source(model, args.layout.into())).collect::<Result<Vec<_>>>()?;
    let activations: Vec<_> = args.activations.iter().map(|&arg| Activations::from(arg)).collect();
    let ways = Ways { kernels: &kernels, activations: &activations, head: args.head, kv: args.kv };
    if args.dry_run {
        return dry_run(&args, &sources, &ways, &threads, &workloads, &plan);
    }
    runner::refuse_debug_build(runner::DebugBuilds::Refuse)?;
    interrupt::listen();
    let pools = threads.iter().map(|&n| open::pool(n)).collect::<Result<Vec<_>>>()?;
    if args.pin {
        pools.iter().try_for_each(open::pin)?;
    }
    let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
    let host = Host::describe(&features);
    let context = RunContext::new(format!("speed-{}", clock::now_rfc3339()), &host);
    let mut book = Book {
        context,
        writer: args.records.as_deref().map(RecordWriter::open).transpose()?,
        stdout: if args.output == Output::Jsonl { Some(RecordWriter::stdout()?) } else { None },
        records: Vec::new(),
    };
    let proofs = prove(&sources, &kernels)?;
    for proof in &proofs {
        book.keep(proof.clone())?;
    }
    let loaded = load_all(&sources, &ways, &workloads, &pools[pools.len() - 1], &mut book)?;
    let probes = Probes::measure(&host, &pools, 2.0)?;
    for probe in &probes.records {
        book.keep(probe.clone())?;
    }
    let energy = Counters::open(Path::new(SYS));
    let rules = Rules { plan: &plan, probes: &probes, proofs: &proofs, energy: &energy, pinned: args.pin };
    let theirs = args.opponent.iter().flat_map(|one| threads.iter().map(move |&n| Entrant::Opponent(one, n)));
    let theirs: Vec<Entrant<'_>> = theirs.collect();
    for &workload in &workloads {
        let ways = args.drafts(workload);
        let on = |one, pool| ways.iter().map(move |&draft| Entrant::Model(one, pool, draft));
        let ours = loaded.iter().flat_map(|one| pools.iter().flat_map(move |pool| on(one, pool)));
        let entrants: Vec<Entrant<'_>> = ours.chain(theirs.iter().copied()).collect();
        let results = race::run(&entrants, workload, &workload.to_string(), &rules)?;
        results.records.into_iter().try_for_each(|body| book.keep(body))?;
        if results.interrupted {
            bail!(Interrupted);
        }
    }
    show(&book.records, &probes, args.output, env)?;
    if args.breakdown {
        show_breakdowns(&loaded, &pools, &workloads, &probes, env, args.output)?;
    }
    let refused: Vec<&str> = speeds(&book.records).filter_map(|speed| speed.refused.as_deref()).collect();
    if let Some(first) = refused.first() {
        bail!("{} of {} results do not count: {first}", refused.len(), speeds(&book.records).count());
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Takes from a suite what the command line left out.
    fn fill_from(&mut self, suite: Suite) -> Result<()> {
        let fill = |mine: &mut Vec<String>, theirs: Vec<String>| {
            if mine.is_empty() {
                *mine = theirs;
            }
        };
        fill(&mut self.model, suite.models);
        fill(&mut self.kernel, suite.kernels);
        if self.threads.is_empty() {
            self.threads = suite.threads;
        }
        if self.workload.is_empty() && self.n_prompt.is_empty() && self.n_gen.is_empty() {
            self.workload = suite.workloads.iter().map(|name| name.parse()).collect::<Result<_>>()?;
        }
        self.repetitions = self.repetitions.or(suite.repetitions);
        self.precision = self.precision.or(suite.precision);
        Ok(())
    }

    fn workloads(&self) -> Result<Vec<Workload>> {
        if !self.workload.is_empty() {
            if let Some(workload) = self.workload.iter().find(|w| w.n_parallel > 1 && !self.opponent.is_empty()) {
                bail!("{workload}: llama-bench decodes one sequence at a time, so --opponent has no such workload");
            }
            return Ok(self.workload.clone());
        }
        let or = |given: &[usize], default: &[usize]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
        workload::workloads(&or(&self.n_prompt, &[128, 512]), &or(&self.n_gen, &[128]), &self.depth)
    }

    /// How many tokens to draft a pass in the ways to run `workload`.
    fn drafts(&self, workload: Workload) -> Vec<usize> {
        let speculates = workload.n_gen > 0 && workload.n_parallel == 1;
        let speculating = self.speculate.filter(|_| speculates).map(|n| n.get().into());
        let mut ways: Vec<usize> = [workload.draft].into_iter().chain(speculating).collect();
        ways.dedup();
        ways
    }

    fn plan(&self) -> Result<Plan> {
        let asked = self.repetitions.unwrap_or(5).max(if self.aa { AA_PAIRS } else { 1 });
        Ok(Plan {
            repetitions: if self.precision.is_some() { asked.max(MAX_REPETITIONS) } else { asked },
            min_repetitions: if self.precision.is_some() { asked } else { asked.min(3) },
            precision: self.precision,
            budget: self.budget,
            seed: self.seed,
            twin: true,
            ..Plan::default()
        })
    }

    fn kernels(&self, env: &Env) -> Result<Vec<&'static dyn TernaryKernel>> {
        match self.kernel.as_slice() {
            [] => Ok(vec![open::kernel(None, env)?]),
            [all] if all == "all" => Ok(registry::KERNELS.iter().filter_map(|entry| entry.kernel().ok()).collect()),
            names => names.iter().map(|name| open::kernel(Some(name), env)).collect(),
        }
    }
}

/// Keeps every record, in memory and where it was asked for.
struct Book {
    context: RunContext,
    writer: Option<RecordWriter>,
    stdout: Option<RecordWriter>,
    records: Vec<Record>,
}

impl Book {
    fn keep(&mut self, body: impl Into<Body>) -> Result<()> {
        let record = self.context.record(body);
        if let Some(writer) = &mut self.writer {
            writer.append(&record)?;
        }
        if let (Some(stdout), Body::Speed(_)) = (&mut self.stdout, &record.body) {
            stdout.append(&record)?;
        }
        self.records.push(record);
        Ok(())
    }
}

fn speeds(records: &[Record]) -> impl Iterator<Item = &record::Speed> {
    records.iter().filter_map(|record| match &record.body {
        Body::Speed(speed) => Some(speed),
        _ => None,
    })
}

/// Whether the kernels asked for run a model's linear layers.
fn is_ternary(source: &dyn WeightSource) -> Result<bool> {
    Ok(matches!(source.linear(0, LinearName::Q)?, LinearWeights::Ternary(_)))
}

/// Every kernel that will be timed, on the shapes that it will be timed on, against the oracle.
fn prove(sources: &[Box<dyn WeightSource>], kernels: &[&dyn TernaryKernel]) -> Result<Vec<record::Verify>> {
    let mut shapes = Vec::new();
    for source in sources {
        if is_ternary(&**source)? {
            shapes.extend(kernels::layer_shapes(source.config()));
        }
    }
    shapes.sort_unstable();
    shapes.dedup();
    let mut proofs: Vec<record::Verify> = Vec::new();
    for kernel in kernels {
        let name = kernel.info().name;
        if !shapes.is_empty() && !proofs.iter().any(|proof| proof.code.kernel == name) {
            interrupt::check()?;
            let of_name = kernels::prove(name, |_| true, &shapes, &kernels::VERIFY_BATCHES)?;
            proofs.extend(of_name.into_iter().filter(|proof| proof.code.kernel == name));
        }
    }
    Ok(proofs)
}

/// Loads every model for every kernel; dense models once for each way to multiply them. The memory of a model is measured for its first
/// kernel: what the others share with it would be missing from theirs.
fn load_all(
    sources: &[Box<dyn WeightSource>],
    ways: &Ways<'_>,
    workloads: &[Workload],
    pool: &Pool,
    book: &mut Book,
) -> Result<Vec<Loaded>> {
    let n_prompt = workloads.iter().map(|workload| workload.n_prompt).filter(|&n| n > 0).min().unwrap_or(1);
    let mut loaded: Vec<Loaded> = Vec::new();
    for source in sources {
        let first = loaded.len();
        for (i, kernels) in ways.of(&**source)?.into_iter().enumerate() {
            interrupt::check()?;
            let one = Loaded::new(&**source, kernels, pool)?;
            let one = one.with_kv(ways.kv).with_head(ways.head, pool, loaded.get(first));
            if i == 0 {
                let (load, memory) = footprint::measure(&**source, &one, pool, n_prompt)?;
                book.keep(load)?;
                book.keep(memory)?;
            } else {
                book.keep(one.load.clone())?;
            }
            loaded.push(one);
        }
    }
    Ok(loaded)
}

/// The ways to run a model that were asked for.
struct Ways<'a> {
    kernels: &'a [&'static dyn TernaryKernel],
    activations: &'a [Activations],
    head: HeadArg,
    kv: KvArg,
}

impl Ways<'_> {
    /// Those that differ for this model: every ternary kernel, or every kernel of its dense type.
    fn of(&self, source: &dyn WeightSource) -> Result<Vec<Dispatch>> {
        let way = |kernel, activations| Dispatch { activations, ..Dispatch::from(kernel) };
        Ok(match source.linear(0, LinearName::Q)? {
            LinearWeights::Ternary(_) => {
                self.kernels.iter().map(|&kernel| way(kernel, Activations::default())).collect()
            }
            LinearWeights::Dense(matrix) => {
                let name = |activations| dense::kernel_for(matrix.ty(), activations).info().name;
                let rounding = dense::kernel_for(matrix.ty(), Activations::Rounded).info();
                let mut different = match self.activations {
                    [] if rounding.features.contains(&Feature::AmxTile) => vec![Activations::F32, Activations::Rounded],
                    [] => vec![Activations::Rounded],
                    asked => asked.to_vec(),
                };
                different.dedup_by_key(|&mut activations| name(activations));
                different.into_iter().map(|activations| way(self.kernels[0], activations)).collect()
            }
        })
    }

    /// The kernels of those.
    fn names(&self, source: &dyn WeightSource) -> Result<Vec<&'static str>> {
        let linear = source.linear(0, LinearName::Q)?;
        let name = |(i, way): (usize, Dispatch)| match &linear {
            LinearWeights::Ternary(_) => self.kernels[i].info().name,
            LinearWeights::Dense(matrix) => dense::kernel_for(matrix.ty(), way.activations).info().name,
        };
        Ok(self.of(source)?.into_iter().enumerate().map(name).collect())
    }
}

/// Measures models on one workload, for other commands. A group of several has an A/A run.
///
/// # Errors
/// When nothing can be run, and after Ctrl-C.
pub fn measure(
    runs: &[(&Loaded, &Pool, Workload)],
    group: &str,
    plan: &Plan,
    probes: &Probes,
) -> Result<Vec<record::Body>> {
    let Some(&(_, _, workload)) = runs.first() else { bail!("nothing to measure") };
    let entrants: Vec<Entrant<'_>> =
        runs.iter().map(|&(loaded, pool, workload)| Entrant::Model(loaded, pool, workload.draft)).collect();
    // One alone is compared with nothing: no noise floor is needed.
    let plan = Plan { twin: runs.len() > 1, ..plan.clone() };
    let energy = Counters::open(Path::new(SYS));
    let rules = Rules { plan: &plan, probes, proofs: &[], energy: &energy, pinned: false };
    let results = race::run(&entrants, workload, group, &rules)?;
    if results.interrupted {
        bail!(Interrupted);
    }
    Ok(results.records)
}

fn list() -> Result<ExitCode> {
    let mut out = console::Stdout;
    for name in suite::names() {
        let suite = suite::find(&name)?;
        writeln!(out, "{name:12} {}\n{:12} {}", suite.title, "", suite.models.join(", "))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what would be measured, group by group, without loading anything.
fn dry_run(
    args: &Args,
    sources: &[Box<dyn WeightSource>],
    ways: &Ways<'_>,
    threads: &[usize],
    workloads: &[Workload],
    plan: &Plan,
) -> Result<ExitCode> {
    let mut out = console::Stdout;
    let up_to = if plan.precision.is_some() { "up to " } else { "" };
    for workload in workloads {
        writeln!(out, "{workload}: {up_to}{} rounds after {} of warm-up", plan.repetitions, plan.warmup)?;
        for source in sources {
            for name in ways.names(&**source)? {
                for draft in args.drafts(*workload) {
                    let drafts = if draft > 0 { format!(", up to {draft} drafted a pass") } else { String::new() };
                    threads.iter().try_for_each(|n| writeln!(out, "  {}, {name}, {n}t{drafts}", source.name()))?;
                }
            }
        }
        for opponent in &args.opponent {
            threads.iter().try_for_each(|n| writeln!(out, "  {opponent}, {n}t"))?;
        }
        writeln!(out, "  the fastest of them a second time, for the noise floor")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what was measured, in the format asked for. JSON lines were printed as they came.
fn show(records: &[Record], probes: &Probes, output: Output, env: &Env) -> Result<()> {
    let mut out = console::Stdout;
    match output {
        Output::Jsonl => {}
        Output::Json => {
            let speeds: Vec<&Record> = records.iter().filter(|r| matches!(r.body, Body::Speed(_))).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&speeds)?)?;
        }
        Output::Csv | Output::Parquet => {
            output::print(&sections::speed(&frame::speed_rows(records)?), output, &[], env)?;
        }
        Output::Text | Output::Md => {
            let table = sections::speed(&frame::speed_rows(records)?);
            let text = match output {
                Output::Md => table.markdown(),
                _ => table.text(console::tables(env)),
            };
            let gap = if output == Output::Md { "\n" } else { "" };
            for line in probes.lines() {
                writeln!(out, "{line}{gap}")?;
            }
            writeln!(out, "{}", text.trim_end())?;
            for line in remarks(records) {
                writeln!(out, "{gap}{line}")?;
            }
        }
    }
    Ok(())
}

/// The noise floors, the energy, and the results that do not count.
fn remarks(records: &[Record]) -> Vec<String> {
    let noise = records.iter().filter_map(|record| match &record.body {
        Body::Noise(noise) => noise.ratio().zip(noise.floor()).map(|(ratio, floor)| {
            format!(
                "noise floor, {}: {:.1} % (A/A {:.4} to {:.4} over {} pairs of {}, {} threads)",
                noise.group,
                100.0 * floor,
                ratio.low,
                ratio.high,
                ratio.n,
                noise.code.kernel,
                noise.n_threads
            )
        }),
        _ => None,
    });
    let mut energy: Vec<String> = speeds(records)
        .filter(|speed| speed.opponent.is_none())
        .filter_map(|speed| match ternbench_measure::stats::median(&speed.samples_joules) {
            Some(joules) => {
                let per_token = joules / speed.samples.tokens.max(1) as f64;
                Some(format!("energy, {} {}: {per_token:.3} J/token", speed.model.model, speed.workload))
            }
            None => speed.energy.as_ref().map(|reason| format!("energy: {reason}")),
        })
        .collect();
    energy.dedup();
    let drafts = speeds(records).filter_map(|speed| {
        let drafts = speed.drafts.filter(|drafts| drafts.drafted > 0)?;
        let tokens = drafts.draft_passes + drafts.drafts_accepted;
        Some(format!(
            "speculation, {} {}, {}t: {:.0} % of {} drafted tokens accepted, {:.2} tokens a pass",
            speed.model.model,
            speed.workload,
            speed.n_threads,
            100.0 * drafts.drafts_accepted as f64 / drafts.drafted as f64,
            drafts.drafted,
            tokens as f64 / drafts.draft_passes.max(1) as f64
        ))
    });
    let refused = speeds(records).filter_map(|speed| {
        let reason = speed.refused.as_ref()?;
        Some(format!(
            "refused: {}, {}, {}t, {}: {reason}",
            speed.model.model, speed.code.kernel, speed.n_threads, speed.workload
        ))
    });
    noise.chain(energy).chain(drafts).chain(refused).collect()
}

/// Where the time went, on stderr where stdout is for programs.
fn show_breakdowns(
    loaded: &[Loaded],
    pools: &[Pool],
    workloads: &[Workload],
    probes: &Probes,
    env: &Env,
    output: Output,
) -> Result<()> {
    for l in loaded {
        for pool in pools {
            for &workload in workloads {
                let table = breakdown::measure(l, pool, workload, probes)?;
                let title = format!("{} {workload}, {}, {} threads", l.info.model, l.code().kernel, pool.n_threads());
                match output {
                    Output::Text => println!("\n{title}\n{}", table.text(console::tables(env))),
                    Output::Md => println!("\n{title}\n\n{}", table.markdown().trim_end()),
                    _ => eprintln!("\n{title}\n{}", table.text(console::tables(env))),
                }
            }
        }
    }
    Ok(())
}
