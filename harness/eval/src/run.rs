//! Runs a task: every item through the model, onto the disk, into the score.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::dataset;
use crate::error::EvalError;
use crate::generate;
use crate::items::{Answer, Answers, ChoiceItem, GenerateItem, ItemWriter, Provenance, WindowItem};
use crate::lm::LanguageModel;
use crate::perplexity;
use crate::prompt::PromptSet;
use crate::score;
use crate::stats::{Accuracy, LogLoss, Metric};
use crate::task::{Generate, Method, Perplexity, Task};

/// What to run and where results go.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that holds the data, `gsm8k/test.jsonl` and so on.
    pub data: PathBuf,
    /// The folder that results are written to.
    pub out: PathBuf,
    /// The first so many items only.
    pub limit: Option<usize>,
    /// Most tokens generated, where it is not the task's own number.
    pub max_new_tokens: Option<usize>,
    /// What answers.
    pub provenance: Provenance,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Items on disk.
    pub done: usize,
    /// Items in all.
    pub total: usize,
    /// The headline score so far: `acc`, the first extractor's accuracy, or the perplexity.
    pub score: f64,
}

/// The outcome of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The task's name.
    pub task: String,
    /// The task's version.
    pub version: u32,
    /// Items evaluated; windows of a perplexity.
    pub n: usize,
    /// Items in the whole set.
    pub n_total: usize,
    /// Scores, the headline one first.
    pub metrics: Vec<Metric>,
    /// Items whose prompt did not fit into the model's context.
    pub truncated_items: usize,
    /// Tokens scored or generated.
    pub tokens: usize,
    /// The file with a line per item.
    pub items: PathBuf,
    /// What the metrics were computed from.
    #[serde(skip)]
    counts: Counts,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    accuracies: Vec<(String, Accuracy)>,
    log_loss: Option<LogLoss>,
}

/// Runs `task` on `model`. `progress` is called after each item, when it is on disk.
pub fn run<M: LanguageModel>(
    task: &Task,
    model: &mut M,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, EvalError> {
    match &task.method {
        Method::MultipleChoice(_, _) => run_choices(task, model, options, progress),
        Method::Generate(_, generate) => run_generate(task, generate, model, options, progress),
        Method::Perplexity(perplexity) => run_perplexity(task, perplexity, model, options, progress),
    }
}

fn run_choices<M: LanguageModel>(
    task: &Task,
    model: &mut M,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, EvalError> {
    let set = PromptSet::load(task, &options.data, options.limit)?;
    // A mistake in the last item should not show after an hour.
    (0..set.len()).try_for_each(|index| set.prompt(index).and(set.choices(index)).map(drop))?;
    let delimiter = task.items().map_or("", |items| &items.prompt.delimiter);
    let mut writer = ItemWriter::create(&options.out, &task.name)?;
    let mut accuracies = [Accuracy::default(); 3];
    let mut summary = Summary::new(task, set.len(), set.total(), &writer);
    for index in 0..set.len() {
        let prompt = set.prompt(index)?;
        let (choices, gold) = set.choices(index)?;
        let pairs = choices
            .iter()
            .map(|choice| score::encode_pair(model, &prompt.text, &format!("{delimiter}{choice}")))
            .collect::<Result<Vec<_>, _>>();
        let pairs = pairs.map_err(|error| error.at(&task.name, index))?;
        let scores = score::loglikelihoods(model, &pairs).map_err(|error| error.at(&task.name, index))?;
        let correct = score::correct_by_length(&scores.loglikelihoods, &choices, gold);
        for (accuracy, correct) in accuracies.iter_mut().zip(correct) {
            accuracy.add(correct);
        }
        let n_tokens: Vec<_> = pairs.iter().map(|pair| pair.continuation.len()).collect();
        summary.count(n_tokens.iter().sum(), scores.truncated_tokens);
        let [acc, acc_norm, acc_bytes] = correct.map(u8::from);
        writer.write(&ChoiceItem {
            task: &task.name,
            task_version: task.version,
            index,
            prompt_sha256: prompt.sha256(),
            gold,
            loglikelihood: scores.loglikelihoods,
            acc,
            acc_norm,
            acc_bytes,
            n_tokens,
            context_tokens: pairs.first().map_or(0, |pair| pair.context.len()),
            truncated_tokens: scores.truncated_tokens,
            shots: &prompt.shots,
            provenance: &options.provenance,
        })?;
        progress(Progress { done: index + 1, total: set.len(), score: accuracies[0].value() });
    }
    for (name, accuracy) in ["acc", "acc_norm", "acc_bytes"].into_iter().zip(accuracies) {
        summary.accuracy(name, accuracy);
    }
    Ok(summary)
}

fn run_generate<M: LanguageModel>(
    task: &Task,
    method: &Generate,
    model: &mut M,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, EvalError> {
    let set = PromptSet::load(task, &options.data, options.limit)?;
    (0..set.len()).try_for_each(|index| set.prompt(index).and(set.answer(index)).map(drop))?;
    let max_new_tokens = options.max_new_tokens.unwrap_or(method.max_new_tokens);
    let mut writer = ItemWriter::create(&options.out, &task.name)?;
    let mut accuracies = vec![Accuracy::default(); method.extract.len()];
    let mut summary = Summary::new(task, set.len(), set.total(), &writer);
    for index in 0..set.len() {
        let prompt = set.prompt(index)?;
        let gold = method.normalise.normalise(&set.answer(index)?);
        let response = generate::greedy(model, &prompt.text, max_new_tokens, &method.stop)
            .map_err(|error| error.at(&task.name, index))?;
        let mut answers = Vec::new();
        for (extractor, accuracy) in method.extract.iter().zip(&mut accuracies) {
            let text = extractor.extract(&response.text);
            let correct = method.normalise.normalise(&text) == gold;
            accuracy.add(correct);
            answers.push(Answer { extractor: extractor.name(), text, correct });
        }
        summary.count(response.ids.len(), response.truncated_tokens);
        writer.write(&GenerateItem {
            task: &task.name,
            task_version: task.version,
            index,
            prompt_sha256: prompt.sha256(),
            generated_ids: &response.ids,
            text: &response.text,
            answers: Answers(answers),
            gold,
            finish: response.finish,
            max_new_tokens,
            prompt_tokens: response.prompt_tokens,
            truncated_tokens: response.truncated_tokens,
            shots: &prompt.shots,
            provenance: &options.provenance,
        })?;
        let score = accuracies.first().map_or(0.0, |accuracy| accuracy.value());
        progress(Progress { done: index + 1, total: set.len(), score });
    }
    for (extractor, accuracy) in method.extract.iter().zip(accuracies) {
        summary.accuracy(extractor.name(), accuracy);
    }
    Ok(summary)
}

fn run_perplexity<M: LanguageModel>(
    task: &Task,
    method: &Perplexity,
    model: &mut M,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, EvalError> {
    let path: &Path = &options.data.join(&method.text);
    let text = dataset::read_text(path)?;
    let windows = perplexity::windows(model, &text, method.window).map_err(|reason| EvalError::data(path, reason))?;
    let total = windows.len().min(options.limit.unwrap_or(usize::MAX));
    let text_sha256 = crate::prompt::sha256(&text);
    let mut writer = ItemWriter::create(&options.out, &task.name)?;
    let mut all = LogLoss::default();
    let mut summary = Summary::new(task, total, windows.len(), &writer);
    for (index, window) in windows.iter().take(total).enumerate() {
        let loss = perplexity::score_window(model, window).map_err(|error| error.at(&task.name, index))?;
        all.merge(loss);
        summary.count(loss.n, 0);
        writer.write(&WindowItem {
            task: &task.name,
            task_version: task.version,
            index,
            text_sha256: &text_sha256,
            window: method.window,
            n_tokens: loss.n,
            nll: loss.sum,
            nll_squares: loss.squares,
            provenance: &options.provenance,
        })?;
        progress(Progress { done: index + 1, total, score: all.perplexity().value });
    }
    summary.metrics.push(all.perplexity());
    summary.counts.log_loss = Some(all);
    Ok(summary)
}

impl Summary {
    /// How many items each metric counts as right; empty for a perplexity.
    pub fn correct(&self) -> BTreeMap<String, u64> {
        self.counts.accuracies.iter().map(|(name, accuracy)| (name.clone(), accuracy.correct as u64)).collect()
    }

    /// The sums of a perplexity.
    pub fn log_loss(&self) -> Option<LogLoss> {
        self.counts.log_loss
    }

    fn new(task: &Task, n: usize, n_total: usize, writer: &ItemWriter) -> Self {
        Self {
            task: task.name.clone(),
            version: task.version,
            n,
            n_total,
            metrics: Vec::new(),
            truncated_items: 0,
            tokens: 0,
            items: writer.path().to_owned(),
            counts: Counts::default(),
        }
    }

    fn accuracy(&mut self, name: &str, accuracy: Accuracy) {
        self.metrics.push(accuracy.metric(name));
        self.counts.accuracies.push((name.to_owned(), accuracy));
    }

    fn count(&mut self, tokens: usize, truncated_tokens: usize) {
        self.tokens += tokens;
        self.truncated_items += usize::from(truncated_tokens > 0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing::{self, HashLm, ScriptedLm};

    fn options(data: &Path, out: &Path) -> Options {
        let provenance = Provenance { kernel: "k".to_owned(), model: "m".to_owned(), model_hash: "h".to_owned() };
        Options { data: data.to_owned(), out: out.to_owned(), limit: None, max_new_tokens: None, provenance }
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
        let summary = run(&task, &mut HashLm::new(512), &options, &mut |progress| seen.push(progress)).unwrap();
        let items = lines(&summary.items);
        assert_eq!((summary.n, items.len(), seen.len()), (3, 3, 3));
        assert_eq!((seen[2].done, seen[2].total, seen[2].score), (3, 3, summary.metrics[0].value));
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
        let mut model = ScriptedLm::new(4096, " So 3, no: $4.\n#### 4\n\nQuestion: x");
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
        assert_eq!((summary.truncated_items, summary.tokens), (0, 2 * " So 3, no: $4.\n#### 4\n\nQuestion:".len()));

        let short = Options { max_new_tokens: Some(6), out: out.path().join("short"), ..options };
        let summary = run(&task, &mut ScriptedLm::new(40, " 4 + 4"), &short, &mut |_| ()).unwrap();
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
        std::fs::create_dir(data.path().join("perplexity")).unwrap();
        std::fs::write(data.path().join("perplexity/text.txt"), "to be or not to be ".repeat(100)).unwrap();
        let task = Task::find("perplexity").unwrap();
        let options = options(data.path(), out.path());
        let summary = run(&task, &mut HashLm::new(512), &options, &mut |_| ()).unwrap();
        let items = lines(&summary.items);
        assert_eq!((summary.n, items.len(), summary.tokens), (3, 3, 3 * 255));
        assert_eq!(summary.log_loss().unwrap().n, 3 * 255);
        assert!(summary.correct().is_empty());
        let nll: f64 = items.iter().map(|item| item["nll"].as_f64().unwrap()).sum();
        assert!((summary.metrics[0].value.ln() - nll / (3.0 * 255.0)).abs() < 1e-12);

        let options = Options { out: out.path().join("b"), ..options };
        let error = run(&task, &mut HashLm::new(511), &options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("context of 511"), "{error}");
    }

    #[test]
    fn bad_data_is_found_before_the_model_runs_or_a_file_is_made() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("piqa/valid-labels.lst"), "0\n1\n2\n").unwrap();
        let mut model = HashLm::new(512);
        let options = options(data.path(), &out.path().join("none"));
        let error = run(&Task::find("piqa").unwrap(), &mut model, &options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("item 2") && error.contains("the label is 2"), "{error}");
        assert_eq!(model.tokens_computed, 0);
        assert!(!options.out.exists());
    }

    #[test]
    fn a_broken_model_is_named_with_its_item() {
        let data = testing::data_folder();
        let out = tempfile::tempdir().unwrap();
        let mut model = HashLm::new(512);
        model.fail_after = Some(100);
        let options = options(data.path(), out.path());
        let error = run(&Task::find("piqa").unwrap(), &mut model, &options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.starts_with("task piqa, item 2: model: logits are not finite"), "{error}");
        // What was finished before is there.
        assert_eq!(lines(&out.path().join("items-piqa.jsonl")).len(), 2);
    }
}
