//! Tasks as data: what a `datasets/tasks/*.toml` file may say. The methods are three (score given choices, generate and
//! extract, perplexity of a text); everything that makes a task out of one of them is in its file.
//!
//! `context`, `answer` are Jinja templates and `choices`, `gold` Jinja expressions over the fields of an item, as in the task
//! files of lm-evaluation-harness, so that a task can be carried over by copying its strings.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::EvalError;
use crate::extract::{Extractor, Normaliser};
use crate::template::Templates;

/// A checked task definition.
#[derive(Clone, Debug)]
pub struct Task {
    /// The name in records and file names.
    pub name: String,
    /// Goes up when scores of the same model change; results of two versions are never compared.
    pub version: u32,
    /// One line for people.
    pub title: String,
    /// Where the rules come from.
    pub source: String,
    /// What is done with each item.
    pub method: Method,
}

/// What is done with each item.
#[derive(Clone, Debug)]
pub enum Method {
    /// The log-likelihood of each choice after the context.
    MultipleChoice(Items, MultipleChoice),
    /// Greedy generation, and what extractors find in it.
    Generate(Items, Generate),
    /// How well the model predicts a text.
    Perplexity(Perplexity),
}

/// Where items come from and how they become prompts.
#[derive(Clone, Debug)]
pub struct Items {
    /// The items.
    pub data: Source,
    /// The prompt.
    pub prompt: Prompt,
    /// Solved examples before the prompt.
    pub fewshot: Option<Fewshot>,
}

/// A file of items: one JSON object per line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file, under the data folder.
    pub items: PathBuf,
    /// A file with an integer per line: each item's field `label`.
    pub labels: Option<PathBuf>,
    /// Fields that every item must have.
    pub fields: Vec<String>,
}

/// How an item is put to the model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Template of everything before the answer.
    pub context: String,
    /// Between context and answer.
    #[serde(default = "space")]
    pub delimiter: String,
    /// Template of what stands once before everything, examples included.
    pub description: Option<String>,
    /// Whether the prompt is put in the model's chat format, and how.
    pub chat: Option<Chat>,
}

/// How a prompt becomes a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chat {
    /// One message of the user holds everything.
    Single,
    /// Every example is a question of the user and an answer of the assistant.
    Turns,
}

/// Solved examples before the prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fewshot {
    /// Where they come from; another file than the items.
    pub data: Source,
    /// How many.
    pub count: u32,
    /// Which.
    pub draw: Draw,
    /// Behind each.
    #[serde(default = "blank_line")]
    pub separator: String,
    /// Template of an example's context, where it is not the item's.
    pub context: Option<String>,
    /// Template of an example's answer, where it is not the item's (of a generation task; the right choice otherwise).
    pub answer: Option<String>,
}

/// Which solved examples an item gets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// The first of the file, the same for every item.
    First,
    /// The first of those that have the item's value in this field, such as its subject.
    FirstOf(String),
    /// `sample()` of CPython's `random.Random(seed)`, once per item in order; the generator's state carries over.
    PythonRandom(u64),
}

/// Scoring of given choices.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultipleChoice {
    /// Expression: the list of choices.
    pub choices: String,
    /// Expression: the index of the right one.
    pub gold: String,
}

/// Generation and extraction.
#[derive(Clone, Debug)]
pub struct Generate {
    /// Template of the reference answer.
    pub answer: String,
    /// Most tokens generated.
    pub max_new_tokens: usize,
    /// Generation ends where one of these appears; the text before it counts.
    pub stop: Vec<String>,
    /// How answers are found in the text, the headline one first.
    pub extract: Vec<Extractor>,
    /// What is taken away from answers before they are compared.
    pub normalise: Normaliser,
}

/// Perplexity of a text.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perplexity {
    /// The text, under the data folder.
    pub text: PathBuf,
    /// Tokens per window.
    pub window: usize,
}

fn space() -> String {
    " ".to_owned()
}

fn blank_line() -> String {
    "\n\n".to_owned()
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    name: String,
    version: u32,
    title: String,
    source: String,
    data: Option<Source>,
    prompt: Option<Prompt>,
    fewshot: Option<Fewshot>,
    multiple_choice: Option<MultipleChoice>,
    generate: Option<GenerateFile>,
    perplexity: Option<Perplexity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerateFile {
    answer: String,
    max_new_tokens: usize,
    stop: Vec<String>,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    match_case: bool,
    extract: Vec<ExtractFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtractFile {
    name: String,
    pattern: String,
    take: crate::extract::Take,
}

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../datasets/tasks/", $name, ".toml")))),*]
    };
}

/// The tasks of `datasets/tasks/`, part of the binary so that it works from any folder.
const BUILTIN: &[(&str, &str)] = builtin![
    "piqa",
    "gsm8k",
    "gsm8k_cot",
    "gsm8k_zeroshot",
    "gsm8k_4shot_chat",
    "perplexity",
    "wikitext",
    "word_problems",
    "common_sense",
    "plain_text",
];

impl Task {
    /// Names of the tasks that come with ternbench.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// A task that comes with ternbench, by name, or one of the user's own, by the path of its `.toml` file.
    pub fn find(name: &str) -> Result<Self, EvalError> {
        if let Some((_, text)) = BUILTIN.iter().find(|(builtin, _)| *builtin == name) {
            return Self::parse(text, name);
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text =
                std::fs::read_to_string(path).map_err(|source| EvalError::Read { path: path.to_owned(), source })?;
            return Self::parse(&text, name);
        }
        let known = Self::builtin_names().collect::<Vec<_>>().join(", ");
        Err(EvalError::task(name, format!("no such task; there are {known}, or give the path of a .toml file")))
    }

    /// Reads and checks a definition; `origin` is what errors call it.
    pub fn parse(text: &str, origin: &str) -> Result<Self, EvalError> {
        let file: TaskFile = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            EvalError::task(origin, format!("line {line}: {}", error.message()))
        })?;
        file.check().map_err(|reason| EvalError::task(origin, reason))
    }

    /// How many solved examples stand before each item.
    pub fn n_fewshot(&self) -> u32 {
        self.items().and_then(|items| items.fewshot.as_ref()).map_or(0, |fewshot| fewshot.count)
    }

    /// Where its items come from; a perplexity has none.
    pub fn items(&self) -> Option<&Items> {
        match &self.method {
            Method::MultipleChoice(items, _) | Method::Generate(items, _) => Some(items),
            Method::Perplexity(_) => None,
        }
    }
}

impl TaskFile {
    fn check(self) -> Result<Task, String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return Err(format!("name '{}' becomes a file name: use a-z, 0-9 and _", self.name));
        }
        let has_items = self.data.is_some() && self.prompt.is_some();
        let items = self.data.zip(self.prompt).map(|(data, prompt)| Items { data, prompt, fewshot: self.fewshot });
        let method = match (items, self.multiple_choice, self.generate, self.perplexity) {
            (Some(items), Some(_), None, None) if items.prompt.chat.is_some() => {
                return Err("choices are scored after plain text: chat is for [generate]".to_owned());
            }
            (Some(items), Some(choice), None, None) => {
                Templates::check_expression(&choice.choices)?;
                Templates::check_expression(&choice.gold)?;
                Method::MultipleChoice(items, choice)
            }
            (Some(items), None, Some(generate), None) => Method::Generate(items, generate.check()?),
            (None, None, None, Some(perplexity)) => {
                if perplexity.window < 4 {
                    return Err(format!("window is {}, at least 4 tokens are needed", perplexity.window));
                }
                Method::Perplexity(perplexity)
            }
            _ if !has_items => {
                return Err("[data] and [prompt], or else [perplexity], are needed".to_owned());
            }
            _ => {
                return Err("exactly one of [multiple_choice], [generate] and [perplexity] is needed".to_owned());
            }
        };
        let task = Task { name: self.name, version: self.version, title: self.title, source: self.source, method };
        if let Some(items) = task.items() {
            items.check()?;
        }
        Ok(task)
    }
}

impl Items {
    fn check(&self) -> Result<(), String> {
        Templates::check_template(&self.prompt.context)?;
        self.prompt.description.iter().try_for_each(|description| Templates::check_template(description))?;
        let Some(fewshot) = &self.fewshot else {
            return Ok(());
        };
        if fewshot.data.items == self.data.items {
            // lm-evaluation-harness then draws one more and leaves the item itself out: not needed by any task here.
            return Err("examples cannot come from the file of the items".to_owned());
        }
        for template in [&fewshot.context, &fewshot.answer].into_iter().flatten() {
            Templates::check_template(template)?;
        }
        Ok(())
    }
}

impl GenerateFile {
    fn check(self) -> Result<Generate, String> {
        Templates::check_template(&self.answer)?;
        if self.max_new_tokens == 0 {
            return Err("max_new_tokens is 0".to_owned());
        }
        if self.extract.is_empty() {
            return Err("at least one [[generate.extract]] is needed".to_owned());
        }
        let mut extract: Vec<Extractor> = Vec::new();
        for ExtractFile { name, pattern, take } in self.extract {
            if extract.iter().any(|other| other.name() == name) {
                return Err(format!("two extractors are called '{name}'"));
            }
            extract.push(Extractor::new(&name, &pattern, take)?);
        }
        Ok(Generate {
            answer: self.answer,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop,
            extract,
            normalise: Normaliser::new(&self.ignore, self.match_case)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_tasks_are_valid_and_named_like_their_files() {
        for name in Task::builtin_names() {
            let task = Task::find(name).unwrap();
            assert_eq!(task.name, name);
            assert!(!task.title.is_empty() && !task.source.is_empty());
            let shots = [("gsm8k", 5), ("gsm8k_cot", 8), ("gsm8k_4shot_chat", 4)];
            let expected = shots.iter().find(|(with_shots, _)| *with_shots == name).map_or(0, |(_, n)| *n);
            assert_eq!(task.n_fewshot(), expected);
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/tasks");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let stem = path.file_stem().unwrap().to_str().unwrap();
            assert!(Task::builtin_names().any(|name| name == stem), "{} is in no list", path.display());
        }
    }

    #[test]
    fn mistakes_are_named() {
        let piqa = BUILTIN[0].1;
        let gsm8k = BUILTIN[1].1;
        for (text, from, to, expected) in [
            (piqa, "name = \"piqa\"", "name = \"../x\"", "use a-z"),
            (piqa, "version = 1", "version = 'x'", "line 3:"),
            (piqa, "version = 1", "version = 1\nvresion = 2", "vresion"),
            (piqa, "[multiple_choice]\n", "[other]\n", "other"),
            (piqa, "[sol1, sol2]", "[sol1, sol2", "[sol1, sol2"),
            (piqa, "{{ goal }}", "{{ goal ", "{{ goal"),
            (piqa, "gold = \"label\"", "gold = \"label\"\n[perplexity]\ntext = 'a'\nwindow = 8", "exactly one"),
            (gsm8k, "'\\$'", "'(\\$'", "ignore"),
            (gsm8k, "'#### (\\-", "'#### ((\\-", "extractor 'strict'"),
            (gsm8k, "name = \"flexible\"", "name = \"strict\"", "two extractors"),
            (gsm8k, "name = \"flexible\"", "name = \"text\"", "'text'"),
            (gsm8k, "gsm8k/train", "gsm8k/test", "examples"),
            (gsm8k, "max_new_tokens = 256", "max_new_tokens = 0", "max_new_tokens"),
            (gsm8k, "python_random", "random", "random"),
            (piqa, "[prompt]", "[prompt]\nchat = \"turns\"", "plain text"),
        ] {
            assert!(text.contains(from), "{from}");
            let message = Task::parse(&text.replace(from, to), "t").unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        let message = Task::find("piqq").unwrap_err().to_string();
        assert!(message.contains("piqa, gsm8k"), "{message}");
        assert!(Task::find("nowhere.toml").unwrap_err().to_string().contains("nowhere.toml"));
    }
}
