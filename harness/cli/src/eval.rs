//! `ternbench eval`: accuracy, item by item.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use ternbench_eval::{EngineModel, Metric, Options, Provenance, Summary, Task};
use ternbench_measure::{Env, Host, RecordWriter, RunContext, record};
use ternbench_model::Engine;

use crate::console;
use crate::open::{self, Loaded, ModelArgs};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench eval -m model.gguf --task piqa,gsm8k --limit 100 --out results/runs/mine
  scripts/fetch-data && ternbench eval -m model.gguf --task piqa --data datasets/cache --out out

Without --data the project's own sample set is used: it shows that everything works, its scores are not GSM8K's or PIQA's.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tasks: names of datasets/tasks, or TOML files
    #[arg(long, value_delimiter = ',', default_value = "piqa,gsm8k")]
    task: Vec<String>,
    /// Folder with the data, gsm8k/test.jsonl and so on; the sample set when not given [env: TERNBENCH_DATA]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only the first so many items
    #[arg(long)]
    limit: Option<usize>,
    /// Most tokens generated per item, where it is not the task's own number
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Folder for items-TASK.jsonl and records.jsonl
    #[arg(long, default_value = "eval-out")]
    out: PathBuf,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let tasks = args.task.iter().map(|name| Task::find(name)).collect::<Result<Vec<_>, _>>()?;
    let data = data_folder(args.data.as_deref(), env);
    let tokenizer = args.model.tokenizer()?;
    let (loaded, pool) = args.model.load(env)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("{}", args.out.display()))?;
    let features: Vec<&str> = ternbench_kernels::isa::detected().iter().map(|feature| feature.name()).collect();
    let context = RunContext::new(args.out.display().to_string(), &Host::describe(&features));
    let mut records = RecordWriter::open(&args.out.join(ternbench_measure::run_dir::RECORDS))?;
    let mut engine = EngineModel::new(Engine::new(&loaded.model, &pool), &tokenizer);
    for task in &tasks {
        let options = Options {
            data: data.clone(),
            out: args.out.clone(),
            limit: args.limit,
            max_new_tokens: args.max_new_tokens,
            provenance: provenance(&loaded),
        };
        let (summary, accuracy) = score(task, &mut engine, &loaded, &options)?;
        records.append(&context.record(accuracy))?;
        print(&summary);
    }
    Ok(ExitCode::SUCCESS)
}

/// `--data`, the environment's folder, or the sample set.
pub fn data_folder(asked: Option<&std::path::Path>, env: &Env) -> PathBuf {
    asked.map(PathBuf::from).or(env.data.clone()).unwrap_or_else(|| open::datasets().join("sample"))
}

/// What answered, for the items.
pub fn provenance(loaded: &Loaded) -> Provenance {
    Provenance {
        kernel: loaded.model.kernel_name().to_owned(),
        model: loaded.info.model.clone(),
        model_hash: loaded.info.model_hash.clone(),
    }
}

/// Runs one task with a progress line, and makes its record.
pub fn score(
    task: &Task,
    lm: &mut EngineModel<'_>,
    loaded: &Loaded,
    options: &Options,
) -> Result<(Summary, record::Accuracy)> {
    let bar = console::bar(0, &task.name);
    let start = Instant::now();
    let summary = ternbench_eval::run(task, lm, options, &mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(format!("{}: {:.4}", task.name, progress.score));
    })?;
    bar.finish_and_clear();
    let mut record = record::Accuracy {
        model: loaded.info.clone(),
        code: loaded.code(),
        task: format!("{}@{}", summary.task, summary.version),
        n_fewshot: task.n_fewshot(),
        n: summary.n as u64,
        n_total: summary.n_total as u64,
        correct: BTreeMap::new(),
        nll_sum: None,
        nll_square_sum: None,
        data: options.data.display().to_string(),
        wall_ns: start.elapsed().as_nanos() as u64,
        items_file: summary.items.display().to_string(),
    };
    record.correct = summary.correct();
    if let Some(loss) = summary.log_loss() {
        record.n = loss.n as u64;
        record.nll_sum = Some(loss.sum);
        record.nll_square_sum = Some(loss.squares);
    }
    Ok((summary, record))
}

fn print(summary: &Summary) {
    let show = |metric: &Metric| match metric.stderr {
        Some(stderr) => format!("{} {:.4} ± {stderr:.4}", metric.name, metric.value),
        None => format!("{} {:.4}", metric.name, metric.value),
    };
    let metrics: Vec<String> = summary.metrics.iter().map(show).collect();
    println!(
        "{}@{}: {}  ({} items, {})",
        summary.task,
        summary.version,
        metrics.join(", "),
        summary.n,
        summary.items.display()
    );
    if summary.truncated_items > 0 {
        println!("  {} prompts did not fit into the context and lost their beginning", summary.truncated_items);
    }
}
