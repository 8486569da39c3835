//! From items to prompts: templates, few-shot examples and their draw.

use std::path::Path;

use sha2::{Digest, Sha256};
use ternbench_model::chat::Message;

use crate::backend::Text;
use crate::dataset::{self, LABEL, Record};
use crate::error::EvalError;
use crate::mt19937::PythonRandom;
use crate::task::{Chat, Draw, Fewshot, Items, Method, Task};
use crate::template::Templates;

/// What the model is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The examples and the context.
    pub text: Text,
    /// Which examples were drawn, by their place in their file.
    pub shots: Vec<u32>,
}

impl Prompt {
    /// The sha256 of the text's UTF-8, in hex: equal hashes, equal prompts.
    pub fn sha256(&self) -> String {
        match &self.text {
            Text::Plain(text) => sha256(text),
            chat => sha256(&chat.shown()),
        }
    }
}

/// The sha256 of a text's UTF-8, in hex.
pub(crate) fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A task's items, read and ready to be asked.
#[derive(Debug)]
pub struct PromptSet<'t> {
    task: &'t Task,
    items: &'t Items,
    templates: Templates,
    records: Vec<Record>,
    total: usize,
    examples: Vec<Record>,
    shots: Vec<Vec<u32>>,
}

impl<'t> PromptSet<'t> {
    /// Reads the data of `task` under `folder`; the first `limit` items of it.
    pub fn load(task: &'t Task, folder: &Path, limit: Option<usize>) -> Result<Self, EvalError> {
        let items = task.items().ok_or_else(|| EvalError::task(&task.name, "has no items"))?;
        let mut records = dataset::read(folder, &items.data)?;
        let total = records.len();
        records.truncate(limit.unwrap_or(usize::MAX));
        let mut examples = Vec::new();
        let mut shots = vec![Vec::new(); records.len()];
        if let Some(fewshot) = &items.fewshot {
            examples = dataset::read(folder, &fewshot.data)?;
            let draws = draw(fewshot, &examples, &records);
            shots = draws.map_err(|reason| EvalError::data(&folder.join(&fewshot.data.items), reason))?;
        }
        Ok(Self { task, items, templates: Templates::default(), records, total, examples, shots })
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// How many there are in the whole set, beyond the limit too.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Makes every prompt and what answers are held against: a mistake in the last one should not show after an hour.
    pub fn check(&self) -> Result<(), EvalError> {
        (0..self.len()).try_for_each(|index| {
            self.prompt(index)?;
            match &self.task.method {
                Method::MultipleChoice(..) => self.choices(index).map(drop),
                _ => self.answer(index).map(drop),
            }
        })
    }

    /// The prompt of item `index`, which must be below [`Self::len`].
    pub fn prompt(&self, index: usize) -> Result<Prompt, EvalError> {
        let shots = self.shots[index].clone();
        self.text(index, &shots).map(|text| Prompt { text, shots }).map_err(|reason| self.error(index, reason))
    }

    /// The choices of item `index` and which is right, for multiple choice tasks.
    pub fn choices(&self, index: usize) -> Result<(Vec<String>, usize), EvalError> {
        self.choices_of(&self.records[index]).map_err(|reason| self.error(index, reason))
    }

    /// The reference answer of item `index`, for generation tasks.
    pub fn answer(&self, index: usize) -> Result<String, EvalError> {
        self.answer_of(&self.records[index], None).map_err(|reason| self.error(index, reason))
    }

    /// The prompt of item `index`, and its choices or the reference answer, for people; nothing where there is no such item.
    pub fn shown(&self, index: usize) -> Option<(String, Vec<String>)> {
        self.records.get(index)?;
        let below = match &self.task.method {
            Method::MultipleChoice(..) => self.choices(index).ok()?.0,
            _ => vec![self.answer(index).ok()?],
        };
        Some((self.prompt(index).ok()?.text.shown(), below))
    }

    fn text(&self, index: usize, shots: &[u32]) -> Result<Text, String> {
        let prompt = &self.items.prompt;
        let record = &self.records[index];
        let mut text = match &prompt.description {
            Some(description) => self.templates.render(description, record)?,
            None => String::new(),
        };
        let mut turns = Vec::new();
        if let Some(fewshot) = &self.items.fewshot {
            for &shot in shots {
                let example = &self.examples[shot as usize];
                text += &self.templates.render(fewshot.context.as_ref().unwrap_or(&prompt.context), example)?;
                let answer = self.answer_of(example, fewshot.answer.as_deref())?;
                if prompt.chat == Some(Chat::Turns) {
                    turns.extend([Message::user(std::mem::take(&mut text)), Message::assistant(answer)]);
                } else {
                    text += &prompt.delimiter;
                    text += &answer;
                    text += &fewshot.separator;
                }
            }
        }
        text += &self.templates.render(&prompt.context, record)?;
        if prompt.chat.is_none() {
            return Ok(Text::Plain(text));
        }
        turns.push(Message::user(text));
        Ok(Text::Chat(turns))
    }

    fn answer_of(&self, record: &Record, template: Option<&str>) -> Result<String, String> {
        match (template, &self.task.method) {
            (Some(template), _) => self.templates.render(template, record),
            (None, Method::Generate(_, generate)) => self.templates.render(&generate.answer, record),
            (None, _) => {
                let (mut choices, gold) = self.choices_of(record)?;
                Ok(choices.swap_remove(gold))
            }
        }
    }

    fn choices_of(&self, record: &Record) -> Result<(Vec<String>, usize), String> {
        let Method::MultipleChoice(_, method) = &self.task.method else {
            return Err("is not a multiple choice task".to_owned());
        };
        let choices = self.templates.strings(&method.choices, record)?;
        let gold = self.templates.index(&method.gold, record)?;
        if gold >= choices.len() {
            let label = if method.gold == LABEL { "the label" } else { &method.gold };
            return Err(format!("{label} is {gold}, but there are {} choices, counted from 0", choices.len()));
        }
        Ok((choices, gold))
    }

    fn error(&self, index: usize, reason: String) -> EvalError {
        EvalError::task(&self.task.name, reason).at(&self.task.name, index)
    }
}

/// The examples of each item.
fn draw(fewshot: &Fewshot, examples: &[Record], records: &[Record]) -> Result<Vec<Vec<u32>>, String> {
    let count = fewshot.count;
    let too_few = |n: usize, whose: &str| format!("{count} examples are needed, {whose} has {n}");
    let all: Vec<u32> = (0..examples.len() as u32).collect();
    let first =
        |of: &[u32], whose: &str| of.get(..count as usize).map(<[u32]>::to_vec).ok_or_else(|| too_few(of.len(), whose));
    match &fewshot.draw {
        Draw::First => Ok(vec![first(&all, "the file")?; records.len()]),
        Draw::FirstOf(field) => {
            let same = |record: &Record| -> Vec<u32> {
                all.iter().copied().filter(|&i| examples[i as usize].get(field) == record.get(field)).collect()
            };
            let whose = |record: &Record| format!("{field} = {}", record.get(field).unwrap_or_default());
            records.iter().map(|record| first(&same(record), &whose(record))).collect()
        }
        Draw::PythonRandom(seed) => {
            let mut random = PythonRandom::new(*seed);
            let draws = records.iter().map(|_| random.sample(all.len() as u32, count));
            draws.collect::<Option<_>>().ok_or_else(|| too_few(all.len(), "the file"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn examples_come_before_the_question() {
        let folder = testing::data_folder();
        let task = Task::find("gsm8k").unwrap();
        let set = PromptSet::load(&task, folder.path(), Some(2)).unwrap();
        assert_eq!((set.len(), set.total()), (2, 3));
        let prompt = set.prompt(1).unwrap();
        // Random(1234).sample(range(6), 5), the second time: printed by CPython 3.11.
        assert_eq!(prompt.shots, testing::SECOND_SHOTS);
        let mut expected = String::new();
        for shot in testing::SECOND_SHOTS {
            expected += &format!("Question: {shot} and 1?\nAnswer: It is {}.\n#### {}\n\n", shot + 1, shot + 1);
        }
        expected += "Question: What is 2 + 2?\nAnswer:";
        assert_eq!(prompt.text, Text::Plain(expected));
        assert_eq!(set.answer(1).unwrap(), "Add.\n#### 4");
    }

    #[test]
    fn examples_of_a_choice_task_show_the_right_choice() {
        let folder = testing::data_folder();
        let text = include_str!("../../../datasets/tasks/piqa.toml").to_owned()
            + r#"
            [fewshot]
            data = { items = "gsm8k/train.jsonl", fields = ["question"] }
            count = 1
            draw = "first"
            context = "Q {{ question }}"
            answer = "A"
            "#;
        let task = Task::parse(&text, "t").unwrap();
        let set = PromptSet::load(&task, folder.path(), None).unwrap();
        assert_eq!(set.prompt(0).unwrap().text.shown(), "Q 0 and 1? A\n\nQuestion: Open a tin\nAnswer:");
        assert_eq!(set.choices(1).unwrap(), (vec!["xx ".to_owned(), "y".to_owned()], 1));
    }

    fn sample(task: &str) -> (Task, std::path::PathBuf) {
        let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let example = datasets.join("tasks/examples").join(task).with_extension("toml");
        let name = if example.exists() { example.display().to_string() } else { task.to_owned() };
        (Task::find(&name).unwrap(), datasets.join("sample"))
    }

    #[test]
    fn mmlu_style_prompts_have_a_description_and_examples_of_the_subject() {
        let (task, data) = sample("mmlu_style");
        let set = PromptSet::load(&task, &data, None).unwrap();
        let prompt = set.prompt(1).unwrap();
        assert_eq!(prompt.shots, [3, 4, 5]);
        let text = prompt.text.shown();
        assert!(text.starts_with(
            "The following are multiple choice questions (with answers) about small arithmetic.\n\n\
             What is 6 times 7?\nA. 36\nB. 40\nC. 49\nD. 42\nAnswer: D\n\nWhat is half"
        ));
        assert!(text.ends_with("What is 9 plus 8?\nA. 16\nB. 18\nC. 17\nD. 15\nAnswer:"));
        assert_eq!(set.choices(1).unwrap(), (["A", "B", "C", "D"].map(str::to_owned).to_vec(), 2));
        let few = include_str!("../../../datasets/tasks/examples/mmlu_style.toml").replace("count = 3", "count = 4");
        let few = Task::parse(&few, "t").unwrap();
        let error = PromptSet::load(&few, &data, None).unwrap_err().to_string();
        assert!(error.contains("4 examples are needed, subject = \"kitchen physics\" has 3"), "{error}");
    }

    #[test]
    fn hellaswag_style_endings_are_the_choices() {
        let (task, data) = sample("hellaswag_style");
        let set = PromptSet::load(&task, &data, None).unwrap();
        let text = "Planting a tree: A boy digs a deep hole in the lawn. he";
        assert_eq!(set.prompt(1).unwrap().text.shown(), text);
        let (choices, gold) = set.choices(1).unwrap();
        assert_eq!((choices.len(), choices[gold].as_str()), (4, "sets the roots of a small tree into it."));
    }

    #[test]
    fn chat_prompts_are_turns_or_one_message() {
        let (task, data) = sample("gsm8k_4shot_chat");
        let set = PromptSet::load(&task, &data, Some(1)).unwrap();
        let Text::Chat(turns) = set.prompt(0).unwrap().text else { panic!("no conversation") };
        let roles: Vec<_> = turns.iter().map(|turn| turn.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant", "user", "assistant", "user", "assistant", "user"]);
        assert!(turns[0].content.starts_with("Question: ") && turns[0].content.ends_with("\nAnswer:"));
        assert!(turns[1].content.contains("\n#### ") && !turns[1].content.ends_with('\n'));
        let text = include_str!("../../../datasets/tasks/gsm8k_4shot_chat.toml");
        let single = Task::parse(&text.replace("\"turns\"", "\"single\""), "t").unwrap();
        let set = PromptSet::load(&single, &data, Some(1)).unwrap();
        let Text::Chat(turns) = set.prompt(0).unwrap().text else { panic!("no conversation") };
        assert_eq!(turns.len(), 1);
        assert_eq!(turns[0].content.matches("Question: ").count(), 5);
    }

    #[test]
    fn chain_of_thought_examples_are_the_users() {
        let (task, data) = sample("gsm8k_cot");
        let set = PromptSet::load(&task, &data, None).unwrap();
        let text = set.prompt(3).unwrap().text.shown();
        assert_eq!((text.matches("Q: ").count(), text.matches("The answer is").count()), (9, 8));
        let Method::Generate(_, generate) = &task.method else { panic!("not generated") };
        assert_eq!(generate.extract[0].extract("So 3. The answer is 1,234. The answer is 5."), "1,234.");
        assert!(set.answer(3).unwrap().chars().all(|c| c.is_ascii_digit()));
    }

    #[test]
    fn too_few_examples_and_wrong_labels_are_named() {
        let folder = testing::data_folder();
        let text = include_str!("../../../datasets/tasks/gsm8k.toml").replace("count = 5", "count = 7");
        let task = Task::parse(&text, "t").unwrap();
        let error = PromptSet::load(&task, folder.path(), None).unwrap_err().to_string();
        assert!(error.ends_with("train.jsonl: 7 examples are needed, the file has 6"), "{error}");

        std::fs::write(folder.path().join("piqa/valid-labels.lst"), "0\n2\n0\n").unwrap();
        let task = Task::find("piqa").unwrap();
        let set = PromptSet::load(&task, folder.path(), None).unwrap();
        let error = set.choices(1).unwrap_err().to_string();
        assert_eq!(error, "task piqa, item 1: the label is 2, but there are 2 choices, counted from 0");
    }

    #[test]
    fn the_hash_is_sha256_in_hex() {
        let prompt = Prompt { text: Text::Plain("abc".to_owned()), shots: vec![] };
        assert_eq!(prompt.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
