//! Runs a task: every item to the model, onto the disk, into the score.

use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::dataset;
use crate::error::EvalError;
use crate::items::{Line, Provenance};
use crate::prompt::PromptSet;
use crate::store::{self, Shard, Store};
use crate::summary::Summary;
use crate::task::{Method, Task};
use crate::work::Work;

/// What to run and where results go.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder that holds the data, `gsm8k/test.jsonl` and so on.
    pub data: PathBuf,
    /// The folder that results are written to.
    pub out: PathBuf,
    /// The first so many items only.
    pub limit: Option<usize>,
    /// Most tokens generated, where it is not the task's own number.
    pub max_new_tokens: Option<usize>,
    /// A part of the items only.
    pub shard: Option<Shard>,
    /// Whether to go on with what an earlier run left.
    pub resume: bool,
    /// What answers.
    pub provenance: Provenance,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Items on disk.
    pub done: usize,
    /// Those of them that an earlier run left.
    pub resumed: usize,
    /// Items in all.
    pub total: usize,
    /// Right ones so far, by the headline metric; nothing for a perplexity.
    pub correct: Option<usize>,
    /// Tokens answered for in this run.
    pub tokens: u64,
}

/// Finds out without a model whether the data of `task` can be used, and whether results are in the way.
pub fn check(task: &Task, options: &Options) -> Result<(), EvalError> {
    match &task.method {
        Method::Perplexity(method) => drop(dataset::read_text(&options.data.join(&method.text))?),
        Method::MultipleChoice(..) | Method::Generate(..) => {
            PromptSet::load(task, &options.data, options.limit)?.check()?;
        }
    }
    Store::check(&store::items_path(&options.out, &task.name, options.shard), options.resume)
}

/// Runs `task` on `backend`. `progress` is called after each item, when it is on disk, and now and then in between.
pub fn run(
    task: &Task,
    backend: &mut impl Backend,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, EvalError> {
    let work = Work::prepare(task, backend, options)?;
    let mine = |index: usize| options.shard.is_none_or(|shard| shard.has(index));
    let path = store::items_path(&options.out, &task.name, options.shard);
    let mut store = Store::open(path, options.resume)?;
    let mut lines: Vec<Line> = Vec::new();
    for raw in store.done().values() {
        let line = Line::parse(raw).map_err(|reason| EvalError::data(store.path(), reason))?;
        let in_place = line.index < work.len() && mine(line.index);
        let fits = if in_place { work.check(&line) } else { Err("it is beyond this run's items".to_owned()) };
        fits.map_err(|reason| EvalError::data(store.path(), format!("cannot resume, item {}: {reason}", line.index)))?;
        lines.push(line);
    }
    let resumed = lines.len();
    let left: Vec<usize> = (0..work.len()).filter(|index| mine(*index) && !store.done().contains_key(index)).collect();
    let total = resumed + left.len();
    let tokens_before = backend.tokens_done();
    let first_verdict = |line: &Line| line.verdicts().first().map(|(_, right)| *right);
    let mut correct = lines.iter().filter(|line| first_verdict(line) == Some(true)).count();
    let mut scored = lines.last().is_some_and(|line| first_verdict(line).is_some());
    let mut left = left.into_iter().peekable();
    let at = |index| move |error: EvalError| error.at(&task.name, index);
    loop {
        while backend.has_room()
            && let Some(index) = left.next()
        {
            work.question(index).and_then(|question| backend.ask(index, question)).map_err(at(index))?;
        }
        let now = Progress { done: lines.len(), resumed, total, correct: scored.then_some(correct), tokens: 0 };
        let mut working = |tokens| progress(Progress { tokens: tokens - tokens_before, ..now });
        let Some((index, answer)) = backend.answer(&mut working) else {
            if left.peek().is_some() {
                return Err(EvalError::Model("has no room for a question, and no answer to give".to_owned()));
            }
            break;
        };
        let line = work.write(&mut store, index, answer.map_err(at(index))?)?;
        let verdict = first_verdict(&line);
        (scored, correct) = (verdict.is_some(), correct + usize::from(verdict == Some(true)));
        lines.push(line);
        let tokens = backend.tokens_done() - tokens_before;
        progress(Progress { done: lines.len(), resumed, total, correct: scored.then_some(correct), tokens });
    }
    lines.sort_by_key(|line| line.index);
    let path = store.path().to_owned();
    store.finish()?;
    Ok(Summary::of(&lines, work.total(), &path))
}

/// Puts the shards of a task in `folders` together, into `out`: the bytes of a run that was not sharded.
pub fn merge(task: &str, folders: &[PathBuf], out: &Path) -> Result<Vec<Line>, EvalError> {
    let shards = shards(task, folders)?;
    let target = store::items_path(out, task, None);
    if target.exists() {
        return Err(EvalError::OutputExists { path: target });
    }
    let mut lines: Vec<Line> = Vec::new();
    for (shard, path) in &shards {
        for line in store::read(path)? {
            let wrong = |reason: String| EvalError::data(path, format!("item {}: {reason}", line.index));
            if !shard.has(line.index) {
                return Err(wrong("not of this shard".to_owned()));
            }
            if let Some(first) = lines.first() {
                for field in ["task", "task_version", "model", "model_hash", "kernel", "max_new_tokens", "text_sha256"]
                {
                    if line.get(field) != first.get(field) {
                        return Err(wrong(format!("another {field} than item {}: not mixed", first.index)));
                    }
                }
            }
            lines.push(line);
        }
    }
    lines.sort_by_key(|line| line.index);
    if let Some((i, _)) = lines.iter().enumerate().find(|(i, line)| line.index != *i) {
        return Err(EvalError::task(task, format!("item {i} is missing or twice there: are all shards of one run?")));
    }
    std::fs::create_dir_all(out).map_err(|source| EvalError::Output { path: out.to_owned(), source })?;
    store::write_sorted(&target, lines.iter().map(|line| &line.raw))?;
    Ok(lines)
}

/// The shard files of a task in `folders`, complete.
fn shards(task: &str, folders: &[PathBuf]) -> Result<Vec<(Shard, PathBuf)>, EvalError> {
    let mut found = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).map_err(|source| EvalError::Read { path: folder.clone(), source })?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let middle =
                name.strip_prefix(&format!("items-{task}.shard-")).and_then(|name| name.strip_suffix(".jsonl"));
            if let Some(shard) = middle.and_then(|middle| Shard::parse(&middle.replace("-of-", "/")).ok()) {
                found.push((shard, path));
            }
        }
    }
    found.sort_by_key(|(shard, _)| (shard.count, shard.index));
    let count = found.first().map_or(0, |(shard, _)| shard.count);
    let each_once = found.len() == count && found.iter().map(|(shard, _)| shard.index).eq(1..=count);
    if found.iter().any(|(shard, _)| shard.count != count) || !each_once || count == 0 {
        let names: Vec<_> = found.iter().map(|(shard, _)| format!("{}/{}", shard.index, shard.count)).collect();
        let reason = format!("finished shards are [{}]: each of one set is needed once", names.join(", "));
        return Err(EvalError::task(task, reason));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing::{self, HashLm};

    fn options(data: &Path, out: &Path) -> Options {
        let provenance = Provenance { kernel: "k".to_owned(), model: "m".to_owned(), model_hash: "h".to_owned() };
        Options { data: data.to_owned(), out: out.to_owned(), provenance, ..Options::default() }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_choice_task_end_to_end() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        let task = Task::find("piqa").unwrap();
        let mut seen = Vec::new();
        let options = options(data.path(), out.path());
        let summary =
            run(&task, &mut HashLm::new(512).local(4), &options, &mut |progress| seen.push(progress)).unwrap();
        let items = lines(&summary.items);
        assert_eq!((summary.n, items.len()), (3, 3));
        let end = seen.last().unwrap();
        assert_eq!((end.total, end.correct.unwrap() as u64), (3, summary.correct()["acc"]));
        // It is called before there is an item, too.
        assert!((0, None) == (seen[0].done, seen[0].correct) && seen[0].tokens > 0);
        seen.dedup_by_key(|progress| progress.done);
        assert_eq!(seen.iter().map(|progress| progress.done).collect::<Vec<_>>(), [0, 1, 2, 3]);
        for (metric, name) in summary.metrics.iter().zip(["acc", "acc_norm", "acc_bytes"]) {
            assert_eq!(metric.name, name);
            let right: u64 = items.iter().map(|item| item[name].as_u64().unwrap()).sum();
            assert_eq!(metric.value, right as f64 / 3.0);
            assert_eq!(summary.correct()[name], right);
        }
        for (i, item) in items.iter().enumerate() {
            assert_eq!(item["task"], "piqa");
            assert_eq!(item["index"], i);
            let ll: Vec<f64> = item["loglikelihood"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let best = u64::from(ll[1] > ll[0]);
            assert_eq!(item["acc"].as_u64().unwrap() == 1, best == item["gold"].as_u64().unwrap());
        }
        // The delimiter and the verbatim solution with its stray space are tokens of the continuation.
        assert_eq!(items[1]["n_tokens"], serde_json::json!([4, 2]));
        assert_eq!(items[1]["context_tokens"], "Question: Close it\nAnswer:".len());
    }

    #[test]
    fn a_generation_task_end_to_end() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        let task = Task::find("gsm8k").unwrap();
        let options = Options { limit: Some(2), ..options(data.path(), out.path()) };
        let mut model = HashLm::scripted(4096, " So 3, no: $4.\n#### 4\n\nQuestion: x").local(1);
        let summary = run(&task, &mut model, &options, &mut |_| ()).unwrap();
        let items = lines(&summary.items);
        assert_eq!((items.len(), summary.n, summary.n_total), (2, 2, 3));
        assert_eq!(items[1]["text"], " So 3, no: $4.\n#### 4\n\n");
        assert_eq!(items[1]["strict"], "4");
        assert_eq!(items[1]["gold"], "4");
        assert_eq!((&items[0]["strict_correct"], &items[1]["strict_correct"]), (&false.into(), &true.into()));
        assert_eq!(items[1]["shots"], serde_json::json!(testing::SECOND_SHOTS));
        let scores: Vec<_> = summary.metrics.iter().map(|m| (m.name.as_str(), m.value, m.stderr)).collect();
        assert_eq!(scores, [("strict", 0.5, Some(0.5)), ("flexible", 0.5, Some(0.5))]);
        assert_eq!(
            (summary.truncated_items, summary.tokens),
            (0, 2 * " So 3, no: $4.\n#### 4\n\nQuestion:".len() as u64)
        );
        assert_eq!((summary.disagreement, summary.invalid["strict"]), (Some(0.0), 0.0));

        let short = Options { max_new_tokens: Some(6), out: out.path().join("short"), ..options };
        let summary = run(&task, &mut HashLm::scripted(40, " 4 + 4").local(1), &short, &mut |_| ()).unwrap();
        let items = lines(&summary.items);
        assert_eq!(summary.truncated_items, 2);
        assert_eq!((&items[0]["finish"], &items[0]["text"]), (&"length".into(), &" 4 + 4".into()));
        assert_eq!(items[0]["prompt_tokens"], 34);
        assert!(items[0]["truncated_tokens"].as_u64().unwrap() > 100);
    }

    #[test]
    fn a_perplexity_end_to_end() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        let task = Task::find("perplexity").unwrap();
        let options = options(data.path(), out.path());
        let summary = run(&task, &mut HashLm::new(512).local(4), &options, &mut |_| ()).unwrap();
        let items = lines(&summary.items);
        assert_eq!((summary.n, items.len(), summary.tokens), (3, 3, 3 * 255));
        assert_eq!(summary.log_loss().unwrap().n, 3 * 255);
        assert!(summary.correct().is_empty());
        let nll: f64 = items.iter().map(|item| item["nll"].as_f64().unwrap()).sum();
        assert!((summary.metrics[0].value.ln() - nll / (3.0 * 255.0)).abs() < 1e-12);

        let options = Options { out: out.path().join("b"), ..options };
        let error = run(&task, &mut HashLm::new(511).local(4), &options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("context of 511"), "{error}");
    }

    #[test]
    fn bad_data_is_found_before_the_model_runs_or_a_file_is_made() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("piqa/valid-labels.lst"), "0\n1\n2\n").unwrap();
        let mut model = HashLm::new(512).local(4);
        let options = options(data.path(), &out.path().join("none"));
        let error = run(&Task::find("piqa").unwrap(), &mut model, &options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("item 2") && error.contains("the label is 2"), "{error}");
        assert_eq!(model.batch().model().tokens_computed, 0);
        assert!(!options.out.exists());
    }

    #[test]
    fn a_broken_model_is_named_with_its_item() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        let mut model = HashLm::new(512);
        model.fail_after = Some(70);
        let mut model = model.local(1);
        let options = options(data.path(), out.path());
        let error = run(&Task::find("piqa").unwrap(), &mut model, &options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.starts_with("task piqa, item 2: model: logits are not finite"), "{error}");
        // What was finished before is there.
        assert_eq!(lines(&out.path().join("items-piqa.jsonl.part")).len(), 2);
    }

    const TASKS: [&str; 3] = ["piqa", "gsm8k", "perplexity"];

    /// The items file of a whole run, a stop string after some tokens included.
    fn whole(task: &str, data: &Path, out: &Path, max_requests: usize) -> String {
        let task = Task::find(task).unwrap();
        let options = Options { max_new_tokens: Some(20), ..options(data, out) };
        let summary = run(&task, &mut HashLm::new(2048).local(max_requests), &options, &mut |_| ()).unwrap();
        std::fs::read_to_string(summary.items).unwrap()
    }

    #[test]
    fn batches_shards_and_resumed_runs_give_the_same_bytes() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        for name in TASKS {
            let folder = |what: &str| out.path().join(format!("{name}-{what}"));
            let expected = whole(name, data.path(), &folder("1"), 1);
            assert_eq!(expected.lines().count(), 3);
            assert_eq!(whole(name, data.path(), &folder("8"), 8), expected);
            let task = Task::find(name).unwrap();
            for count in [1, 2, 3, 5] {
                let shards = folder(&format!("shards-{count}"));
                for index in 1..=count {
                    let shard = Some(Shard { index, count });
                    let options = Options { max_new_tokens: Some(20), shard, ..options(data.path(), &shards) };
                    run(&task, &mut HashLm::new(2048).local(2), &options, &mut |_| ()).unwrap();
                }
                let lines = merge(name, std::slice::from_ref(&shards), &folder(&format!("merged-{count}"))).unwrap();
                assert_eq!(lines.len(), 3);
                let merged = store::items_path(&folder(&format!("merged-{count}")), name, None);
                assert_eq!(std::fs::read_to_string(merged).unwrap(), expected, "{name} in {count} shards");
                std::fs::remove_file(store::items_path(&shards, name, Some(Shard { index: 1, count }))).unwrap();
                std::fs::write(shards.join(format!("items-{name}.shard-1-of-1000000000000.jsonl")), "").unwrap();
                assert!(merge(name, &[shards], &folder("never")).is_err());
            }
            // Cut off anywhere, even within a line.
            let part = folder("cut").join(format!("items-{name}.jsonl.part"));
            std::fs::create_dir_all(folder("cut")).unwrap();
            for cut in (0..expected.len()).step_by(7) {
                std::fs::write(&part, &expected.as_bytes()[..cut]).unwrap();
                let options =
                    Options { max_new_tokens: Some(20), resume: true, ..options(data.path(), &folder("cut")) };
                let mut progress = Vec::new();
                let mut model = HashLm::new(2048).local(8);
                let summary = run(&task, &mut model, &options, &mut |p| progress.push(p)).unwrap();
                assert_eq!(std::fs::read_to_string(&summary.items).unwrap(), expected, "{name} cut at {cut}");
                let kept = expected.as_bytes()[..cut].iter().filter(|&&byte| byte == b'\n').count();
                progress.dedup_by_key(|p| p.done);
                assert!(progress.iter().all(|p| p.resumed == kept) && progress.iter().map(|p| p.done).eq(kept..=3));
                std::fs::remove_file(summary.items).unwrap();
            }
        }
    }

    #[test]
    fn other_models_tasks_prompts_and_lengths_are_not_mixed() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        let task = Task::find("gsm8k").unwrap();
        let first = Options { limit: Some(2), ..options(data.path(), out.path()) };
        let go = |task: &Task, options: &Options| {
            run(task, &mut HashLm::scripted(2048, "7").local(2), options, &mut |_| ()).map(|_| ())
        };
        go(&task, &first).unwrap();
        let refused = |task: &Task, options: &Options, what: &str| {
            let error = go(task, options).unwrap_err().to_string();
            assert!(error.contains("cannot resume, item 0") && error.contains(what), "{error}");
        };
        assert!(go(&task, &first).unwrap_err().to_string().contains("--resume"));
        let resume = Options { resume: true, limit: None, ..first };
        let other = |change: &dyn Fn(&mut Provenance)| {
            let mut options = resume.clone();
            change(&mut options.provenance);
            options
        };
        refused(&task, &other(&|p| p.kernel = "l".to_owned()), "kernel was \"k\" and is \"l\"");
        refused(&task, &other(&|p| p.model_hash = "i".to_owned()), "model_hash");
        refused(&task, &Options { max_new_tokens: Some(3), ..resume.clone() }, "max_new_tokens");
        refused(&Task { version: 9, ..task.clone() }, &resume, "task_version was 3 and is 9");
        let zero = std::fs::read_to_string(data.path().join("gsm8k/test.jsonl")).unwrap();
        std::fs::write(data.path().join("gsm8k/test.jsonl"), zero.replace("What is 1", "What's 1")).unwrap();
        refused(&task, &resume, "prompt_sha256");
        std::fs::write(data.path().join("gsm8k/test.jsonl"), zero).unwrap();
        // More items than the finished run had: only those are done.
        go(&task, &resume).unwrap();
        assert_eq!(lines(&store::items_path(out.path(), "gsm8k", None)).len(), 3);
        refused_shards(&task, data.path(), out.path());
    }

    /// Shards of two models are not merged.
    fn refused_shards(task: &Task, data: &Path, out: &Path) {
        for index in [1, 2] {
            let mut options = Options { shard: Some(Shard { index, count: 2 }), ..options(data, out) };
            options.provenance.model_hash = index.to_string();
            run(task, &mut HashLm::scripted(2048, "7").local(2), &options, &mut |_| ()).unwrap();
        }
        let error = merge("gsm8k", &[out.to_owned()], &out.join("merged")).unwrap_err().to_string();
        assert!(error.contains("another model_hash"), "{error}");
    }
}
