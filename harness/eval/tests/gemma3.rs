//! Gemma 3 270M (Q4_K, Q5_0, Q6_K and Q8_0) against lm-evaluation-harness on the same weights: the same log-likelihoods, and
//! the same log-probability of every token.
//!
//! The model comes from `scripts/fetch-small-models`.

mod common;

use serde::Deserialize;
use ternbench_eval::{LocalModel, Options, Task};
use ternbench_kernels::{Pool, registry};
use ternbench_model::batch::Limits;
use ternbench_model::weights::{self, OpenOptions};
use ternbench_model::{Engine, Logits, Segment, Tokenizer, Transformer};

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<u32>,
    token_logprobs_from_pos1: Vec<f64>,
}

#[derive(Deserialize)]
struct Reference {
    ll_choice0: f64,
    ll_choice1: f64,
    n_tok: [usize; 3],
    lmeval_acc: f64,
    lmeval_acc_norm: f64,
}

#[derive(Deserialize)]
struct Item {
    index: usize,
    loglikelihood: [f64; 2],
    context_tokens: usize,
    n_tokens: [usize; 2],
}

/// `log softmax(row)[id]`.
fn log_probability(row: &[f32], id: u32) -> f64 {
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(row[id as usize] - max) - sum.ln()
}

#[test]
fn gemma3_log_likelihoods() {
    let test = "gemma3_log_likelihoods";
    let Some(shared) = common::shared(test) else { return };
    let path = common::root().join("datasets/cache/models/gemma-3-270m-q4_k_m.gguf");
    if !common::present(test, "models", path.clone()) {
        return;
    }
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from)).unwrap();
    let source = weights::open(&path, OpenOptions::default()).unwrap();
    let tokenizer = Tokenizer::for_model(&path).unwrap();
    let transformer = Transformer::load(source.as_ref(), registry::default_kernel(), &pool, &|_| ()).unwrap();

    let mut engine = Engine::new(&transformer, &pool);
    let references: Vec<Tokens> = common::read_lines(shared.join("golden/refs/gemma3_token_logprobs_first5.jsonl"));
    assert!(references.len() >= 5);
    let mut worst = 0f64;
    for Tokens { ids, token_logprobs_from_pos1: expected } in &references {
        let mut cache = engine.new_cache(ids.len());
        let segment = Segment { cache: &mut cache, tokens: ids, logits: Logits::From(0) };
        let logits = engine.forward(&mut [segment]).unwrap();
        for ((row, &next), expected) in logits.chunks_exact(tokenizer.vocab_size()).zip(&ids[1..]).zip(expected) {
            worst = worst.max((log_probability(row, next) - expected).abs());
        }
        assert_eq!(expected.len(), ids.len() - 1);
    }
    println!("largest difference of a token's log-probability: {worst:.2e}");
    assert!(worst < 2e-3, "a token's log-probability differs by {worst}");

    let references: Vec<Reference> = common::read_lines(shared.join("golden/refs/piqa_gemma3_270m_first50.jsonl"));
    let mut model = LocalModel::new(engine, &tokenizer, Limits::default());
    let out = tempfile::tempdir().unwrap();
    let options = Options {
        data: shared.join("datasets"),
        out: out.path().to_owned(),
        limit: Some(references.len()),
        ..Options::default()
    };
    let summary = ternbench_eval::run(&Task::find("piqa").unwrap(), &mut model, &options, &mut |_| ()).unwrap();
    let items: Vec<Item> = common::read_lines(summary.items.clone());
    assert_eq!((items.len(), references.len()), (50, 50));
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
    let right: Vec<f64> = summary.metrics.iter().take(2).map(|metric| (metric.value * 50.0).round()).collect();
    let expected = |score: fn(&Reference) -> f64| references.iter().map(score).sum::<f64>();
    assert_eq!(right, [expected(|item| item.lmeval_acc), expected(|item| item.lmeval_acc_norm)]);
}
