//! Tasks out of a generator: word problems in GSM8K's file format, physical common sense in PIQA's, and plain text, made of
//! templates of the project's own. The twins (`datasets/twins`) are trained and tested on them; any evaluation can run on them.
//!
//! Everything follows from a seed. A template instance is a template with the values that decide the answer: the numbers of a
//! word problem, the goal and the tool of a common-sense item. Its hash says whether it is for training or for testing, so that
//! no instance is ever in both, whatever the seeds and sizes.

mod common_sense;
mod plain_text;
mod word_problems;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::EvalError;
use crate::mt19937::PythonRandom;

/// What items are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To be judged by: one instance in eight.
    Test,
}

impl Split {
    /// The split that a template instance belongs to.
    pub fn of(instance: &str) -> Self {
        let hash = crate::prompt::sha256(instance);
        // The first hexadecimal digit is 0 or 8 for two of sixteen.
        if hash.starts_with(['0', '8']) { Self::Test } else { Self::Train }
    }
}

/// An item with the template instance it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn<T> {
    /// The template and the values that decide the answer.
    pub instance: String,
    /// The item.
    pub item: T,
}

/// A question with its worked answer, whose last line is `#### N`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WordProblem {
    /// The question.
    pub question: String,
    /// The answer, with `<<a+b=c>>` at every calculation.
    pub answer: String,
    /// Calculations in the answer.
    pub steps: usize,
}

/// A goal and two ways, one of which reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// The goal.
    pub goal: String,
    /// The two ways.
    pub solutions: [String; 2],
    /// The index of the right one.
    pub label: usize,
}

/// How many items of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Word problems.
    pub word_problems: usize,
    /// Common-sense items.
    pub common_sense: usize,
    /// Paragraphs.
    pub paragraphs: usize,
}

/// `n` different word problems.
pub fn word_problems(seed: u64, split: Split, n: usize) -> Result<Vec<Drawn<WordProblem>>, EvalError> {
    draw("word problems", 0, seed, split, n, word_problems::draw)
}

/// `n` different common-sense items.
pub fn common_sense(seed: u64, split: Split, n: usize) -> Result<Vec<Drawn<Choice>>, EvalError> {
    draw("common-sense items", 1, seed, split, n, common_sense::draw)
}

/// `n` different paragraphs.
pub fn paragraphs(seed: u64, split: Split, n: usize) -> Result<Vec<Drawn<String>>, EvalError> {
    draw("paragraphs", 2, seed, split, n, plain_text::draw)
}

/// `n` different rows of ten calculations each, to learn calculating from. They hold calculations of test instances too: what is
/// held out is a template with its values, not 47+38.
pub fn drills(seed: u64, n: usize) -> Result<Vec<Drawn<String>>, EvalError> {
    draw("drills", 3, seed, Split::Train, n, plain_text::drill)
}

/// Writes both splits as a data folder that every task can read: `gsm8k/{train,test}.jsonl`, `piqa/{train,valid}.jsonl` with
/// their `-labels.lst`, `perplexity/{train,text}.txt`; and `drills/train.txt` if there are to be any. Returns the files.
pub fn write(out: &Path, seed: u64, train: Sizes, n_drills: usize, test: Sizes) -> Result<Vec<PathBuf>, EvalError> {
    let mut files = Vec::new();
    let mut put = |name: &str, text: String| {
        let path = out.join(name);
        let parent = path.parent().unwrap_or(out);
        let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, text));
        files.push(path.clone());
        written.map_err(|source| EvalError::Output { path, source })
    };
    for (split, sizes, [gsm8k, piqa, text]) in
        [(Split::Train, train, ["train", "train", "train"]), (Split::Test, test, ["test", "valid", "text"])]
    {
        let problems = word_problems(seed, split, sizes.word_problems)?;
        // By hand, so that fields come in the order of the real files.
        let lines = problems.iter().map(|Drawn { item: WordProblem { question, answer, .. }, .. }| {
            format!("{{\"question\": {}, \"answer\": {}}}\n", json!(question), json!(answer))
        });
        put(&format!("gsm8k/{gsm8k}.jsonl"), lines.collect())?;
        let choices = common_sense(seed, split, sizes.common_sense)?;
        let lines = choices.iter().map(|Drawn { item: Choice { goal, solutions: [one, two], .. }, .. }| {
            format!("{{\"goal\": {}, \"sol1\": {}, \"sol2\": {}}}\n", json!(goal), json!(one), json!(two))
        });
        put(&format!("piqa/{piqa}.jsonl"), lines.collect())?;
        let labels = choices.iter().map(|Drawn { item, .. }| format!("{}\n", item.label));
        put(&format!("piqa/{piqa}-labels.lst"), labels.collect())?;
        let paragraphs = paragraphs(seed, split, sizes.paragraphs)?;
        let paragraphs: Vec<&str> = paragraphs.iter().map(|drawn| drawn.item.as_str()).collect();
        put(&format!("perplexity/{text}.txt"), paragraphs.join("\n\n") + "\n")?;
    }
    if n_drills > 0 {
        let drills = drills(seed, n_drills)?;
        put("drills/train.txt", drills.iter().map(|drawn| format!("{}\n", drawn.item)).collect())?;
    }
    Ok(files)
}

/// Draws until `n` different items of the split are there. Each kind and split has a stream of its own, so that the test items
/// do not depend on how many there are to train.
fn draw<T: Clone + Eq + std::hash::Hash>(
    what: &'static str,
    kind: u64,
    seed: u64,
    split: Split,
    n: usize,
    make: impl Fn(&mut Random) -> Drawn<T>,
) -> Result<Vec<Drawn<T>>, EvalError> {
    let mut random = Random(PythonRandom::new((seed << 8) + 2 * kind + u64::from(split == Split::Test)));
    let mut seen = HashSet::new();
    let mut drawn = Vec::new();
    let mut repeats = 0;
    while drawn.len() < n {
        let next = make(&mut random);
        if Split::of(&next.instance) != split {
            continue;
        }
        if seen.insert(next.item.clone()) {
            drawn.push(next);
            repeats = 0;
        } else {
            repeats += 1;
            if repeats == 10_000 {
                return Err(EvalError::Exhausted { what, n, found: drawn.len() });
            }
        }
    }
    Ok(drawn)
}

/// A person of the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Person {
    name: &'static str,
    he: &'static str,
    his: &'static str,
    him: &'static str,
}

const HE: [&str; 12] = ["Ben", "Tom", "Max", "Sam", "Leo", "Jan", "Otto", "Paul", "Omar", "Ravi", "Kofi", "Lars"];
const SHE: [&str; 12] = ["Ann", "Mia", "Eva", "Zoe", "Lea", "Nina", "Rosa", "Ida", "Amina", "Yuki", "Dora", "Kate"];

/// The draws that templates are made of.
struct Random(PythonRandom);

impl Random {
    /// A number from `low` to `high`, both included.
    fn number(&mut self, low: u32, high: u32) -> u32 {
        low + self.0.below(high - low + 1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len() as u32) as usize]
    }

    fn person(&mut self) -> Person {
        if self.0.below(2) == 0 {
            Person { name: self.pick(&HE), he: "he", his: "his", him: "him" }
        } else {
            Person { name: self.pick(&SHE), he: "she", his: "her", him: "her" }
        }
    }

    /// Two different people.
    fn people(&mut self) -> (Person, Person) {
        let one = self.person();
        loop {
            let other = self.person();
            if other != one {
                return (one, other);
            }
        }
    }

    /// Two different ones of a list.
    fn two<T: Copy + PartialEq>(&mut self, from: &[T]) -> (T, T) {
        let one = self.pick(from);
        loop {
            let other = self.pick(from);
            if other != one {
                return (one, other);
            }
        }
    }
}

/// `He` for `he`.
fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a calculation as `47+38=85`, which must hold.
    fn check_calculation(text: &str) -> i64 {
        let (left, right) = text.split_once('=').unwrap();
        let at = left.find(['+', '-', '*', '/']).unwrap();
        let (a, b): (i64, i64) = (left[..at].parse().unwrap(), left[at + 1..].parse().unwrap());
        let c: i64 = right.parse().unwrap();
        let holds = match left.as_bytes()[at] {
            b'+' => a + b == c,
            b'-' => a - b == c,
            b'*' => a * b == c,
            _ => b * c == a,
        };
        assert!(holds && (0..100).contains(&c), "{text}");
        c
    }

    /// What a reader of the file would calculate, from the text alone.
    fn check_answer(answer: &str) -> usize {
        let mut last = None;
        let mut steps = 0;
        for annotated in answer.split("<<").skip(1) {
            let (calculation, rest) = annotated.split_once(">>").unwrap();
            let c = check_calculation(calculation);
            assert!(rest.starts_with(&format!("{c} ")), "{answer}");
            last = Some(c);
            steps += 1;
        }
        assert!(answer.ends_with(&format!("\n#### {}", last.unwrap())), "{answer}");
        steps
    }

    #[test]
    fn every_drill_holds_and_all_four_operations_are_among_them() {
        let drills = drills(5, 1000).unwrap();
        for Drawn { item, .. } in &drills {
            let row: Vec<&str> = item.strip_prefix("Drill: ").unwrap().split(' ').collect();
            assert_eq!(row.len(), 10);
            for calculation in row {
                check_calculation(calculation);
            }
        }
        for op in ['+', '-', '*', '/'] {
            assert!(drills.iter().filter(|drawn| drawn.item.contains(op)).count() > 500, "{op}");
        }
    }

    #[test]
    fn every_calculation_holds_and_no_number_is_missing_from_the_question() {
        let mut steps = [0; 4];
        for Drawn { item, .. } in word_problems(5, Split::Train, 4000).unwrap() {
            assert_eq!(check_answer(&item.answer), item.steps);
            steps[item.steps] += 1;
            assert!(item.question.ends_with('?'));
            assert!(!item.question.contains(['{', '}', '\n']) && !item.question.contains("  "), "{}", item.question);
        }
        assert!(steps[0] == 0 && steps[1] > 2200 && steps[2] > 800 && steps[3] > 400, "{steps:?}");
    }

    #[test]
    fn train_and_test_share_no_instance_and_no_item() {
        let shared = |a: &[String], b: &[String]| a.iter().filter(|x| b.contains(x)).count();
        let (train, test) =
            (word_problems(1, Split::Train, 5000).unwrap(), word_problems(1, Split::Test, 500).unwrap());
        let instances = |drawn: &[Drawn<WordProblem>]| drawn.iter().map(|d| d.instance.clone()).collect::<Vec<_>>();
        let questions =
            |drawn: &[Drawn<WordProblem>]| drawn.iter().map(|d| d.item.question.clone()).collect::<Vec<_>>();
        assert_eq!(shared(&instances(&test), &instances(&train)), 0);
        assert_eq!(shared(&questions(&test), &questions(&train)), 0);
        let (train, test) = (common_sense(1, Split::Train, 3000).unwrap(), common_sense(1, Split::Test, 300).unwrap());
        let answers = |drawn: &[Drawn<Choice>]| {
            drawn.iter().map(|d| format!("{} {}", d.item.goal, d.item.solutions[d.item.label])).collect::<Vec<_>>()
        };
        assert_eq!(shared(&answers(&test), &answers(&train)), 0);
        // Both labels, or a model that always says the same would look good.
        let ones = test.iter().filter(|drawn| drawn.item.label == 1).count();
        assert!((120..180).contains(&ones), "{ones}");
        let (train, test) = (paragraphs(1, Split::Train, 3000).unwrap(), paragraphs(1, Split::Test, 300).unwrap());
        let texts = |drawn: Vec<Drawn<String>>| drawn.into_iter().map(|d| d.item).collect::<Vec<_>>();
        assert_eq!(shared(&texts(test), &texts(train)), 0);
    }

    #[test]
    fn a_seed_gives_the_same_items_and_test_items_do_not_depend_on_the_training_set() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = |n| Sizes { word_problems: n, common_sense: n, paragraphs: n };
        let read = |name: &str, file: &str| std::fs::read(folder.path().join(name).join(file)).unwrap();
        let files = write(&folder.path().join("a"), 3, sizes(20), 10, sizes(30)).unwrap();
        assert_eq!(files.len(), 9);
        write(&folder.path().join("b"), 3, sizes(50), 20, sizes(30)).unwrap();
        write(&folder.path().join("c"), 4, sizes(20), 10, sizes(30)).unwrap();
        for file in ["gsm8k/test.jsonl", "piqa/valid.jsonl", "piqa/valid-labels.lst", "perplexity/text.txt"] {
            assert_eq!(read("a", file), read("b", file), "{file}");
            assert_ne!(read("a", file), read("c", file), "{file}");
        }
        for file in ["gsm8k/train.jsonl", "drills/train.txt"] {
            assert!(read("b", file).starts_with(&read("a", file)), "{file}");
        }
    }

    #[test]
    fn the_tasks_read_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = Sizes { word_problems: 7, common_sense: 5, paragraphs: 3 };
        write(folder.path(), 1, sizes, 0, sizes).unwrap();
        for (name, n) in [("gsm8k", 7), ("gsm8k_zeroshot", 7), ("piqa", 5)] {
            let task = crate::Task::find(name).unwrap();
            assert_eq!(crate::prompt::PromptSet::load(&task, folder.path(), None).unwrap().total(), n, "{name}");
        }
    }

    #[test]
    fn more_than_the_templates_give_is_refused() {
        let error = common_sense(1, Split::Test, 100_000).unwrap_err().to_string();
        assert!(error.starts_with("100000 different common-sense items were asked for"), "{error}");
    }
}
