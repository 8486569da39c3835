//! `ternbench eval`: accuracy, item by item. What is done with finished runs is in [`crate::eval_runs`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use ternbench_eval::items::Line;
use ternbench_eval::prompt::PromptSet;
use ternbench_eval::stats::Accuracy;
use ternbench_eval::task::Method;
use ternbench_eval::via::{About, MAX_REQUESTS};
use ternbench_eval::{Backend, LocalModel, Options, Progress, Provenance, Shard, Summary, Task, Via, page, store};
use ternbench_measure::{Env, Host, RecordWriter, RunContext, record, run_dir};
use ternbench_model::batch::Limits;
use ternbench_model::{Engine, Tokenizer};

use crate::console;
use crate::eval_runs::{self, Finished};
use crate::open::{self, ActivationsArg, HeadArg, KvArg, LayoutArg, Loaded, ModelArgs};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:
  ternbench eval -m model.gguf --task piqa,gsm8k --limit 100 --out results/runs/mine
  scripts/fetch-data && ternbench eval -m model.gguf --task piqa --data datasets/cache --out out
  ternbench eval -m model.gguf --task gsm8k --data datasets/cache --out out --resume
  ternbench eval --via http://127.0.0.1:8080 --task piqa --data datasets/cache --out out
  ternbench eval compare out-a out-b --task gsm8k --data datasets/cache

Without --data the project's own sample set is used: it shows that everything works, its scores are not GSM8K's or PIQA's.")]
pub struct Args {
    #[command(subcommand)]
    finished: Option<Finished>,
    /// A GGUF file, a folder with config.json and safetensors, or synthetic:NAME (see --tokenizer)
    // Not of `ModelArgs`: a subcommand needs none.
    #[arg(short, long, value_name = "MODEL", required_unless_present = "via", conflicts_with = "via")]
    model: Option<String>,
    /// Score what an OpenAI-compatible completions server answers instead (plain http; choices need `echo` and `logprobs`)
    #[arg(long, value_name = "URL", conflicts_with_all = ["kernel", "threads"])]
    via: Option<String>,
    /// The model to ask the server for; its first when not given
    #[arg(long, value_name = "NAME", requires = "via")]
    via_model: Option<String>,
    /// Kernel of the ternary layers; `auto` takes the fastest that is exact and runs here [env: TERNBENCH_KERNEL]
    #[arg(short, long)]
    kernel: Option<String>,
    /// Threads; all cores when not given [env: TERNBENCH_THREADS]
    #[arg(short, long)]
    threads: Option<usize>,
    #[command(flatten)]
    layout: LayoutArg,
    /// What dense weights are multiplied by
    #[arg(long, value_enum, default_value_t)]
    activations: ActivationsArg,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    batch: BatchArgs,
}

/// What is evaluated.
#[derive(clap::Args)]
struct RunArgs {
    /// Tasks: names of datasets/tasks, or TOML files
    #[arg(long, value_delimiter = ',', default_value = "piqa,gsm8k")]
    task: Vec<String>,
    /// Folder with the data, gsm8k/test.jsonl and so on; the sample set when not given [env: TERNBENCH_DATA]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only the first so many items
    #[arg(long)]
    limit: Option<NonZeroUsize>,
    /// Most tokens generated per item, where it is not the task's own number
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Folder for items-TASK.jsonl, items-TASK.html and records.jsonl
    #[arg(long, default_value = "eval-out")]
    out: PathBuf,
    /// Go on where an earlier run with the same options was stopped
    #[arg(long)]
    resume: bool,
    /// Only every N-th item, from the I-th on; `ternbench eval merge` puts the N shards together
    #[arg(long, value_name = "I/N", value_parser = Shard::parse)]
    shard: Option<Shard>,
    /// Tokenizer of a model that has none, such as synthetic weights: a GGUF file, a tokenizer file or a folder with one
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
}

/// How much goes on at once. It changes the speed, not the results.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct BatchArgs {
    /// Items at work at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_requests)]
    batch: usize,
    /// Tokens per forward pass
    #[arg(long, value_name = "N", default_value_t = Limits::default().tokens_per_pass)]
    pass_tokens: usize,
    /// Memory for keys and values, in GB
    #[arg(long, value_name = "GB", default_value_t = 4.0)]
    kv_gb: f64,
}

impl BatchArgs {
    /// As the batch takes them.
    pub fn limits(self) -> Limits {
        Limits {
            max_requests: self.batch,
            tokens_per_pass: self.pass_tokens,
            kv_bytes: (self.kv_gb.max(0.0) * 1e9) as usize,
        }
    }
}

/// What answered, for records and items.
pub struct Answerer {
    /// The model.
    pub model: record::Model,
    /// The code.
    pub code: record::Code,
}

impl Answerer {
    /// A model in memory.
    pub fn loaded(loaded: &Loaded) -> Self {
        Self { model: loaded.info.clone(), code: loaded.code() }
    }

    /// A server, by what it says of itself. Nothing of it is proved here, so the code counts as not exact.
    pub fn via(url: &str, about: &About) -> Self {
        const UNKNOWN: &str = "not stated";
        let unknown = || UNKNOWN.to_owned();
        let model = record::Model {
            model: about.model.clone(),
            model_hash: about.model_hash.clone().unwrap_or_else(unknown),
            architecture: unknown(),
            weights: unknown(),
            ..record::Model::default()
        };
        let kernel = about.kernel.as_deref().unwrap_or(UNKNOWN);
        Self { model, code: record::Code { kernel: format!("{kernel} via {url}"), isa: unknown(), exact: false } }
    }

    /// For items.
    pub fn provenance(&self) -> Provenance {
        Provenance {
            kernel: self.code.kernel.clone(),
            model: self.model.model.clone(),
            model_hash: self.model.model_hash.clone(),
        }
    }
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    if let Some(finished) = args.finished {
        return eval_runs::run(finished, env);
    }
    if args.via.is_some() && args.batch.batch > MAX_REQUESTS {
        bail!("--batch {}: at most {MAX_REQUESTS} requests at once", args.batch.batch);
    }
    let run = args.run;
    let tasks = run.task.iter().map(|name| Task::find(name)).collect::<Result<Vec<_>, _>>()?;
    let mut names = BTreeSet::new();
    if let Some(twice) = tasks.iter().find(|task| !names.insert(&task.name)) {
        bail!("--task: two tasks are called {}, and so would be their results", twice.name);
    }
    let tokenizer = run.tokenizer.as_deref().map(Tokenizer::for_model).transpose()?;
    let options = Options {
        data: data_folder(run.data.as_deref(), env),
        out: run.out,
        limit: run.limit.map(NonZeroUsize::get),
        max_new_tokens: run.max_new_tokens,
        shard: run.shard,
        resume: run.resume,
        provenance: Provenance::default(),
    };
    // Before a model is loaded for nothing.
    tasks.iter().try_for_each(|task| ternbench_eval::check(task, &options))?;
    if let Some(url) = &args.via {
        let mut backend = Via::connect(url, args.via_model.as_deref(), tokenizer, args.batch.batch)?;
        let by = Answerer::via(url, backend.about());
        evaluate(&tasks, &mut backend, &by, options)?;
        return Ok(ExitCode::SUCCESS);
    }
    let model = args.model.context("a model is needed: -m MODEL, or --via URL")?;
    let (kernel, threads, activations) = (args.kernel, args.threads, args.activations);
    let model = ModelArgs { model, kernel, threads, activations, kv: KvArg::F32, packed: false, layout: args.layout };
    let tokenizer = tokenizer.map_or_else(|| model.tokenizer(), Ok)?;
    let (mut loaded, pool) = model.load(env)?;
    // Scores need all logits, greedy answers the best ones only.
    if tasks.iter().any(|task| matches!(task.method, Method::Generate(..))) {
        loaded = loaded.with_head(HeadArg::default(), &pool, None);
    }
    let mut backend = LocalModel::new(Engine::new(&loaded.model, &pool), &tokenizer, args.batch.limits());
    evaluate(&tasks, &mut backend, &Answerer::loaded(&loaded), options)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `tasks` on `backend`: items, pages, records and summaries.
pub fn evaluate(tasks: &[Task], backend: &mut impl Backend, by: &Answerer, mut options: Options) -> Result<()> {
    options.provenance = by.provenance();
    std::fs::create_dir_all(&options.out).with_context(|| format!("{}", options.out.display()))?;
    let suffix = options.shard.map(Shard::suffix).unwrap_or_default();
    let mut records = RecordWriter::open(&options.out.join(format!("records{suffix}.jsonl")))?;
    for task in tasks {
        let (summary, accuracy) = score(task, backend, by, &options)?;
        let seconds = accuracy.wall_ns as f64 / 1e9;
        records.append(&context(&options.out).record(accuracy))?;
        if options.shard.is_none() {
            write_page(task, &store::read(&summary.items)?, &summary, &options.data)?;
        }
        summary.lines().iter().for_each(|line| println!("{line}"));
        let notes = backend.take_notes().into_iter().map(|note| format!("; {note}")).collect::<String>();
        println!("  {seconds:.1} s{notes}");
    }
    Ok(())
}

/// What records of a run in the folder `out` say of the machine.
pub fn context(out: &Path) -> RunContext {
    let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
    RunContext::new(out.display().to_string(), &Host::describe(&features))
}

/// Writes the page to browse a run beside its items.
pub fn write_page(task: &Task, lines: &[Line], summary: &Summary, data: &Path) -> Result<()> {
    let prompts = PromptSet::load(task, data, None).ok();
    let html = page::page(lines, summary, prompts.as_ref(), None);
    run_dir::write_atomic(&summary.items.with_extension("html"), html.as_bytes())?;
    Ok(())
}

/// `--data`, the environment's folder, or the sample set.
pub fn data_folder(asked: Option<&Path>, env: &Env) -> PathBuf {
    asked.map(PathBuf::from).or(env.data.clone()).unwrap_or_else(|| open::datasets().join("sample"))
}

/// Runs one task with a progress line, and makes its record.
pub fn score(
    task: &Task,
    backend: &mut impl Backend,
    by: &Answerer,
    options: &Options,
) -> Result<(Summary, record::Accuracy)> {
    let start = Instant::now();
    let mut display = Display::new(&task.name);
    let summary = ternbench_eval::run(task, backend, options, &mut |progress| display.show(progress))?;
    display.bar.finish_and_clear();
    let mut record = record::Accuracy {
        model: by.model.clone(),
        code: by.code.clone(),
        task: format!("{}@{}", task.name, task.version),
        n_fewshot: task.n_fewshot(),
        n: summary.n as u64,
        n_total: summary.n_total as u64,
        correct: summary.correct().clone(),
        by_steps: BTreeMap::new(),
        nll_sum: None,
        nll_square_sum: None,
        data: options.data.display().to_string(),
        wall_ns: start.elapsed().as_nanos() as u64,
        items_file: summary.items.display().to_string(),
    };
    if let Some(loss) = summary.log_loss() {
        record.n = loss.n as u64;
        record.nll_sum = Some(loss.sum);
        record.nll_square_sum = Some(loss.squares);
    }
    Ok((summary, record))
}

/// The line that shows how far a run is: on a terminal all the time, in a log once a minute.
struct Display {
    bar: ProgressBar,
    task: String,
    start: Instant,
    logged: Instant,
}

impl Display {
    fn new(task: &str) -> Self {
        let bar = console::bar(0, task);
        let style = ProgressStyle::with_template("{msg} {bar:16} {pos}/{len}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, task: task.to_owned(), start: Instant::now(), logged: Instant::now() }
    }

    fn show(&mut self, progress: Progress) {
        let line = format!("{}: {}", self.task, status(progress, self.start.elapsed()));
        if self.bar.is_hidden() {
            if self.logged.elapsed() > Duration::from_secs(60) {
                self.logged = Instant::now();
                eprintln!("{line} {}/{}", progress.done, progress.total);
            }
            return;
        }
        self.bar.set_length(progress.total as u64);
        self.bar.set_position(progress.done as u64);
        self.bar.set_message(line);
    }
}

/// `62.3 % ± 1.1, 2.1 items/s, 640 tokens/s, 12 min left`.
fn status(progress: Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let n_done = progress.done - progress.resumed;
    let items_per_s = n_done as f64 / seconds;
    let left = match (progress.total - progress.done) as f64 / items_per_s {
        _ if n_done == 0 => String::new(),
        s if s < 100.0 => format!(", {s:.0} s left"),
        s if s < 6000.0 => format!(", {:.0} min left", s / 60.0),
        s => format!(", {:.1} h left", s / 3600.0),
    };
    let score = progress.correct.map(|correct| {
        let accuracy = Accuracy { n: progress.done, correct };
        let stderr = accuracy.stderr().map(|stderr| format!(" ± {:.1}", 100.0 * stderr)).unwrap_or_default();
        format!("{:.1} %{stderr}, ", 100.0 * accuracy.value())
    });
    format!(
        "{}{items_per_s:.2} items/s, {:.0} tokens/s{left}",
        score.unwrap_or_default(),
        progress.tokens as f64 / seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_counts_this_run_only() {
        let progress = Progress { done: 60, resumed: 40, total: 100, correct: Some(45), tokens: 5000 };
        let line = status(progress, Duration::from_secs(10));
        assert_eq!(line, "75.0 % ± 5.6, 2.00 items/s, 500 tokens/s, 20 s left");
        let none = Progress { correct: None, ..progress };
        assert_eq!(status(none, Duration::from_secs(1000)), "0.02 items/s, 5 tokens/s, 33 min left");
        // Nothing is known of an accuracy or of the time left until an item is done.
        let start = Progress { done: 0, resumed: 0, correct: None, ..progress };
        assert_eq!(status(start, Duration::from_secs(10)), "0.00 items/s, 500 tokens/s");
    }
}
