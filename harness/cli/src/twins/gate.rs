//! The gate: a model is held against its reference before anything of it is timed.
//!
//! The reference (`datasets/twins/golden.json`) was computed by transformers from the twins' safetensors, with none of this
//! project's code. Two things are compared: greedy tokens behind twenty prompts, and the perplexity of a short text. Talking
//! fluently is not enough.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use ternbench_kernels::Pool;
use ternbench_measure::record;
use ternbench_model::tokenizer::SpecialText;
use ternbench_model::{Engine, Logits, Segment, Tokenizer};

use super::Twin;
use crate::open::Loaded;
use crate::workload;

/// Prompts that may differ: a tie between two tokens falls one way or the other with the order of a sum.
const MAX_PROMPTS_DIFFER: u64 = 1;
/// Nats per token that the loss may be off. The mildest mistake, SiLU, cost 0.038 on half-trained twins.
const MAX_LOSS_OFF: f64 = 0.01;

/// What transformers said.
#[derive(Debug, Deserialize)]
pub struct Golden {
    window: usize,
    n_windows: usize,
    twins: BTreeMap<String, Reference>,
}

/// What it said of one twin.
#[derive(Debug, Deserialize)]
struct Reference {
    nll_sum: f64,
    prompts: Vec<Prompt>,
}

#[derive(Debug, Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    greedy: Vec<u32>,
}

impl Golden {
    /// Reads `golden.json` of the twins' folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("golden.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Holds `loaded` against the reference of `twin`, on the text of the twins' folder.
    pub fn check(
        &self,
        twin: Twin,
        control: Option<&str>,
        loaded: &Loaded,
        tokenizer: &Tokenizer,
        text: &str,
        pool: &Pool,
    ) -> Result<record::Gate> {
        let reference = self.twins.get(twin.name()).with_context(|| format!("golden.json has no {}", twin.name()))?;
        let mut engine = Engine::new(&loaded.model, pool);
        let mut n_differ = 0;
        for prompt in &reference.prompts {
            let got = workload::greedy(&mut engine, &prompt.ids, prompt.greedy.len())?;
            n_differ += u64::from(got != prompt.greedy);
        }
        let ids = tokenizer.encode(text, SpecialText::AsText)?;
        let (mut n, mut nll_sum) = (0, 0.0);
        let vocab = loaded.model.config().vocab;
        for window in ids.chunks_exact(self.window).take(self.n_windows) {
            let (tokens, first) = (&window[..self.window - 1], self.window / 2);
            let mut cache = engine.new_cache(tokens.len());
            let segment = Segment { cache: &mut cache, tokens, logits: Logits::From(first) };
            let logits = engine.forward(&mut [segment])?;
            for (row, &target) in logits.chunks_exact(vocab).zip(&window[first + 1..]) {
                nll_sum -= log_prob(row, target);
                n += 1;
            }
        }
        let n_prompts = reference.prompts.len() as u64;
        let off = (nll_sum - reference.nll_sum) / n as f64;
        let perplexity = |sum: f64| (sum / n as f64).exp();
        let mut reasons = Vec::new();
        if off.is_nan() || off.abs() > MAX_LOSS_OFF {
            let (got, expected) = (perplexity(nll_sum), perplexity(reference.nll_sum));
            reasons.push(format!("perplexity {got:.3}, the reference has {expected:.3}"));
        }
        if n_differ > MAX_PROMPTS_DIFFER {
            reasons.push(format!("greedy tokens differ behind {n_differ} of {n_prompts} prompts"));
        }
        Ok(record::Gate {
            model: loaded.info.clone(),
            code: loaded.code(),
            control: control.map(str::to_owned),
            n_prompts,
            n_differ,
            n,
            nll_sum,
            expected_nll_sum: reference.nll_sum,
            wrong: (!reasons.is_empty()).then(|| reasons.join("; ")),
        })
    }
}

/// The logarithm of `token`'s probability.
fn log_prob(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    logits.get(token as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit - max) - sum.ln())
}
