//! The workloads, named as llama-bench names them: `pp512` (prefill 512 tokens), `tg128` (decode 128 tokens one by one),
//! `tg128@d512` (the same behind 512 tokens of context).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ternbench_measure::energy::Counters;
use ternbench_measure::{Cost, interrupt, record};
use ternbench_model::kv_cache::KvCache;
use ternbench_model::{Engine, HeadUse, Logits, ModelConfig, Segment, Transformer};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens prefilled in one pass; 0 in decode.
    pub n_prompt: usize,
    /// Tokens decoded one by one; 0 in prefill.
    pub n_gen: usize,
    /// Tokens in the cache before.
    pub depth: usize,
}

impl Workload {
    /// Prefill of `n` tokens.
    pub const fn prefill(n: usize) -> Self {
        Self { n_prompt: n, n_gen: 0, depth: 0 }
    }

    /// Decode of `n` tokens.
    pub const fn decode(n: usize) -> Self {
        Self { n_prompt: 0, n_gen: n, depth: 0 }
    }

    /// Tokens that one run makes.
    pub fn tokens(self) -> usize {
        self.n_prompt + self.n_gen
    }

    /// Positions that the KV cache needs.
    pub fn positions(self) -> usize {
        self.depth + self.tokens()
    }

    /// Bytes read per token, by part. Prefill reads the weights once for all tokens. The KV cache counts at its mean length, in
    /// layers with a sliding window at no more than the window, and the head at what was read of it, by `head`.
    pub fn bytes_per_token(self, model: &Transformer, head: HeadUse) -> BTreeMap<String, u64> {
        let (config, weights) = (model.config(), model.weight_bytes());
        let shared_by = self.n_prompt.max(1) as u64;
        let mean_context = self.depth + self.tokens() / 2;
        let n_global = config.sliding.map_or(config.n_layers, |sliding| config.n_layers / sliding.pattern.max(1));
        let in_window = config.sliding.map_or(0, |sliding| mean_context.min(sliding.window));
        let positions = n_global * mean_context + (config.n_layers - n_global) * in_window;
        let per_position = KvCache::bytes_for(config, 1) / config.n_layers.max(1);
        let embedding_row = model.embedding_bytes() / config.vocab.max(1) as u64;
        // The queries of a prefill read the cache together.
        let parts = [
            ("linear", weights.linear / shared_by),
            ("lm_head", head_bytes(model, head) / shared_by),
            ("norms", weights.vectors / shared_by),
            ("kv", (positions * per_position) as u64 / shared_by),
            ("embedding", embedding_row),
        ];
        parts.into_iter().map(|(part, bytes)| (part.to_owned(), bytes)).collect()
    }

    /// Multiply-adds per token in the linear layers and the head; prefill runs the head for its last token only. Scores of a screened
    /// head are int8 multiply-adds: beside layers of floats, whose peak is lower, they are not counted.
    pub fn macs_per_token(self, model: &Transformer, head: HeadUse) -> u64 {
        let (linear, whole) = model.macs_per_token();
        let scores = if model.weights_name() == "ternary" { whole } else { 0 };
        let row = whole / model.config().vocab.max(1) as u64;
        linear + per_position(head, whole, scores, row) / self.n_prompt.max(1) as u64
    }
}

/// Bytes of the head that were read for a position, the quantised copy's included.
fn head_bytes(model: &Transformer, head: HeadUse) -> u64 {
    let weights = model.weight_bytes();
    per_position(head, weights.head, weights.screen, weights.head / model.config().vocab.max(1) as u64)
}

/// The mean cost of a position, from the costs of the whole head, of its copy and of a row. Without any use, that of the whole.
fn per_position(head: HeadUse, whole: u64, screened: u64, row: u64) -> u64 {
    let all = head.whole * whole + head.screened * screened + head.rescored * row;
    all.checked_div(head.positions).unwrap_or(whole)
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.n_prompt, self.n_gen) {
            (n, 0) => write!(f, "pp{n}")?,
            (_, n) => write!(f, "tg{n}")?,
        }
        if self.depth > 0 { write!(f, "@d{}", self.depth) } else { Ok(()) }
    }
}

impl FromStr for Workload {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (what, depth) = text.split_once("@d").unwrap_or((text, "0"));
        let parse = |digits: &str| digits.parse::<usize>().ok();
        let n = what.get(2..).and_then(parse).filter(|&n| n > 0);
        match (what.get(..2), n, parse(depth)) {
            (Some("pp"), Some(n), Some(depth)) => Ok(Self { depth, ..Self::prefill(n) }),
            (Some("tg"), Some(n), Some(depth)) => Ok(Self { depth, ..Self::decode(n) }),
            _ => bail!("'{text}' is no workload: expected ppN, tgN or tgN@dD, like pp512 or tg128@d512"),
        }
    }
}

/// One workload on one model and pool, with its cache: what is run again and again.
pub struct Bench<'m> {
    engine: Engine<'m>,
    cache: KvCache,
    workload: Workload,
    prompt: Vec<u32>,
    checksum: Option<u64>,
}

impl<'m> Bench<'m> {
    /// Prepares `workload` for `engine`.
    pub fn new(engine: Engine<'m>, workload: Workload) -> Result<Self> {
        let config = engine.model().config();
        if workload.positions() > config.context {
            bail!("{workload} needs {} positions, the model has {}", workload.positions(), config.context);
        }
        let prompt = prompt(config, workload.depth + workload.n_prompt.max(1), 1);
        let mut bench =
            Self { cache: engine.new_cache(workload.positions()), engine, workload, prompt, checksum: None };
        if workload.depth > 0 {
            let tokens = &bench.prompt[..workload.depth];
            let segment = Segment { cache: &mut bench.cache, tokens, logits: Logits::None };
            bench.engine.forward(&mut [segment])?;
        }
        Ok(bench)
    }

    /// Runs the workload once and returns its time in nanoseconds. The output is checked: every run must give the same.
    pub fn run(&mut self) -> Result<u64> {
        self.run_metered(None).map(|cost| cost.ns)
    }

    /// The same, with the joules that `counters` counted meanwhile.
    pub fn run_metered(&mut self, counters: Option<&Counters>) -> Result<Cost> {
        let Workload { n_prompt, n_gen, depth } = self.workload;
        self.cache.truncate(depth);
        let mut tokens = Vec::with_capacity(n_gen + 1);
        let mut last: Vec<f32> = Vec::new();
        let before = counters.and_then(Counters::read);
        let start = Instant::now();
        if n_prompt > 0 {
            let tokens = &self.prompt[depth..depth + n_prompt];
            let segment = Segment { cache: &mut self.cache, tokens, logits: Logits::Last };
            last.extend_from_slice(self.engine.forward(&mut [segment])?);
        }
        let mut token = self.prompt[depth];
        for _ in 0..n_gen {
            interrupt::check()?;
            let best = self.engine.top(&mut self.cache, &[token], 1)?;
            let &(next, logit) = best.first().context("the model has no tokens")?;
            token = next;
            tokens.push(token);
            last = vec![logit];
        }
        let ns = start.elapsed().as_nanos() as u64;
        let after = counters.and_then(Counters::read);
        let joules =
            counters.zip(before).zip(after).map(|((counters, before), after)| counters.joules(&before, &after));
        let mut hash = Fnv::default();
        tokens.iter().for_each(|&token| hash.add(u64::from(token)));
        last.iter().for_each(|logit| hash.add(u64::from(logit.to_bits())));
        let checksum = *self.checksum.get_or_insert(hash.0);
        if checksum != hash.0 {
            bail!("wrong: two runs gave different results: the kernel or the memory is faulty");
        }
        Ok(Cost { ns, joules })
    }

    /// A checksum of every token decoded and of the bits of the last logits (in decode, of the best of them), after the first run.
    pub fn checksum(&self) -> String {
        self.checksum.map_or(String::new(), |checksum| format!("{checksum:016x}"))
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<'m> {
        &mut self.engine
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        KvCache::bytes_for(self.engine.model().config(), self.workload.positions()) as u64
    }
}

/// `n` token ids that mean nothing, the same for the same seed.
pub fn prompt(config: &ModelConfig, n: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    (0..n).map(|_| next() % config.vocab.min(u32::MAX as usize) as u32).collect()
}

/// Greedy tokens behind `prompt`.
pub fn greedy(engine: &mut Engine<'_>, prompt: &[u32], n: usize) -> Result<Vec<u32>> {
    let mut cache = engine.new_cache(prompt.len() + n);
    let mut tokens = prompt.to_vec();
    let mut generated = Vec::with_capacity(n);
    for _ in 0..n {
        let token = engine.next_token(&mut cache, &tokens)?;
        generated.push(token);
        tokens = vec![token];
    }
    Ok(generated)
}

/// FNV-1a, a number at a time: enough to tell a wrong result from a right one.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

/// The record of a bench, without samples.
pub fn speed_record(loaded: &crate::open::Loaded, bench: &Bench<'_>, limits: record::Limits) -> record::Speed {
    let (model, workload) = (&loaded.model, bench.workload);
    let head = bench.engine.head_use();
    let parts = workload.bytes_per_token(model, head);
    let share = head.rescored as f64 / (head.screened.max(1) * model.config().vocab.max(1) as u64) as f64;
    record::Speed {
        model: loaded.info.clone(),
        code: loaded.code(),
        n_threads: bench.engine.pool().n_threads(),
        workload: workload.to_string(),
        n_prompt: workload.n_prompt as u64,
        n_gen: workload.n_gen as u64,
        n_depth: workload.depth as u64,
        bytes_per_token: parts.values().sum(),
        bytes_per_token_parts: parts,
        macs_per_token: workload.macs_per_token(model, head),
        head: Some(record::Head {
            head: if head.screened > 0 { "screened" } else { "full" }.to_owned(),
            head_rescored_share: (head.screened > 0).then_some(share),
            head_whole_share: head.whole as f64 / head.positions.max(1) as f64,
        }),
        limits,
        output_checksum: bench.checksum(),
        ..record::Speed::default()
    }
}

/// Workloads from `-p` and `-n`, in order.
pub fn workloads(prompts: &[usize], gens: &[usize], depths: &[usize]) -> Result<Vec<Workload>> {
    let mut list = Vec::new();
    for &depth in if depths.is_empty() { &[0] } else { depths } {
        list.extend(prompts.iter().filter(|&&n| n > 0).map(|&n| Workload { depth, ..Workload::prefill(n) }));
        list.extend(gens.iter().filter(|&&n| n > 0).map(|&n| Workload { depth, ..Workload::decode(n) }));
    }
    (!list.is_empty()).then_some(list).context("nothing to measure: give -p or -n a number above 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_read_and_write_the_same() {
        for name in ["pp512", "tg128", "tg128@d2048"] {
            assert_eq!(name.parse::<Workload>().unwrap().to_string(), name);
        }
        for name in ["", "pp", "pp0", "tg-1", "xx5", "tg5@d", "é"] {
            assert!(name.parse::<Workload>().is_err(), "{name}");
        }
    }
}
