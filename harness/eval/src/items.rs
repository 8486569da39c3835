//! What is recorded of each item: one JSON line, on disk as soon as the item is finished.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::error::EvalError;
use crate::generate::Finish;

/// What answered: in every line, so that a line can be understood alone and runs of different things are never mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Provenance {
    /// The kernel that really ran.
    pub kernel: String,
    /// The model's name.
    pub model: String,
    /// What identifies its weights.
    pub model_hash: String,
}

/// A line of a multiple choice task.
#[derive(Clone, Debug, Serialize)]
pub struct ChoiceItem<'a> {
    /// The task's name.
    pub task: &'a str,
    /// The task's version.
    pub task_version: u32,
    /// The item's place in its file, from 0.
    pub index: usize,
    /// sha256 of the prompt's text.
    pub prompt_sha256: String,
    /// Which choice is right.
    pub gold: usize,
    /// The log-likelihood of each choice.
    pub loglikelihood: Vec<f32>,
    /// 1 when the likeliest choice is the right one.
    pub acc: u8,
    /// The same with log-likelihoods per code point of the choice.
    pub acc_norm: u8,
    /// The same with log-likelihoods per byte of the choice.
    pub acc_bytes: u8,
    /// Tokens scored of each choice.
    pub n_tokens: Vec<usize>,
    /// Tokens of the context.
    pub context_tokens: usize,
    /// Tokens left out from the start, where the model's context is too short.
    pub truncated_tokens: usize,
    /// Which examples the prompt begins with.
    pub shots: &'a [u32],
    /// What answered.
    #[serde(flatten)]
    pub provenance: &'a Provenance,
}

/// A line of a generation task.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateItem<'a> {
    /// The task's name.
    pub task: &'a str,
    /// The task's version.
    pub task_version: u32,
    /// The item's place in its file, from 0.
    pub index: usize,
    /// sha256 of the prompt's text.
    pub prompt_sha256: String,
    /// Every token generated, the ones that ended it included.
    pub generated_ids: &'a [u32],
    /// The response: the text before the stop.
    pub text: &'a str,
    /// `NAME` and `NAME_correct` of every extractor.
    #[serde(flatten)]
    pub answers: Answers<'a>,
    /// The reference answer as it is compared.
    pub gold: String,
    /// What ended the generation.
    pub finish: Finish,
    /// The most tokens that were allowed.
    pub max_new_tokens: usize,
    /// Tokens of the prompt as given to the model.
    pub prompt_tokens: usize,
    /// Tokens of the prompt left out from its start, where the model's context is too short.
    pub truncated_tokens: usize,
    /// Which examples the prompt begins with.
    pub shots: &'a [u32],
    /// What answered.
    #[serde(flatten)]
    pub provenance: &'a Provenance,
}

/// What an extractor found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The extractor.
    pub extractor: &'a str,
    /// The answer, or `[invalid]`.
    pub text: String,
    /// Whether it is the reference answer.
    pub correct: bool,
}

/// The answers of all extractors: as fields `a`, `b`, `a_correct`, `b_correct`.
#[derive(Clone, Debug)]
pub struct Answers<'a>(pub Vec<Answer<'a>>);

impl Serialize for Answers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2 * self.0.len()))?;
        for answer in &self.0 {
            map.serialize_entry(answer.extractor, &answer.text)?;
        }
        for answer in &self.0 {
            map.serialize_entry(&format!("{}_correct", answer.extractor), &answer.correct)?;
        }
        map.end()
    }
}

/// A line of a perplexity task: one window of the text.
#[derive(Clone, Debug, Serialize)]
pub struct WindowItem<'a> {
    /// The task's name.
    pub task: &'a str,
    /// The task's version.
    pub task_version: u32,
    /// The window, from 0.
    pub index: usize,
    /// sha256 of the text file.
    pub text_sha256: &'a str,
    /// Tokens per window.
    pub window: usize,
    /// Tokens scored in this one.
    pub n_tokens: usize,
    /// Sum of their negative log-likelihoods.
    pub nll: f64,
    /// Sum of the squares of those.
    pub nll_squares: f64,
    /// What answered.
    #[serde(flatten)]
    pub provenance: &'a Provenance,
}

/// Writes items to `items-<task>.jsonl`.
#[derive(Debug)]
pub struct ItemWriter {
    path: PathBuf,
    file: File,
}

impl ItemWriter {
    /// Creates the file in `folder`, and the folder. Results that are there already are never touched.
    pub fn create(folder: &Path, task: &str) -> Result<Self, EvalError> {
        std::fs::create_dir_all(folder).map_err(|source| EvalError::Output { path: folder.to_owned(), source })?;
        let path = folder.join(format!("items-{task}.jsonl"));
        match File::create_new(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(EvalError::OutputExists { path }),
            Err(source) => Err(EvalError::Output { path, source }),
        }
    }

    /// Appends one line. It is with the operating system when this returns: killing the process cannot lose it.
    pub fn write(&mut self, item: &impl Serialize) -> Result<(), EvalError> {
        let output = |source| EvalError::Output { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(item).map_err(|error| output(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(output)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_in_the_promised_order() {
        let provenance = Provenance { kernel: "k".to_owned(), model: "m".to_owned(), model_hash: "h".to_owned() };
        let item = GenerateItem {
            task: "gsm8k",
            task_version: 3,
            index: 7,
            prompt_sha256: "ab".to_owned(),
            generated_ids: &[1, 2],
            text: "x\n#### 5",
            answers: Answers(vec![
                Answer { extractor: "strict", text: "5".to_owned(), correct: true },
                Answer { extractor: "flexible", text: "[invalid]".to_owned(), correct: false },
            ]),
            gold: "5".to_owned(),
            finish: Finish::Stop,
            max_new_tokens: 256,
            prompt_tokens: 9,
            truncated_tokens: 0,
            shots: &[3, 1],
            provenance: &provenance,
        };
        assert_eq!(
            serde_json::to_string(&item).unwrap(),
            concat!(
                r##"{"task":"gsm8k","task_version":3,"index":7,"prompt_sha256":"ab","generated_ids":[1,2],"text":"x\n#### 5","##,
                r#""strict":"5","flexible":"[invalid]","strict_correct":true,"flexible_correct":false,"gold":"5","finish":"stop","#,
                r#""max_new_tokens":256,"prompt_tokens":9,"truncated_tokens":0,"shots":[3,1],"kernel":"k","model":"m","model_hash":"h"}"#
            )
        );
    }

    #[test]
    fn lines_are_on_disk_at_once_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/deep");
        let mut writer = ItemWriter::create(&out, "t").unwrap();
        writer.write(&1).unwrap();
        writer.write(&"a\nb").unwrap();
        assert_eq!(std::fs::read_to_string(out.join("items-t.jsonl")).unwrap(), "1\n\"a\\nb\"\n");
        let error = ItemWriter::create(&out, "t").unwrap_err().to_string();
        assert!(error.contains("items-t.jsonl: there already") && error.contains("--out"), "{error}");
        let error = ItemWriter::create(&out.join("items-t.jsonl"), "t").unwrap_err().to_string();
        assert!(error.contains("cannot write results"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut writer = ItemWriter { path: "full".into(), file };
        let error = writer.write(&1).unwrap_err().to_string();
        assert!(error.starts_with("full: cannot write results: "), "{error}");
    }
}
