//! From a response to an answer, and from two answers to equal or not.
//!
//! Source: lm-evaluation-harness 0.4.13, `filters/extraction.py` (`RegexFilter`) and `api/metrics.py` (`exact_match`).

use regex::{NoExpand, Regex};
use serde::Deserialize;

/// What an extractor gives when it finds nothing.
pub const INVALID: &str = "[invalid]";

/// Names that the fields of [`crate::items::GenerateItem`] have already.
const RESERVED: &[&str] = &[
    "task",
    "task_version",
    "index",
    "generated_ids",
    "text",
    "gold",
    "shots",
    "prompt_tokens",
    "truncated_tokens",
    "finish",
    "kernel",
    "model",
    "model_hash",
];

/// Which of several matches counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// The first.
    First,
    /// The last.
    Last,
}

/// Finds an answer in a response.
#[derive(Clone, Debug)]
pub struct Extractor {
    name: String,
    pattern: Regex,
    take: Take,
}

impl Extractor {
    /// An extractor called `name` in results.
    pub fn new(name: &str, pattern: &str, take: Take) -> Result<Self, String> {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if !plain || RESERVED.contains(&name) || name.ends_with("_correct") {
            return Err(format!("an extractor's name becomes a field of results: '{name}' is taken or not a-z and _"));
        }
        let pattern = Regex::new(pattern).map_err(|error| format!("extractor '{name}': {error}"))?;
        Ok(Self { name: name.to_owned(), pattern, take })
    }

    /// Its name in results.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The answer in `response`: the whole match without groups, the group where there is one, the first non-empty of
    /// several; white space around it is removed.
    pub fn extract(&self, response: &str) -> String {
        let mut matches = self.pattern.captures_iter(response);
        let found = match self.take {
            Take::First => matches.next(),
            Take::Last => matches.last(),
        };
        let Some(found) = found else {
            return INVALID.to_owned();
        };
        let mut groups = found.iter().map(|group| group.map_or("", |group| group.as_str()));
        let whole = groups.next().unwrap_or_default();
        let answer = match found.len() {
            1 => whole,
            2 => groups.next().unwrap_or_default(),
            _ => groups.find(|group| !group.is_empty()).unwrap_or(INVALID),
        };
        answer.trim().to_owned()
    }
}

/// Decides whether two answers are the same.
#[derive(Clone, Debug)]
pub struct Normaliser {
    ignore: Vec<Regex>,
    match_case: bool,
}

impl Normaliser {
    /// Removes what the patterns match, in their order, and then capitals unless `match_case`.
    pub fn new(ignore: &[String], match_case: bool) -> Result<Self, String> {
        let compile = |pattern: &String| Regex::new(pattern).map_err(|error| format!("ignore '{pattern}': {error}"));
        Ok(Self { ignore: ignore.iter().map(compile).collect::<Result<_, _>>()?, match_case })
    }

    /// What is compared.
    pub fn normalise(&self, answer: &str) -> String {
        let mut text = answer.to_owned();
        for pattern in &self.ignore {
            text = pattern.replace_all(&text, NoExpand("")).into_owned();
        }
        if self.match_case { text } else { text.to_lowercase() }
    }

    /// Whether the two are the same after normalisation.
    pub fn same(&self, prediction: &str, gold: &str) -> bool {
        self.normalise(prediction) == self.normalise(gold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict() -> Extractor {
        Extractor::new("strict", r"#### (\-?[0-9\.\,]+)", Take::First).unwrap()
    }

    fn flexible() -> Extractor {
        Extractor::new("flexible", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", Take::Last).unwrap()
    }

    #[test]
    fn strict_takes_the_first_and_flexible_the_last() {
        for (text, first, last) in [
            ("", INVALID, INVALID),
            ("7 and 8", INVALID, "8"),
            ("#### 12\n#### 34", "12", "34"),
            ("#### 1,200.\nThen 5", "1,200.", "5"),
            ("####12", INVALID, "12"),
            ("costs $3.50!", INVALID, "$3.50"),
            ("$", INVALID, INVALID),
            ("wait...", INVALID, "..."),
            ("-5 --6", INVALID, "-6"),
        ] {
            assert_eq!(strict().extract(text), first, "{text:?}");
            assert_eq!(flexible().extract(text), last, "{text:?}");
        }
    }

    #[test]
    fn groups_decide_what_is_taken() {
        let extract = |pattern: &str, text: &str| Extractor::new("x", pattern, Take::First).unwrap().extract(text);
        assert_eq!(extract("a +", "ba  c"), "a");
        assert_eq!(extract("a( *)", "ba  c"), "");
        assert_eq!(extract("(x)?(y)?a", "ba"), INVALID);
        assert_eq!(extract("(x)?(y)?a", "ya"), "y");
    }

    #[test]
    fn answers_are_compared_without_commas_dollars_and_reasoning() {
        let ignore = [",", r"\$", "(?s).*#### ", r"\.$"].map(str::to_owned);
        let normaliser = Normaliser::new(&ignore, false).unwrap();
        assert_eq!(normaliser.normalise("Two\nlines #### 1\n#### $1,234."), "1234");
        assert!(normaliser.same("1,234.", "He has 1234\n#### 1,234"));
        assert!(!normaliser.same("1234.0", "#### 1234"));
        assert!(normaliser.same("ABC", "abc"));
        assert!(!Normaliser::new(&ignore, true).unwrap().same("ABC", "abc"));
        // Only one dot goes, and only at the end.
        assert_eq!(normaliser.normalise("12.."), "12.");
    }
}
