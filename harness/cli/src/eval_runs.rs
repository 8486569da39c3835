//! `ternbench eval merge` and `ternbench eval compare`: what is done with finished runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ternbench_eval::compare::{self, Comparison, Paired};
use ternbench_eval::items::Line;
use ternbench_eval::prompt::PromptSet;
use ternbench_eval::{Summary, Task, page, store};
use ternbench_measure::record::{self, Body};
use ternbench_measure::{Env, RecordFile, RecordWriter, run_dir};

use crate::eval;

#[derive(clap::Subcommand)]
pub enum Finished {
    /// Put the shards of a run together: the same bytes as a run without shards
    Merge(MergeArgs),
    /// Pair two runs on the same items: difference, interval, McNemar's test, the items that differ
    Compare(CompareArgs),
}

#[derive(clap::Args)]
pub struct MergeArgs {
    /// Folders with shards
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Where the whole run goes; the first of the folders when not given
    #[arg(long)]
    out: Option<PathBuf>,
    /// Task definitions (TOML) of tasks that are not ternbench's, for the prompts of the page
    #[arg(long, value_delimiter = ',')]
    task: Vec<String>,
    /// Folder with the data, for the prompts of the page [env: TERNBENCH_DATA]
    #[arg(long)]
    data: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct CompareArgs {
    /// The first run: an items file, or a folder with one
    a: PathBuf,
    /// The second run
    b: PathBuf,
    /// The task, where a folder holds several; its TOML file where it is not ternbench's
    #[arg(long)]
    task: Option<String>,
    /// Folder with the data, to show prompts [env: TERNBENCH_DATA]
    #[arg(long)]
    data: Option<PathBuf>,
    /// How many of the differing items to show
    #[arg(long, default_value_t = 10)]
    show: usize,
    /// Write a page with both runs side by side
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

pub fn run(command: Finished, env: &Env) -> Result<ExitCode> {
    match command {
        Finished::Merge(args) => merge(&args, env),
        Finished::Compare(args) => compare(&args, env),
    }
}

fn merge(args: &MergeArgs, env: &Env) -> Result<ExitCode> {
    let out = args.out.as_ref().unwrap_or(&args.folders[0]);
    let mut tasks = BTreeSet::new();
    let mut parts = Vec::new();
    for folder in &args.folders {
        for path in entries(folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some((task, _)) = name.strip_prefix("items-").and_then(|name| name.split_once(".shard-")) {
                tasks.insert(task.to_owned());
            } else if name.starts_with("records.shard-") && name.ends_with(".jsonl") {
                parts.extend(RecordFile::read(&path)?.records);
            }
        }
    }
    if tasks.is_empty() {
        bail!("{}: no shards here (items-TASK.shard-I-of-N.jsonl)", args.folders[0].display());
    }
    let parts: Vec<_> = parts
        .into_iter()
        .filter_map(|record| match record.body {
            Body::Accuracy(accuracy) => Some(accuracy),
            _ => None,
        })
        .collect();
    for name in tasks {
        let lines = ternbench_eval::merge(&name, &args.folders, out)?;
        let path = store::items_path(out, &name, None);
        let of_task = |part: &&record::Accuracy| part.task.split('@').next() == Some(name.as_str());
        let mut parts = parts.iter().filter(of_task);
        let n_total = parts.clone().map(|part| part.n_total as usize).max().unwrap_or(lines.len());
        let summary = Summary::of(&lines, n_total, &path);
        if let Some(first) = parts.next() {
            let mut record = record::Accuracy {
                n: lines.len() as u64,
                correct: summary.correct().clone(),
                wall_ns: first.wall_ns + parts.map(|part| part.wall_ns).sum::<u64>(),
                items_file: path.display().to_string(),
                ..first.clone()
            };
            if let Some(loss) = summary.log_loss() {
                record.n = loss.n as u64;
                record.nll_sum = Some(loss.sum);
                record.nll_square_sum = Some(loss.squares);
            }
            RecordWriter::open(&out.join(run_dir::RECORDS))?.append(&eval::context(out).record(record))?;
        }
        if let Ok(task) = find_task(&name, &args.task) {
            eval::write_page(&task, &lines, &summary, &eval::data_folder(args.data.as_deref(), env))?;
        }
        summary.lines().iter().for_each(|line| println!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The definition called `name`: among files that were given, or ternbench's own.
fn find_task(name: &str, files: &[String]) -> Result<Task> {
    for file in files {
        let task = Task::find(file)?;
        if task.name == name {
            return Ok(task);
        }
    }
    Ok(Task::find(name)?)
}

fn compare(args: &CompareArgs, env: &Env) -> Result<ExitCode> {
    let task = args.task.as_deref().map(Task::find).transpose()?;
    let name = task.as_ref().map(|task| task.name.as_str());
    let (path_a, path_b) = (items_file(&args.a, name)?, items_file(&args.b, name)?);
    let (a, b) = (store::read(&path_a)?, store::read(&path_b)?);
    let comparison = compare::compare(&a, &b)
        .map_err(|reason| anyhow::anyhow!("{} and {}: {reason}", path_a.display(), path_b.display()))?;
    let (summary_a, summary_b) = (Summary::of(&a, a.len(), &path_a), Summary::of(&b, b.len(), &path_b));
    let task = match task {
        Some(task) => Some(task),
        None => Task::find(&summary_a.task).ok(),
    };
    let data = eval::data_folder(args.data.as_deref(), env);
    let prompts = task.as_ref().and_then(|task| PromptSet::load(task, &data, None).ok());
    // Prompts of other data than the runs' would mislead.
    let prompts = prompts.filter(|set| {
        a.iter().all(|line| {
            line.index < set.len()
                && set
                    .prompt(line.index)
                    .is_ok_and(|prompt| Some(prompt.sha256().as_str()) == line.text("prompt_sha256"))
        })
    });
    if let Some(path) = &args.html {
        let html = page::page(&a, &summary_a, prompts.as_ref(), Some((&b, &summary_b)));
        run_dir::write_atomic(path, html.as_bytes())?;
    }
    if args.output == "json" {
        let differing: Vec<_> = comparison.differing.iter().map(|(a, _)| a.index).collect();
        let value = serde_json::json!({
            "n": comparison.n,
            "metrics": comparison.metrics,
            "differing": differing,
            "n_not_identical": comparison.n_not_identical,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    print(&comparison, args, prompts.as_ref());
    Ok(ExitCode::SUCCESS)
}

/// The items file meant by a path.
fn items_file(path: &Path, task: Option<&str>) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    if let Some(task) = task {
        return Ok(store::items_path(path, task, None));
    }
    let is_items = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("items-") && name.ends_with(".jsonl") && !name.contains(".shard-")
    };
    let mut found: Vec<_> = entries(path)?.into_iter().filter(is_items).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => bail!("{}: no items-TASK.jsonl here", path.display()),
        (Some(_), false) => bail!("{}: several tasks: say which with --task", path.display()),
    }
}

fn print(comparison: &Comparison<'_>, args: &CompareArgs, prompts: Option<&PromptSet<'_>>) {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    for Paired { metric, a, b, only_a, only_b, difference, interval, p } in &comparison.metrics {
        let interval =
            interval.map_or(String::new(), |[low, high]| format!(" [{:+.2}, {:+.2}]", 100.0 * low, 100.0 * high));
        println!(
            "{metric}: A {}, B {}, A - B {:+.2} points{interval}, McNemar p {p:.4}  (only A right {only_a}, only B {only_b}, of {})",
            percent(*a),
            percent(*b),
            100.0 * difference,
            comparison.n
        );
    }
    println!(
        "{} of {} items differ in a verdict, {} in anything recorded of the answer",
        comparison.differing.len(),
        comparison.n,
        comparison.n_not_identical
    );
    for (a, b) in comparison.differing.iter().take(args.show) {
        println!("\n#{}", a.index);
        let shown = prompts.and_then(|prompts| prompts.shown(a.index));
        if let Some((prompt, _)) = &shown {
            let skipped = prompt.chars().count().saturating_sub(400);
            let tail: String = prompt.chars().skip(skipped).collect();
            println!("{}{tail}", if skipped > 0 { "…" } else { "" });
        }
        let choices = shown.map(|(_, choices)| choices).unwrap_or_default();
        println!("  A {}\n  B {}", side(a, &choices), side(b, &choices));
    }
    let more = comparison.differing.len().saturating_sub(args.show);
    if more > 0 {
        println!("\n{more} more: --show N, or --html FILE to browse them");
    }
}

/// One run's answer to an item.
fn side(line: &Line, choices: &[String]) -> String {
    let verdicts: Vec<String> =
        line.verdicts().iter().map(|(name, right)| format!("{} {name}", if *right { "✓" } else { "✗" })).collect();
    let mut text = verdicts.join("  ");
    if let Some(scores) = line.get("loglikelihood").and_then(|value| value.as_array()) {
        if let Some(gap) = compare::gap(line) {
            text += &format!("  gap of the right one {gap:+.4}");
        }
        for (i, score) in scores.iter().enumerate() {
            let mark = if line.number("gold") == Some(i as u64) { "right" } else { "wrong" };
            let choice = choices.get(i).map_or("", String::as_str);
            text += &format!("\n      {:>10.4} {mark} {choice}", score.as_f64().unwrap_or(f64::NAN));
        }
        return text;
    }
    for name in line.extractors() {
        text += &format!("\n      {name}: {}", line.text(name).unwrap_or_default());
    }
    text += &format!("\n      right: {}", line.text("gold").unwrap_or_default());
    for part in line.text("text").unwrap_or_default().trim().lines() {
        text += &format!("\n      | {part}");
    }
    text
}
