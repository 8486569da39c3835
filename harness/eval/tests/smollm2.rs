//! SmolLM2-135M-Instruct against lm-evaluation-harness on the same weights: the same log-likelihoods, the same tokens.
//!
//! The model comes from `scripts/fetch-small-models`.

mod common;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use ternbench_eval::{LocalModel, Options, Summary, Task};
use ternbench_kernels::{Pool, registry};
use ternbench_model::batch::Limits;
use ternbench_model::weights::{self, OpenOptions};
use ternbench_model::{Engine, Tokenizer, Transformer};

/// One test at a time: each uses all cores.
static CORES: Mutex<()> = Mutex::new(());

struct Setup {
    shared: PathBuf,
    model: PathBuf,
    _guard: MutexGuard<'static, ()>,
}

fn setup(test: &str) -> Option<Setup> {
    let shared = common::shared(test)?;
    let model = common::root().join("datasets/cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let guard = CORES.lock().unwrap_or_else(PoisonError::into_inner);
    common::present(test, "models", model.clone()).then_some(Setup { shared, model, _guard: guard })
}

/// Runs the first `limit` items of a task, and reads its items back.
fn evaluate<T: serde::de::DeserializeOwned>(setup: &Setup, task: &str, limit: usize) -> (Summary, Vec<T>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(threads).unwrap();
    let source = weights::open(&setup.model, OpenOptions::default()).unwrap();
    let tokenizer = Tokenizer::for_model(&setup.model).unwrap();
    let transformer = Transformer::load(source.as_ref(), registry::default_kernel(), &pool, &|_| ()).unwrap();
    let mut model = LocalModel::new(Engine::new(&transformer, &pool), &tokenizer, Limits::default());
    let out = tempfile::tempdir().unwrap();
    let options = Options {
        data: setup.shared.join("datasets"),
        out: out.path().to_owned(),
        limit: Some(limit),
        ..Options::default()
    };
    let task = Task::find(task).unwrap();
    let summary = ternbench_eval::run(&task, &mut model, &options, &mut |_| ()).unwrap();
    let items = common::read_lines(summary.items.clone());
    (summary, items)
}

#[test]
fn piqa_log_likelihoods() {
    let Some(setup) = setup("piqa_log_likelihoods") else { return };
    #[derive(Deserialize)]
    struct Reference {
        ll_choice0: f64,
        ll_choice1: f64,
        n_tok: [usize; 3],
    }
    #[derive(Deserialize)]
    struct Item {
        index: usize,
        loglikelihood: [f64; 2],
        context_tokens: usize,
        n_tokens: [usize; 2],
    }
    let references: Vec<Reference> = common::read_lines(setup.shared.join("golden/refs/piqa_smollm2_first100.jsonl"));
    let (summary, items) = evaluate::<Item>(&setup, "piqa", 100);
    let mut worst = (0.0, 0);
    for (item, reference) in items.iter().zip(&references) {
        assert_eq!([item.context_tokens, item.n_tokens[0], item.n_tokens[1]], reference.n_tok, "item {}", item.index);
        for (ours, theirs) in item.loglikelihood.iter().zip([reference.ll_choice0, reference.ll_choice1]) {
            let error = (ours - theirs).abs();
            if error > worst.0 {
                worst = (error, item.index);
            }
        }
    }
    println!("largest difference of a log-likelihood: {:.2e}, item {}", worst.0, worst.1);
    assert!(worst.0 < 2e-3, "item {} differs by {}", worst.1, worst.0);
    let right: Vec<_> = summary.metrics.iter().take(2).map(|m| (m.name.as_str(), (m.value * 100.0).round())).collect();
    assert_eq!(right, [("acc", 65.0), ("acc_norm", 69.0)]);
    assert_eq!((items.len(), references.len()), (100, 100));
}

#[test]
fn gsm8k_generations() {
    let Some(setup) = setup("gsm8k_generations") else { return };
    #[derive(Deserialize)]
    struct Reference {
        prompt_ids: Vec<u32>,
        gen_ids: Vec<u32>,
        resp: String,
        strict: String,
        flexible: String,
    }
    #[derive(Deserialize)]
    struct Item {
        index: usize,
        prompt_tokens: usize,
        generated_ids: Vec<u32>,
        text: String,
        strict: String,
        flexible: String,
        finish: String,
    }
    let references: Vec<Reference> = common::read_lines(setup.shared.join("golden/refs/gsm8k_smollm2_first5.jsonl"));
    let (summary, items) = evaluate::<Item>(&setup, "gsm8k", 5);
    assert_eq!((items.len(), references.len()), (5, 5));
    for (item, reference) in items.into_iter().zip(references) {
        assert_eq!(item.prompt_tokens, reference.prompt_ids.len(), "item {}", item.index);
        assert_eq!(item.generated_ids, reference.gen_ids, "item {}", item.index);
        assert_eq!(item.text, reference.resp, "item {}", item.index);
        assert_eq!((item.strict, item.flexible), (reference.strict, reference.flexible), "item {}", item.index);
        assert_eq!(item.finish, "stop");
    }
    assert_eq!(summary.truncated_items, 0);
}
