//! Prompts, extraction and scoring against lm-evaluation-harness's own, on the authors' data; no model needed.

mod common;

use serde::Deserialize;
use ternbench_eval::prompt::PromptSet;
use ternbench_eval::task::{Generate, Method};
use ternbench_eval::{Task, generate, score};

fn gsm8k() -> Task {
    Task::find("gsm8k").unwrap()
}

fn method(task: &Task) -> &Generate {
    match &task.method {
        Method::Generate(_, method) => method,
        _ => panic!("{} is not a generation task", task.name),
    }
}

#[test]
fn gsm8k_prompts() {
    let Some(shared) = common::shared("gsm8k_prompts") else {
        return;
    };
    #[derive(Deserialize)]
    struct Reference {
        index: usize,
        sha256: String,
        fewshot_train_idx: Vec<u32>,
        prompt: Option<String>,
    }
    let references: Vec<Reference> = common::read_lines(shared.join("golden/refs/gsm8k_5shot_prompts_first200.jsonl"));
    assert_eq!(references.len(), 200);
    let task = gsm8k();
    let set = PromptSet::load(&task, &shared.join("datasets"), None).unwrap();
    assert_eq!(set.len(), 1319);
    for reference in references {
        let prompt = set.prompt(reference.index).unwrap();
        assert_eq!(prompt.shots, reference.fewshot_train_idx, "item {}", reference.index);
        if let Some(expected) = reference.prompt {
            assert_eq!(prompt.text.shown(), expected, "item {}", reference.index);
        }
        assert_eq!(prompt.sha256(), reference.sha256, "item {}", reference.index);
    }
}

#[test]
fn gsm8k_extraction() {
    let Some(shared) = common::shared("gsm8k_extraction") else {
        return;
    };
    #[derive(Deserialize)]
    struct Vector {
        text: String,
        strict_gsm8k: String,
        strict_gsm8k_em: Vec<f64>,
        flexible: String,
        flexible_em: Vec<f64>,
        golds: Vec<String>,
    }
    let vectors: Vec<Vector> = common::read_lines(shared.join("golden/refs/gsm8k_extract_vectors_first30.jsonl"));
    assert_eq!(vectors.len(), 30);
    let task = gsm8k();
    let method = method(&task);
    for vector in vectors {
        let expected = [(&vector.strict_gsm8k, &vector.strict_gsm8k_em), (&vector.flexible, &vector.flexible_em)];
        for (extractor, (answer, matches)) in method.extract.iter().zip(expected) {
            let found = extractor.extract(&vector.text);
            assert_eq!(&found, answer, "{} of {:?}", extractor.name(), vector.text);
            assert_eq!(matches.len(), vector.golds.len());
            for (gold, &expected) in vector.golds.iter().zip(matches) {
                let same = f64::from(u8::from(method.normalise.same(&found, gold)));
                assert_eq!(same, expected, "{} of {:?} against {gold:?}", extractor.name(), vector.text);
            }
        }
    }
}

#[test]
fn stop_strings() {
    let Some(shared) = common::shared("stop_strings") else {
        return;
    };
    #[derive(Deserialize)]
    struct Vector {
        text: String,
        stop: Vec<String>,
        out: String,
    }
    let text = std::fs::read_to_string(shared.join("golden/refs/stop_vectors.json")).unwrap();
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert!(!vectors.is_empty());
    for vector in vectors {
        assert_eq!(generate::before_stop(&vector.text, &vector.stop), vector.out, "{:?}", vector.text);
    }
}

#[test]
fn gsm8k_responses() {
    let Some(shared) = common::shared("gsm8k_responses") else {
        return;
    };
    #[derive(Deserialize)]
    struct Reference {
        index: usize,
        prompt: String,
        gold_answer: String,
        gen_text_raw: String,
        resp: String,
        stop: Vec<String>,
        strict: String,
        strict_em: f64,
        flexible: String,
        flexible_em: f64,
    }
    let references: Vec<Reference> = common::read_lines(shared.join("golden/refs/gsm8k_smollm2_first5.jsonl"));
    let task = gsm8k();
    let method = method(&task);
    let set = PromptSet::load(&task, &shared.join("datasets"), Some(5)).unwrap();
    assert_eq!(references.len(), set.len());
    for reference in references {
        assert_eq!(method.stop, reference.stop);
        assert_eq!(set.prompt(reference.index).unwrap().text.shown(), reference.prompt);
        let gold = set.answer(reference.index).unwrap();
        assert_eq!(gold, reference.gold_answer);
        let text = generate::before_stop(&reference.gen_text_raw, &method.stop);
        assert_eq!(text, reference.resp);
        let expected = [(reference.strict, reference.strict_em), (reference.flexible, reference.flexible_em)];
        for (extractor, (answer, matches)) in method.extract.iter().zip(expected) {
            let found = extractor.extract(text);
            assert_eq!(found, answer);
            assert_eq!(f64::from(u8::from(method.normalise.same(&found, &gold))), matches);
        }
    }
}

#[test]
fn piqa_prompts_and_scores() {
    let Some(shared) = common::shared("piqa_prompts_and_scores") else {
        return;
    };
    #[derive(Deserialize)]
    struct Reference {
        index: usize,
        ll_choice0: f32,
        ll_choice1: f32,
        char_len: [usize; 2],
        byte_len: [usize; 2],
        label: usize,
        pred_acc_bytes: usize,
        lmeval_acc: f64,
        lmeval_acc_norm: f64,
        context: Option<String>,
        cont: Option<[String; 2]>,
    }
    let task = Task::find("piqa").unwrap();
    let set = PromptSet::load(&task, &shared.join("datasets"), None).unwrap();
    assert_eq!(set.len(), 1838);
    let mut texts = 0;
    for (file, n) in [("piqa_smollm2_first100.jsonl", 100), ("piqa_gemma3_270m_first50.jsonl", 50)] {
        let references: Vec<Reference> = common::read_lines(shared.join("golden/refs").join(file));
        assert_eq!(references.len(), n);
        for reference in references {
            let index = reference.index;
            let (choices, gold) = set.choices(index).unwrap();
            assert_eq!(gold, reference.label, "item {index}");
            if let (Some(context), Some(continuations)) = (reference.context, reference.cont) {
                assert_eq!(set.prompt(index).unwrap().text.shown(), context);
                assert_eq!(choices.iter().map(|choice| format!(" {choice}")).collect::<Vec<_>>(), continuations);
                texts += 1;
            }
            let lengths = |length: fn(&str) -> usize| [0, 1].map(|i| length(&choices[i]));
            assert_eq!(lengths(|choice| choice.chars().count()), reference.char_len, "item {index}");
            assert_eq!(lengths(str::len), reference.byte_len, "item {index}");
            let loglikelihoods = [reference.ll_choice0, reference.ll_choice1];
            let expected =
                [reference.lmeval_acc == 1.0, reference.lmeval_acc_norm == 1.0, reference.pred_acc_bytes == gold];
            assert_eq!(score::correct_by_length(&loglikelihoods, &choices, gold), expected, "item {index}");
        }
    }
    assert!(texts > 0);
}
