//! A task's items as questions, and answers as lines.

use serde_json::{Value, json};

use crate::backend::{Answer, Backend, Question};
use crate::dataset;
use crate::error::EvalError;
use crate::items::{self, Answers, ChoiceItem, GenerateItem, Line, WindowItem};
use crate::perplexity;
use crate::prompt::PromptSet;
use crate::run::Options;
use crate::score;
use crate::store::Store;
use crate::task::{Generate, Method, Task};

/// A task with its data, ready to be asked.
pub struct Work<'t> {
    task: &'t Task,
    options: &'t Options,
    kind: Kind<'t>,
}

enum Kind<'t> {
    Choices(PromptSet<'t>),
    Generate { set: PromptSet<'t>, method: &'t Generate, max_new_tokens: usize },
    Windows { windows: Vec<Vec<u32>>, limit: usize, window: usize, text_sha256: String },
}

impl<'t> Work<'t> {
    /// Reads the data of `task` and checks every item.
    pub fn prepare(task: &'t Task, backend: &impl Backend, options: &'t Options) -> Result<Self, EvalError> {
        let set = || {
            let set = PromptSet::load(task, &options.data, options.limit)?;
            set.check().map(|()| set)
        };
        let kind = match &task.method {
            Method::MultipleChoice(..) => Kind::Choices(set()?),
            Method::Generate(_, method) => {
                let max_new_tokens = options.max_new_tokens.unwrap_or(method.max_new_tokens);
                Kind::Generate { set: set()?, method, max_new_tokens }
            }
            Method::Perplexity(method) => {
                let path = options.data.join(&method.text);
                let text = dataset::read_text(&path)?;
                let windows = perplexity::windows(backend, &text, method.window)
                    .map_err(|reason| EvalError::data(&path, reason))?;
                let limit = windows.len().min(options.limit.unwrap_or(usize::MAX));
                Kind::Windows { windows, limit, window: method.window, text_sha256: crate::prompt::sha256(&text) }
            }
        };
        Ok(Self { task, options, kind })
    }

    /// Items to do, of all shards.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Choices(set) | Kind::Generate { set, .. } => set.len(),
            Kind::Windows { limit, .. } => *limit,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items in the whole set.
    pub fn total(&self) -> usize {
        match &self.kind {
            Kind::Choices(set) | Kind::Generate { set, .. } => set.total(),
            Kind::Windows { windows, .. } => windows.len(),
        }
    }

    /// What item `index` asks.
    pub fn question(&self, index: usize) -> Result<Question, EvalError> {
        Ok(match &self.kind {
            Kind::Choices(set) => {
                let delimiter = self.task.items().map_or("", |items| &items.prompt.delimiter);
                let (choices, _) = set.choices(index)?;
                let continuations = choices.iter().map(|choice| format!("{delimiter}{choice}")).collect();
                Question::Choices { context: set.prompt(index)?.text, continuations }
            }
            Kind::Generate { set, method, max_new_tokens } => Question::Generate {
                prompt: set.prompt(index)?.text,
                max_new_tokens: *max_new_tokens,
                stop: method.stop.clone(),
            },
            Kind::Windows { windows, .. } => Question::Window(windows[index].clone()),
        })
    }

    /// Writes the line of item `index`.
    pub fn write(&self, store: &mut Store, index: usize, answer: Answer) -> Result<Line, EvalError> {
        let (task, task_version, provenance) = (&self.task.name, self.task.version, &self.options.provenance);
        match (&self.kind, answer) {
            (Kind::Choices(set), Answer::Scores(scores)) => {
                let prompt = set.prompt(index)?;
                let (choices, gold) = set.choices(index)?;
                let [acc, acc_norm, acc_bytes] =
                    score::correct_by_length(&scores.loglikelihoods, &choices, gold).map(u8::from);
                let item = ChoiceItem {
                    task,
                    task_version,
                    index,
                    prompt_sha256: prompt.sha256(),
                    gold,
                    loglikelihood: scores.loglikelihoods,
                    acc,
                    acc_norm,
                    acc_bytes,
                    n_tokens: scores.n_tokens,
                    context_tokens: scores.context_tokens,
                    truncated_tokens: scores.truncated_tokens,
                    shots: &prompt.shots,
                    provenance,
                };
                store.write(index, &item)
            }
            (Kind::Generate { set, method, max_new_tokens }, Answer::Response(response)) => {
                let prompt = set.prompt(index)?;
                let gold = method.normalise.normalise(&set.answer(index)?);
                let answer = |extractor: &'t crate::extract::Extractor| {
                    let text = extractor.extract(&response.text);
                    let correct = method.normalise.normalise(&text) == gold;
                    items::Answer { extractor: extractor.name(), text, correct }
                };
                let item = GenerateItem {
                    task,
                    task_version,
                    index,
                    prompt_sha256: prompt.sha256(),
                    generated_ids: &response.ids,
                    text: &response.text,
                    answers: Answers(method.extract.iter().map(answer).collect()),
                    gold: gold.clone(),
                    finish: response.finish,
                    max_new_tokens: *max_new_tokens,
                    prompt_tokens: response.prompt_tokens,
                    truncated_tokens: response.truncated_tokens,
                    shots: &prompt.shots,
                    provenance,
                };
                store.write(index, &item)
            }
            (Kind::Windows { window, text_sha256, .. }, Answer::Loss(loss)) => {
                let item = WindowItem {
                    task,
                    task_version,
                    index,
                    text_sha256,
                    window: *window,
                    n_tokens: loss.n,
                    nll: loss.sum,
                    nll_squares: loss.squares,
                    provenance,
                };
                store.write(index, &item)
            }
            _ => Err(EvalError::Model("the answer is not of the question's kind".to_owned())),
        }
    }

    /// Checks that a line of an earlier run is what this run would have asked, of the same model.
    pub fn check(&self, line: &Line) -> Result<(), String> {
        let provenance = &self.options.provenance;
        let mut expected = vec![
            ("task", json!(self.task.name)),
            ("task_version", json!(self.task.version)),
            ("model", json!(provenance.model)),
            ("model_hash", json!(provenance.model_hash)),
            ("kernel", json!(provenance.kernel)),
        ];
        match &self.kind {
            Kind::Choices(set) | Kind::Generate { set, .. } if line.index < set.len() => {
                let prompt = set.prompt(line.index).map_err(|error| error.to_string())?;
                expected.push(("prompt_sha256", json!(prompt.sha256())));
            }
            Kind::Windows { window, text_sha256, .. } => {
                expected.extend([("window", json!(window)), ("text_sha256", json!(text_sha256))]);
            }
            _ => {}
        }
        if let Kind::Generate { max_new_tokens, .. } = &self.kind {
            expected.push(("max_new_tokens", json!(max_new_tokens)));
        }
        for (field, now) in expected {
            let before = line.get(field).unwrap_or(&Value::Null);
            if *before != now {
                return Err(format!("{field} was {before} and is {now} now: results are not mixed"));
            }
        }
        Ok(())
    }
}
