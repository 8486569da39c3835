//! `ternbench claims`, the main job: from weights to a verified claims table.
//!
//! In this order, so that nothing is timed before it is proved: limits, kernels against the oracle, greedy tokens of every kernel
//! against the oracle kernel's, then speed and memory of the ternary model beside each baseline, then the verdicts. Every record
//! is on disk as soon as it is made.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ternbench_eval::prompt::PromptSet;
use ternbench_eval::{LocalModel, Options, Task};
use ternbench_kernels::{Pool, registry};
use ternbench_measure::{Env, Host, Plan, RecordWriter, RunContext, RunDir, clock, interrupt, record, runner};
use ternbench_model::weights::WeightSource;
use ternbench_model::{Engine, Tokenizer};
use ternbench_report::{Document, Ledger, Run, frame, sections, table};

use crate::console;
use crate::eval;
use crate::footprint;
use crate::kernels;
use crate::open::{self, HeadArg, KvArg, LayoutArg, Loaded};
use crate::pairing;
use crate::probes::Probes;
use crate::speed;
use crate::twins;
use crate::workload::{self, Workload};

/// The models of the report that BitNet 2B4T is compared with, smallest first, and its own shape in half precision.
const BASELINES: [&str; 6] = [
    "synthetic:llama-3.2-1b",
    "synthetic:gemma-3-1b",
    "synthetic:qwen2.5-1.5b",
    "synthetic:smollm2-1.7b",
    "synthetic:minicpm-2b",
    "synthetic:bitnet-2b4t@f16",
];
/// Those of a quick run.
const QUICK_BASELINES: [&str; 2] = ["synthetic:llama-3.2-1b", "synthetic:gemma-3-1b"];
/// Tasks of models with weights of their own.
const SCORED: [&str; 2] = ["piqa", "gsm8k"];
/// The model whose claims are judged.
const MODEL: &str = "synthetic:bitnet-2b4t";
/// The same layers, four of them: small enough to compare slow kernels on.
const SLICE: &str = "synthetic:bitnet-2b4t-4layer";

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench claims                  no weights needed: makes models of the published shapes
  ternbench claims --quick          the same in two minutes
  ternbench claims -r 15            narrower intervals, in half an hour
  ternbench claims --model ggml-model-i2_s.gguf --baseline Llama-3.2-1B-Instruct-f16.gguf --data datasets/cache")]
pub struct Args {
    /// Fewer baselines, tokens and repetitions: two minutes instead of ten
    #[arg(long)]
    quick: bool,
    /// The ternary model: a GGUF file, a folder or synthetic:NAME [default: synthetic:bitnet-2b4t]
    #[arg(short, long)]
    model: Option<String>,
    /// A baseline to compare with; give it again for more [default: F16 models of the five published shapes, and 2B4T's own]
    #[arg(short, long)]
    baseline: Vec<String>,
    /// Kernel of the ternary layers [env: TERNBENCH_KERNEL]
    #[arg(short, long)]
    kernel: Option<String>,
    /// Threads; one and all cores are measured when not given [env: TERNBENCH_THREADS]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Rounds of every comparison, with no budget of time; narrows intervals that straddle a claim
    #[arg(short, long)]
    repetitions: Option<u32>,
    /// Folder with GSM8K and PIQA, for the accuracy rows of real models [env: TERNBENCH_DATA]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Score only the first so many items of each task
    #[arg(long)]
    limit: Option<NonZeroUsize>,
    /// End with exit code 3 if a judged claim was not reproduced
    #[arg(long)]
    judge: bool,
    #[command(flatten)]
    layout: LayoutArg,
    #[command(flatten)]
    head: HeadArg,
    /// What the KV cache of all models keeps keys and values as
    #[arg(long, value_parser = KvArg::of_claims(), default_value = "f16")]
    kv: KvArg,
    /// Folder that the run's folder is made in [default: results/runs] [env: TERNBENCH_RESULTS]
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    runner::refuse_debug_build(runner::DebugBuilds::Refuse)?;
    interrupt::listen();
    let start = Instant::now();
    let mut referee = Referee::start(args, env)?;
    referee.measure_limits()?;
    referee.prove_kernels()?;
    referee.compare_kernels()?;
    referee.compare_with_baselines()?;
    referee.demonstrate_twins()?;
    referee.finish(start)
}

/// 0, or, where the ledger is to be judged and a judged claim was not reproduced, 3. Undecided, not comparable and not measured
/// claims were not judged.
pub fn exit_code(ledger: &Ledger, judge: bool) -> ExitCode {
    if judge && !ledger.all_judged_hold() { ExitCode::from(3) } else { ExitCode::SUCCESS }
}

/// The state of a run.
struct Referee<'e> {
    args: Args,
    env: &'e Env,
    /// One thread, and all asked for; the last one is the largest.
    pools: Vec<Pool>,
    run: RunDir,
    context: RunContext,
    host: Host,
    writer: RecordWriter,
    records: Vec<record::Record>,
    probes: Option<Probes>,
    model: String,
    baselines: Vec<String>,
}

impl<'e> Referee<'e> {
    fn start(args: Args, env: &'e Env) -> Result<Self> {
        let n_threads = open::threads(args.threads, env);
        let counts = if n_threads == 1 { vec![1] } else { vec![1, n_threads] };
        let pools = counts.into_iter().map(open::pool).collect::<Result<Vec<_>>>()?;
        let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
        let host = Host::describe(&features);
        let root = args.out.clone().or(env.results.clone()).unwrap_or_else(|| Path::new("results").join("runs"));
        let slug = if args.quick { "claims-quick" } else { "claims" };
        let model = args.model.clone().unwrap_or_else(|| MODEL.to_owned());
        let defaults: &[&str] = if args.quick { &QUICK_BASELINES } else { &BASELINES };
        let baselines = match args.baseline.is_empty() {
            true => defaults.iter().map(|&name| name.to_owned()).collect(),
            false => args.baseline.clone(),
        };
        // What is wrong should show now, not in five minutes.
        for name in baselines.iter().chain([&model]) {
            open::source(name, args.layout.into())?;
        }
        let is_scored = baselines.iter().chain([&model]).any(|name| !name.starts_with(open::SYNTHETIC));
        if let (Some(data), true) = (args.data.as_ref().or(env.data.as_ref()), is_scored) {
            for task in SCORED {
                PromptSet::load(&Task::find(task)?, data, args.limit.map(NonZeroUsize::get))?.check()?;
            }
        }
        open::kernel(args.kernel.as_deref(), env)?;
        let run = RunDir::create(&root, &clock::today(), slug, &host)?;
        let context = RunContext::new(run.run_id(), &host);
        let writer = run.records()?;
        println!("{}", host.summary());
        println!("records go to {}", run.path().display());
        Ok(Self { args, env, pools, run, context, host, writer, records: Vec::new(), probes: None, model, baselines })
    }

    fn keep(&mut self, body: impl Into<record::Body>) -> Result<()> {
        let record = self.context.record(body);
        self.writer.append(&record)?;
        self.records.push(record);
        Ok(())
    }

    fn measure_limits(&mut self) -> Result<()> {
        let seconds = if self.args.quick { 1.5 } else { 4.0 };
        let probes = Probes::measure(&self.host, &self.pools, seconds)?;
        for line in probes.lines() {
            println!("{line}");
        }
        for probe in &probes.records {
            self.keep(probe.clone())?;
        }
        self.probes = Some(probes);
        Ok(())
    }

    /// Every kernel against the oracle, on the model's own layer shapes.
    fn prove_kernels(&mut self) -> Result<()> {
        let source = open::source(&self.model, self.args.layout.into())?;
        let batches: &[usize] = if self.args.quick { &[2] } else { &kernels::VERIFY_BATCHES };
        let quick = self.args.quick;
        let wanted = |name: &str| !quick || kernels::is_fast(name);
        let proofs = kernels::prove("", wanted, &kernels::layer_shapes(source.config()), batches)?;
        for proof in proofs {
            match (&proof.first_mismatch, &proof.skipped) {
                (Some(mismatch), _) => println!("WRONG: {}: {mismatch}", proof.code.kernel),
                (_, Some(reason)) => println!("skipped: {}: {reason}", proof.code.kernel),
                _ => println!("proved: {} equals the oracle in {} cases", proof.code.kernel, proof.cases),
            }
            self.keep(proof)?;
        }
        if quick {
            println!("not proved in a quick run, and not run either: the other portable kernels");
        }
        Ok(())
    }

    /// The kernels that were proved, slowest first.
    fn proved(&self) -> Vec<&'static str> {
        let proofs = self.records.iter().filter_map(|record| match &record.body {
            record::Body::Verify(proof) if proof.ok => Some(proof.code.kernel.as_str()),
            _ => None,
        });
        let proofs: Vec<&str> = proofs.collect();
        registry::KERNELS.iter().map(|entry| entry.info.name).filter(|name| proofs.contains(name)).collect()
    }

    /// The proved kernels that run inside a model here.
    fn compared(&self) -> Vec<&'static str> {
        self.proved().into_iter().filter(|name| kernels::is_fast(name)).collect()
    }

    /// Greedy tokens and speed of the kernels, on four layers of the model's shape; then the tokens of the one that is timed against
    /// the baselines, on the whole model.
    fn compare_kernels(&mut self) -> Result<()> {
        let pool = self.largest_pool()?;
        let source = open::source(SLICE, self.args.layout.into())?;
        let mut loaded = Vec::new();
        for name in self.compared() {
            loaded.push(Loaded::new(&*source, open::kernel(Some(name), self.env)?, &pool)?);
        }
        let (n_prompts, n_tokens) = if self.args.quick { (1, 16) } else { (3, 32) };
        let Some(oracle) = loaded.iter().position(|l| l.model.kernel_name() == registry::ORACLE_KERNEL) else {
            println!("the oracle kernel is wrong: nothing can be compared with it");
            return Ok(());
        };
        let expected = greedy(&loaded[oracle], &pool, n_prompts, n_tokens)?;
        for l in &loaded {
            if l.model.kernel_name() != registry::ORACLE_KERNEL {
                let got = greedy(l, &pool, n_prompts, n_tokens)?;
                self.keep_agreement(l, &expected, &got)?;
            }
        }
        // All threads and few tokens: the portable kernels are ten to fifty times slower than the best. Lengths that no other group
        // has, because four layers do not belong into one chart with whole models.
        let plan = Plan { repetitions: 3, ..Plan::default() };
        let (n_prompt, n_gen) = if self.args.quick { (8, 6) } else { (24, 20) };
        for workload in [Workload::prefill(n_prompt), Workload::decode(n_gen)] {
            let pool = &self.pools[self.pools.len() - 1];
            let runs: Vec<_> = loaded.iter().map(|l| (l, pool, workload)).collect();
            let speeds = speed::measure(&runs, &format!("kernels {workload}"), &plan, self.probes()?)?;
            speeds.into_iter().try_for_each(|speed| self.keep(speed))?;
        }
        drop(loaded);
        if self.args.quick {
            return Ok(());
        }
        let source = open::source(&self.model, self.args.layout.into())?;
        let mut expected = None;
        let timed = open::kernel(self.args.kernel.as_deref(), self.env)?.info().name;
        for name in [registry::ORACLE_KERNEL, timed] {
            let l = Loaded::new(&*source, open::kernel(Some(name), self.env)?, &pool)?;
            if l.info.weights != "ternary" {
                break;
            }
            let got = greedy(&l, &pool, 1, 12)?;
            match &expected {
                None => expected = Some(got),
                Some(expected) => self.keep_agreement(&l, expected, &got)?,
            }
        }
        Ok(())
    }

    fn keep_agreement(&mut self, loaded: &Loaded, expected: &[Vec<u32>], got: &[Vec<u32>]) -> Result<()> {
        let pairs = || expected.iter().zip(got).flat_map(|(a, b)| a.iter().zip(b));
        let n_differ = pairs().filter(|(a, b)| a != b).count() as u64;
        let agreement = record::Agreement {
            model: loaded.info.clone(),
            reference_kernel: registry::ORACLE_KERNEL.to_owned(),
            code: loaded.code(),
            layout: loaded.model.kernels().default.decode.info().layout.to_owned(),
            n_prompts: expected.len() as u64,
            n_tokens: pairs().count() as u64,
            n_differ,
        };
        println!(
            "tokens: {} on {}: {n_differ} of {} greedy tokens differ from {}",
            agreement.code.kernel, agreement.model.model, agreement.n_tokens, agreement.reference_kernel
        );
        self.keep(agreement)
    }

    /// Speed and memory: the ternary model stays, the baselines come and go beside it.
    fn compare_with_baselines(&mut self) -> Result<()> {
        let pool = self.largest_pool()?;
        let source = open::source(&self.model, self.args.layout.into())?;
        let kernel = open::kernel(self.args.kernel.as_deref(), self.env)?;
        if !self.proved().contains(&kernel.info().name) {
            println!("{} was not proved: it is not timed", kernel.info().name);
            return Ok(());
        }
        let ternary = self.load(&*source, kernel.info().name, &pool)?;
        self.score(&ternary, &self.model.clone(), &pool)?;
        let budget = |seconds| Some(Duration::from_secs(seconds));
        let plan = if self.args.quick {
            Plan { repetitions: 3, min_repetitions: 3, budget: budget(8), ..Plan::default() }
        } else {
            Plan { repetitions: 5, min_repetitions: 3, budget: budget(10), ..Plan::default() }
        };
        let plan = match self.args.repetitions {
            Some(repetitions) => Plan { repetitions, budget: None, ..plan },
            None => plan,
        };
        let all = self.pools.len() - 1;
        // The ternary model alone: how it scales, and how long prompts do.
        let (scaling, long): (&[Workload], Workload) = match self.args.quick {
            true => (&[Workload::decode(24)], Workload::prefill(64)),
            false => (&[Workload::prefill(128), Workload::decode(128)], Workload::prefill(512)),
        };
        for &workload in scaling.iter().chain([&long]) {
            let pools = if workload == long { &self.pools[all..] } else { &self.pools[..] };
            let runs: Vec<_> = pools.iter().map(|pool| (&ternary, pool, workload)).collect();
            let speeds = speed::measure(&runs, &workload.to_string(), &plan, self.probes()?)?;
            speeds.into_iter().try_for_each(|speed| self.keep(speed))?;
        }
        for (i, name) in self.baselines.clone().iter().enumerate() {
            let source = open::source(name, self.args.layout.into())?;
            let baseline = self.load(&*source, kernel.info().name, &pool)?;
            self.score(&baseline, name, &pool)?;
            // The first baseline gets the published decode length, and one thread as well; the others what time allows.
            let mut runs = match (self.args.quick, i) {
                (true, _) => vec![(all, Workload::prefill(32)), (all, Workload::decode(16))],
                (false, 0) => vec![(all, Workload::prefill(128)), (all, Workload::decode(128))],
                (false, _) => vec![(all, Workload::prefill(64)), (all, Workload::decode(16))],
            };
            if !self.args.quick && i == 0 && all > 0 {
                runs.push((0, Workload::decode(16)));
            }
            for (pool, workload) in runs {
                let pool = &self.pools[pool];
                let pair = [(&ternary, pool, workload), (&baseline, pool, workload)];
                let group = format!("{workload} against {}, {} threads", baseline.info.model, pool.n_threads());
                let speeds = speed::measure(&pair, &group, &plan, self.probes()?)?;
                speeds.into_iter().try_for_each(|speed| self.keep(speed))?;
            }
        }
        Ok(())
    }

    /// Loads a model, runs it once for its memory, and records both.
    fn load(&mut self, source: &dyn WeightSource, kernel: &str, pool: &Pool) -> Result<Loaded> {
        let kernel = open::kernel(Some(kernel), self.env)?;
        let loaded = Loaded::new(source, kernel, pool)?.with_kv(self.args.kv).with_head(self.args.head, pool, None);
        let (load, memory) = footprint::measure(source, &loaded, pool, 128)?;
        let seconds = loaded.load.samples_ns.iter().sum::<u64>() as f64 / 1e9;
        let name = &loaded.info.model;
        println!(
            "loaded: {name} in {seconds:.1} s, {} resident, {}",
            console::bytes(memory.peak_rss_bytes),
            loaded.model.kernel_name()
        );
        self.keep(load)?;
        self.keep(memory)?;
        Ok(loaded)
    }

    /// PIQA and GSM8K of real weights. Synthetic ones have no accuracy.
    fn score(&mut self, loaded: &Loaded, name: &str, pool: &Pool) -> Result<()> {
        let Some(data) = self.args.data.clone().or(self.env.data.clone()) else { return Ok(()) };
        if loaded.info.is_synthetic() {
            return Ok(());
        }
        let tokenizer: Tokenizer = open::tokenizer(name)?;
        let limits = ternbench_model::batch::Limits::default();
        let mut lm = LocalModel::new(Engine::new(&loaded.model, pool), &tokenizer, limits);
        let by = eval::Answerer::loaded(loaded);
        for task in SCORED {
            let out = self.run.path().join(ternbench_measure::host::slug(&loaded.info.model));
            std::fs::create_dir_all(&out).with_context(|| format!("{}", out.display()))?;
            let (provenance, limit) = (by.provenance(), self.args.limit.map(NonZeroUsize::get));
            let options = Options { data: data.clone(), out, limit, provenance, ..Options::default() };
            let (_, accuracy) = eval::score(&Task::find(task)?, &mut lm, &by, &options)?;
            self.keep(accuracy)?;
        }
        Ok(())
    }

    /// Accuracy where no real weights are given: the twins', which say nothing of this model.
    fn demonstrate_twins(&mut self) -> Result<()> {
        if self.args.model.is_some() {
            return Ok(());
        }
        let kernel = open::kernel(self.args.kernel.as_deref(), self.env)?;
        let Self { pools, run, context, writer, records, probes, args, .. } = self;
        let (Some(pool), Some(probes)) = (pools.last(), probes.as_ref()) else { return Ok(()) };
        let stage = twins::Stage { kernel, pool, probes, run: run.path(), quick: args.quick };
        stage.demonstrate(&mut |body| twins::keep(body, context, writer, records))?;
        Ok(())
    }

    fn finish(mut self, start: Instant) -> Result<ExitCode> {
        let folder = self.run.path().to_owned();
        let mut run = Run::new(folder.clone(), std::mem::take(&mut self.records), Some(self.host.clone()));
        pairing::pair(&mut run);
        let ledger = ternbench_report::judge(&run);
        for claim in ledger.to_records() {
            self.keep(claim)?;
        }
        let output = console::tables(self.env);
        println!("\n{}\n", sections::speed(&frame::speed_rows(&run.records)?).text(output));
        for section in sections::twins(&run) {
            println!("{}\n", section.text(output));
        }
        println!("{}\n{}", table::ledger(&ledger, output), ledger.summary());
        for path in Document::new(&run)?.save(&folder, true)? {
            println!("report: {}", path.display());
        }
        println!("this took {:.0} s", start.elapsed().as_secs_f64());
        Ok(exit_code(&ledger, self.args.judge))
    }

    fn probes(&self) -> Result<&Probes> {
        self.probes.as_ref().context("the limits are measured first")
    }

    /// A pool for loading, as large as the largest that is measured.
    fn largest_pool(&self) -> Result<Pool> {
        open::pool(self.pools.iter().map(Pool::n_threads).max().unwrap_or(1))
    }
}

/// Greedy generations behind `n_prompts` prompts of 8 tokens.
fn greedy(loaded: &Loaded, pool: &Pool, n_prompts: u64, n: usize) -> Result<Vec<Vec<u32>>> {
    let spinner = console::spinner(&format!("greedy tokens with {}", loaded.model.kernel_name()));
    let mut engine = loaded.engine(pool);
    let config = loaded.model.config();
    let generations =
        (0..n_prompts).map(|seed| workload::greedy(&mut engine, &workload::prompt(config, 8, seed), n)).collect();
    spinner.finish_and_clear();
    generations
}
