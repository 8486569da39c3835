//! What is recorded of each item: one JSON line, on disk as soon as the item is finished (see [`crate::store`]).

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

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

/// A line read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The item's place in its file, from 0.
    pub index: usize,
    /// The line without its end, byte for byte.
    pub raw: String,
    /// Its fields, in their order.
    fields: Vec<(String, Value)>,
}

impl Line {
    /// Reads a line.
    pub fn parse(raw: &str) -> Result<Self, String> {
        let Fields(fields) = serde_json::from_str(raw).map_err(|error| error.to_string())?;
        let mut line = Self { index: 0, raw: raw.to_owned(), fields };
        line.index = line.number("index").ok_or("it has no index")? as usize;
        Ok(line)
    }

    /// A field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// A field that is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A field that is a number from 0.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(Value::as_u64)
    }

    /// The extractors of a generation task, the headline one first.
    pub fn extractors(&self) -> Vec<&str> {
        self.fields.iter().filter_map(|(name, _)| name.strip_suffix("_correct")).collect()
    }

    /// What it counts as right or wrong, the headline metric first; nothing for a window.
    pub fn verdicts(&self) -> Vec<(&str, bool)> {
        let choice = |name| Some((name, self.number(name)? == 1));
        let mut verdicts: Vec<_> = ["acc", "acc_norm", "acc_bytes"].into_iter().filter_map(choice).collect();
        verdicts.extend(
            self.fields.iter().filter_map(|(name, value)| Some((name.strip_suffix("_correct")?, value.as_bool()?))),
        );
        verdicts
    }
}

/// An object's fields in the order in which they stand.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
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
        let raw = serde_json::to_string(&item).unwrap();
        let line = Line::parse(&raw).unwrap();
        assert_eq!((line.index, line.raw.as_str(), line.text("gold")), (7, raw.as_str(), Some("5")));
        assert_eq!(line.extractors(), ["strict", "flexible"]);
        assert_eq!(line.verdicts(), [("strict", true), ("flexible", false)]);
        assert!(Line::parse("{\"task\":\"x\"}").is_err() && Line::parse(&raw[..50]).is_err());
        assert_eq!(
            raw,
            concat!(
                r##"{"task":"gsm8k","task_version":3,"index":7,"prompt_sha256":"ab","generated_ids":[1,2],"text":"x\n#### 5","##,
                r#""strict":"5","flexible":"[invalid]","strict_correct":true,"flexible_correct":false,"gold":"5","finish":"stop","#,
                r#""max_new_tokens":256,"prompt_tokens":9,"truncated_tokens":0,"shots":[3,1],"kernel":"k","model":"m","model_hash":"h"}"#
            )
        );
    }
}
