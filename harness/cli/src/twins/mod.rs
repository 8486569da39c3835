//! `ternbench twins`: the whole experiment of the field on two small trained models that ship with the repository: a BitNet
//! b1.58 model and the same network in FP16, trained on the same items in the same order (`datasets/twins`).
//!
//! In this order: each twin is held against its reference, then both are scored on the same held-out items, then every exact
//! kernel on some of them, then memory and speed; at last the engines that are wrong on purpose, which must not get that far.
//! The scores are the twins' own: nothing here says anything about BitNet 2B4T, GSM8K or PIQA.

mod controls;
mod gate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ternbench_eval::{LocalModel, Options, Task};
use ternbench_kernels::{Exactness, Pool, TernaryKernel, registry};
use ternbench_measure::{Env, Host, Plan, RecordWriter, RunContext, RunDir, clock, host, record, runner};
use ternbench_model::{Engine, Tokenizer};
use ternbench_report::{Run, sections};

use self::controls::Control;
use self::gate::Golden;
use crate::console;
use crate::eval;
use crate::footprint;
use crate::kernels::is_fast;
use crate::open::{self, Loaded};
use crate::pairing;
use crate::probes::Probes;
use crate::speed;
use crate::workload::Workload;

const WORD_PROBLEMS: &str = "word_problems";
const TASKS: [&str; 3] = [WORD_PROBLEMS, "common_sense", "plain_text"];
/// The ternary twin's network with random weights.
const UNTRAINED: &str = "synthetic:twin-ternary";

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench twins                   two minutes, no network
  ternbench twins --quick           fewer items

Exit code 1 when a twin fails its gate, or a wrong engine passes it.")]
pub struct Args {
    /// Fewer items: half a minute instead of two
    #[arg(long)]
    quick: bool,
    /// Kernel of the ternary layers [env: TERNBENCH_KERNEL]
    #[arg(short, long)]
    kernel: Option<String>,
    /// Threads; all cores when not given [env: TERNBENCH_THREADS]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Folder that the run's folder is made in [default: results/runs] [env: TERNBENCH_RESULTS]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// Trained ternary.
    Ternary,
    /// Trained in full precision.
    Fp16,
}

impl Twin {
    const BOTH: [Self; 2] = [Self::Ternary, Self::Fp16];

    /// As in `datasets/models` and `golden.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ternary => "twin-ternary",
            Self::Fp16 => "twin-fp16",
        }
    }
}

/// The folder with the models, their items and their reference.
fn folder() -> PathBuf {
    open::datasets().join("twins")
}

/// The GGUF file.
fn file(twin: Twin) -> PathBuf {
    folder().join(format!("{}.gguf", twin.name()))
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    runner::refuse_debug_build(runner::DebugBuilds::Refuse)?;
    let pool = open::pool(open::threads(args.threads, env))?;
    let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
    let host = Host::describe(&features);
    let root = args.out.clone().or(env.results.clone()).unwrap_or_else(|| Path::new("results").join("runs"));
    let run = RunDir::create(&root, &clock::today(), "twins", &host)?;
    let (context, mut writer, mut records) = (RunContext::new(run.run_id(), &host), run.records()?, Vec::new());
    println!("{}", host.summary());
    println!("records go to {}", run.path().display());
    let probes = Probes::measure(&host, std::slice::from_ref(&pool), 1.5)?;
    let kernel = open::kernel(args.kernel.as_deref(), env)?;
    let stage = Stage { kernel, pool: &pool, probes: &probes, run: run.path(), quick: args.quick };
    let fine = stage.demonstrate(&mut |body| keep(body, &context, &mut writer, &mut records))?;
    let mut run = Run::new(run.path().to_owned(), records, Some(host));
    pairing::pair(&mut run);
    for table in sections::twins(&run) {
        println!("\n{}", table.text(console::tables(env)));
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a record down.
pub fn keep(
    body: record::Body,
    context: &RunContext,
    writer: &mut RecordWriter,
    records: &mut Vec<record::Record>,
) -> Result<()> {
    let record = context.record(body);
    writer.append(&record)?;
    records.push(record);
    Ok(())
}

/// Where records go.
type Keep<'k> = dyn FnMut(record::Body) -> Result<()> + 'k;

/// What a demonstration needs.
pub struct Stage<'s> {
    /// Runs the ternary layers.
    pub kernel: &'static dyn TernaryKernel,
    /// All threads.
    pub pool: &'s Pool,
    /// The limits that speeds are held against.
    pub probes: &'s Probes,
    /// The run's folder.
    pub run: &'s Path,
    /// Fewer items.
    pub quick: bool,
}

impl Stage<'_> {
    /// Everything, in the order of the module's words. Says whether the gate was right about every engine.
    pub fn demonstrate(&self, keep: &mut Keep<'_>) -> Result<bool> {
        if let Some(missing) = Twin::BOTH.map(file).into_iter().find(|file| !file.is_file()) {
            println!("the twins are skipped: {} is not there", missing.display());
            return Ok(true);
        }
        let text_file = folder().join("perplexity/text.txt");
        let text = std::fs::read_to_string(&text_file).with_context(|| text_file.display().to_string())?;
        let tokenizer = open::tokenizer(&file(Twin::Ternary).display().to_string())?;
        let bench = Referee { golden: Golden::read(&folder())?, tokenizer, text, stage: self };
        let mut sound = Vec::new();
        for twin in Twin::BOTH {
            let source = ternbench_model::weights::open(&file(twin), Default::default())?;
            let loaded = Loaded::new(&*source, self.kernel, self.pool)?;
            let (load, memory) = footprint::measure(&*source, &loaded, self.pool, 96)?;
            keep(load.into())?;
            keep(memory.into())?;
            if bench.passes(twin, None, &loaded, keep)? {
                sound.push(loaded);
            }
        }
        let mut fine = sound.len() == Twin::BOTH.len();
        for (task, loaded) in TASKS.iter().flat_map(|task| sound.iter().map(move |loaded| (task, loaded))) {
            bench.score(task, loaded, keep)?;
        }
        if !self.quick {
            // What no training at all is worth.
            let source = open::source(UNTRAINED, Default::default())?;
            bench.score(WORD_PROBLEMS, &Loaded::new(&*source, self.kernel, self.pool)?, keep)?;
        }
        bench.compare_kernels(keep)?;
        let plan = Plan { repetitions: if self.quick { 5 } else { 15 }, ..Plan::default() };
        for workload in [Workload::prefill(96), Workload::decode(96)].into_iter().filter(|_| !sound.is_empty()) {
            let runs: Vec<_> = sound.iter().map(|loaded| (loaded, self.pool, workload)).collect();
            let speeds = speed::measure(&runs, &format!("twins {workload}"), &plan, self.probes)?;
            speeds.into_iter().try_for_each(&mut *keep)?;
        }
        for control in Control::ALL {
            let loaded = control.load(self.kernel, self.pool)?;
            if bench.passes(control.twin(), Some(control.name()), &loaded, keep)? {
                println!("NOT CAUGHT: {}", loaded.info.model);
                fine = false;
            }
        }
        Ok(fine)
    }
}

/// The twins' reference and tokenizer, on a stage.
struct Referee<'s> {
    golden: Golden,
    tokenizer: Tokenizer,
    text: String,
    stage: &'s Stage<'s>,
}

impl Referee<'_> {
    /// Holds a model against the reference. What is wrong is never timed: its speed is recorded as refused.
    fn passes(&self, twin: Twin, control: Option<&str>, loaded: &Loaded, keep: &mut Keep<'_>) -> Result<bool> {
        let pool = self.stage.pool;
        let gate = self.golden.check(twin, control, loaded, &self.tokenizer, &self.text, pool)?;
        let passed = gate.wrong.is_none();
        match &gate.wrong {
            None => println!("gate: {} equals its reference", loaded.info.model),
            Some(reason) => {
                println!("gate: WRONG: {}: {reason}; it is not timed", loaded.info.model);
                let workload = Workload::decode(96);
                keep(
                    record::Speed {
                        model: loaded.info.clone(),
                        code: loaded.code(),
                        n_threads: pool.n_threads(),
                        workload: workload.to_string(),
                        n_gen: workload.n_gen as u64,
                        n_parallel: workload.n_parallel as u64,
                        group: format!("twins {workload}"),
                        refused: Some(format!("wrong: {reason}")),
                        ..record::Speed::default()
                    }
                    .into(),
                )?;
            }
        }
        keep(gate.into())?;
        Ok(passed)
    }

    /// Scores a model, and word problems by the number of their steps as well.
    fn score(&self, task: &str, loaded: &Loaded, keep: &mut Keep<'_>) -> Result<()> {
        let task = Task::find(task)?;
        let mut accuracy = self.evaluate(&task, loaded, self.stage.quick.then_some(100))?;
        if task.name == WORD_PROBLEMS {
            accuracy.by_steps = by_steps(&items(Path::new(&accuracy.items_file))?)?;
        }
        keep(accuracy.into())
    }

    /// One task on one model; items go to the run's folder.
    fn evaluate(&self, task: &Task, loaded: &Loaded, limit: Option<usize>) -> Result<record::Accuracy> {
        let limits = ternbench_model::batch::Limits::default();
        let mut lm = LocalModel::new(Engine::new(&loaded.model, self.stage.pool), &self.tokenizer, limits);
        let by = eval::Answerer::loaded(loaded);
        let name = format!("{}-{}", host::slug(&loaded.info.model), host::slug(&loaded.model.kernel_name()));
        let out = self.stage.run.join(name);
        let options = Options { data: folder(), out, limit, provenance: by.provenance(), ..Options::default() };
        Ok(eval::score(task, &mut lm, &by, &options)?.1)
    }

    /// Greedy answers of every exact kernel against the oracle kernel's, item by item.
    fn compare_kernels(&self, keep: &mut Keep<'_>) -> Result<()> {
        let task = Task::find(WORD_PROBLEMS)?;
        let source = ternbench_model::weights::open(&file(Twin::Ternary), Default::default())?;
        let mut expected: Option<Vec<Value>> = None;
        // The oracle kernel is the first of the list.
        let wanted = |name: &str| !self.stage.quick || is_fast(name);
        let exact = registry::supported().filter(|kernel| kernel.info().exactness == Exactness::Exact);
        for kernel in exact.filter(|kernel| wanted(kernel.info().name)) {
            let mut loaded = Loaded::new(&*source, kernel, self.stage.pool)?;
            loaded.info.model += " all kernels";
            let limit = Some(if self.stage.quick { 10 } else { 50 });
            let items = items(Path::new(&self.evaluate(&task, &loaded, limit)?.items_file))?;
            let Some(expected) = &expected else {
                if kernel.info().name != registry::ORACLE_KERNEL {
                    bail!("the list of kernels does not begin with {}", registry::ORACLE_KERNEL);
                }
                expected = Some(items);
                continue;
            };
            let ids = |item: &Value| item["generated_ids"].as_array().map_or(0, Vec::len) as u64;
            let differs = |(a, b): &(&Value, &Value)| a["generated_ids"] != b["generated_ids"];
            let n_differ = expected.iter().zip(&items).filter(differs).count() as u64;
            println!(
                "kernels: {}: {n_differ} of {} items differ from the oracle kernel's",
                kernel.info().name,
                items.len()
            );
            loaded.info.model = source.name().to_owned();
            keep(
                record::Agreement {
                    model: loaded.info.clone(),
                    reference_kernel: registry::ORACLE_KERNEL.to_owned(),
                    code: loaded.code(),
                    layout: kernel.info().layout.to_owned(),
                    n_prompts: items.len() as u64,
                    n_tokens: expected.iter().map(ids).sum(),
                    n_differ,
                }
                .into(),
            )?;
        }
        Ok(())
    }
}

/// How many items of so many steps are right, and how many there are: a line of a solution is a step, but for the answer's.
fn by_steps(items: &[Value]) -> Result<BTreeMap<u64, [u64; 2]>> {
    let path = folder().join("gsm8k/test.jsonl");
    let solutions = self::items(&path)?;
    let mut counts = BTreeMap::<u64, [u64; 2]>::new();
    for item in items {
        let index = item["index"].as_u64().context("an item without an index")? as usize;
        let solution = solutions.get(index).and_then(|solution| solution["answer"].as_str());
        let solution = solution.with_context(|| format!("{} has no solution {index}", path.display()))?;
        let [right, all] = counts.entry(solution.lines().count().saturating_sub(1) as u64).or_default();
        *right += u64::from(item["strict_correct"].as_bool().unwrap_or(item["strict_correct"] == 1));
        *all += 1;
    }
    Ok(counts)
}

/// The lines of an items file.
fn items(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| path.display().to_string())).collect()
}

#[cfg(test)]
mod tests {
    use ternbench_model::{Logits, Segment};

    use super::*;

    /// Whether the models are there. If not the test is skipped, visibly.
    fn shipped(test: &str) -> bool {
        let there = Twin::BOTH.iter().all(|&twin| file(twin).is_file());
        if !there {
            use std::io::Write;
            // Not eprintln!, which the test harness would swallow.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: datasets/twins has no models (scripts/train-twins)");
        }
        there
    }

    /// The proof that the referee sees fouls: five wrong engines are caught, the sound ones pass.
    #[test]
    fn the_gate_catches_every_wrong_engine_and_passes_the_twins() {
        if !shipped("the gate") {
            return;
        }
        let pool = Pool::new(2).unwrap();
        let golden = Golden::read(&folder()).unwrap();
        let tokenizer = open::tokenizer(&file(Twin::Ternary).display().to_string()).unwrap();
        let text = std::fs::read_to_string(folder().join("perplexity/text.txt")).unwrap();
        let kernel = registry::default_kernel();
        for twin in Twin::BOTH {
            let source = ternbench_model::weights::open(&file(twin), Default::default()).unwrap();
            let loaded = Loaded::new(&*source, kernel, &pool).unwrap();
            let gate = golden.check(twin, None, &loaded, &tokenizer, &text, &pool).unwrap();
            assert_eq!(gate.wrong, None, "{}", twin.name());
        }
        for control in Control::ALL {
            let loaded = control.load(kernel, &pool).unwrap();
            let gate = golden.check(control.twin(), Some(control.name()), &loaded, &tokenizer, &text, &pool).unwrap();
            assert!(gate.wrong.is_some(), "{} is not caught", control.name());
        }
    }

    /// What `scripts/check-twins` saw with transformers holds offline. Of the ternary twin's prompts only the robust ones, where no
    /// activation is at the edge between two int8 values, are close: such a one falls to one side or the other with the last bit of
    /// a float, and transformers in float64 differs from itself in float32 as much.
    #[test]
    fn logits_are_those_of_transformers() {
        if !shipped("logits of transformers") {
            return;
        }
        let pool = Pool::new(2).unwrap();
        let golden: Value = serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap();
        let stride = golden["logit_stride"].as_u64().unwrap() as usize;
        for (twin, which, tolerance) in
            [(Twin::Fp16, "prompts", 1e-3), (Twin::Ternary, "robust", 1e-3), (Twin::Ternary, "prompts", 0.1)]
        {
            let source = ternbench_model::weights::open(&file(twin), Default::default()).unwrap();
            let loaded = Loaded::new(&*source, registry::default_kernel(), &pool).unwrap();
            let mut engine = Engine::new(&loaded.model, &pool);
            let prompts = golden["twins"][twin.name()][which].as_array().unwrap();
            assert_eq!(prompts.len(), 20);
            for prompt in prompts {
                let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
                let expected: Vec<f32> = serde_json::from_value(prompt["logits"].clone()).unwrap();
                let mut cache = engine.new_cache(ids.len());
                let segment = Segment { cache: &mut cache, tokens: &ids, logits: Logits::Last };
                let logits = engine.forward(&mut [segment]).unwrap();
                assert_eq!(expected.len(), logits.len().div_ceil(stride));
                let worst =
                    logits.iter().step_by(stride).zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= tolerance, "{} {which}: {worst}", twin.name());
            }
        }
    }
}
