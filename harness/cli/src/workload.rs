//! The workloads, named as llama-bench names them: `pp512` (prefill 512 tokens), `tg128` (decode 128 tokens one by one),
//! `tg128@d512` (the same behind 512 tokens of context); `tg128+draft4` (the same with up to 4 drafted tokens a pass).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ternbench_measure::energy::Counters;
use ternbench_measure::{Cost, interrupt, record};
use ternbench_model::kv_cache::KvCache;
use ternbench_model::speculate::{DraftUse, Speculator};
use ternbench_model::{Engine, Logits, ModelConfig, Segment};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens prefilled in one pass; 0 in decode.
    pub n_prompt: usize,
    /// Tokens decoded one by one; 0 in prefill.
    pub n_gen: usize,
    /// Tokens in the cache before.
    pub depth: usize,
    /// Tokens drafted at most per pass of decode; 0 is one token a pass.
    pub draft: usize,
}

impl Workload {
    /// Prefill of `n` tokens.
    pub const fn prefill(n: usize) -> Self {
        Self { n_prompt: n, n_gen: 0, depth: 0, draft: 0 }
    }

    /// Decode of `n` tokens.
    pub const fn decode(n: usize) -> Self {
        Self { n_prompt: 0, n_gen: n, depth: 0, draft: 0 }
    }

    /// Tokens that one run makes.
    pub fn tokens(self) -> usize {
        self.n_prompt + self.n_gen
    }

    /// Positions that the KV cache needs.
    pub fn positions(self) -> usize {
        self.depth + self.tokens()
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.n_prompt, self.n_gen) {
            (n, 0) => write!(f, "pp{n}")?,
            (_, n) => write!(f, "tg{n}")?,
        }
        if self.depth > 0 {
            write!(f, "@d{}", self.depth)?;
        }
        if self.draft > 0 { write!(f, "+draft{}", self.draft) } else { Ok(()) }
    }
}

impl FromStr for Workload {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rest, draft) = text.split_once("+draft").unwrap_or((text, "0"));
        let (what, depth) = rest.split_once("@d").unwrap_or((rest, "0"));
        let parse = |digits: &str| digits.parse::<usize>().ok();
        let n = what.get(2..).and_then(parse).filter(|&n| n > 0);
        match (what.get(..2), n, parse(depth), parse(draft)) {
            (Some("pp"), Some(n), Some(depth), Some(0)) => Ok(Self { depth, ..Self::prefill(n) }),
            (Some("tg"), Some(n), Some(depth), Some(draft)) => Ok(Self { depth, draft, ..Self::decode(n) }),
            _ => bail!(
                "'{text}' is no workload: expected ppN, tgN, tgN@dD or tgN+draftM, like pp512, tg128@d512 or tg128+draft4"
            ),
        }
    }
}

/// One workload on one model and pool, with its cache: what is run again and again.
pub struct Bench<'m> {
    engine: Engine<'m>,
    cache: KvCache,
    workload: Workload,
    prompt: Vec<u32>,
    speculator: Speculator,
    count: Count,
    checksum: Option<u64>,
}

/// What went through the model in all runs.
#[derive(Clone, Copy, Default)]
struct Count {
    /// Tokens prefilled or generated.
    tokens: u64,
    /// Tokens that went in: those, and drafted ones that were wrong.
    inputs: u64,
    /// Times that the weights were read.
    passes: u64,
}

impl<'m> Bench<'m> {
    /// Prepares `workload` for `engine`.
    pub fn new(engine: Engine<'m>, workload: Workload) -> Result<Self> {
        let config = engine.model().config();
        if workload.positions() > config.context {
            bail!("{workload} needs {} positions, the model has {}", workload.positions(), config.context);
        }
        let prompt = prompt(config, workload.depth + workload.n_prompt.max(1), 1);
        let mut bench = Self {
            cache: engine.new_cache(workload.positions()),
            engine,
            workload,
            prompt,
            speculator: Speculator::new(workload.draft),
            count: Count::default(),
            checksum: None,
        };
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
        let Workload { n_prompt, n_gen, depth, .. } = self.workload;
        self.cache.truncate(depth);
        let mut text = self.prompt[..=depth].to_vec();
        let mut last = 0.0f32;
        let drafts = self.speculator.count();
        let before = counters.and_then(Counters::read);
        let start = Instant::now();
        if n_prompt > 0 {
            let tokens = &self.prompt[depth..depth + n_prompt];
            let segment = Segment { cache: &mut self.cache, tokens, logits: Logits::Last };
            let best = self.engine.top(&mut [segment], 1)?;
            let &(token, logit) = best.first().and_then(|best| best.first()).context("the model has no tokens")?;
            text.push(token);
            last = logit;
        }
        while text.len() <= depth + n_gen {
            interrupt::check()?;
            let most = depth + 1 + n_gen - text.len();
            let best = self.speculator.next(&mut self.engine, &mut self.cache, &text, most)?;
            let &(_, logit) = best.last().context("the model has no tokens")?;
            text.extend(best.iter().map(|&(token, _)| token));
            last = logit;
        }
        let ns = start.elapsed().as_nanos() as u64;
        let after = counters.and_then(Counters::read);
        let made = self.speculator.count();
        self.count.tokens += (n_prompt + n_gen) as u64;
        self.count.inputs +=
            (n_prompt + n_gen) as u64 + (made.drafted - drafts.drafted) - (made.accepted - drafts.accepted);
        self.count.passes += u64::from(n_prompt > 0) + made.passes - drafts.passes;
        let joules =
            counters.zip(before).zip(after).map(|((counters, before), after)| counters.joules(&before, &after));
        let mut hash = Fnv::default();
        text[depth + 1..].iter().for_each(|&token| hash.add(u64::from(token)));
        hash.add(u64::from(last.to_bits()));
        let checksum = *self.checksum.get_or_insert(hash.0);
        if checksum != hash.0 {
            bail!("wrong: two runs gave different results: the kernel or the memory is faulty");
        }
        Ok(Cost { ns, joules })
    }

    /// A checksum of every token decoded (in prefill, the first behind the prompt) and of the bits of the last one's logit, after the first
    /// run.
    pub fn checksum(&self) -> String {
        self.checksum.map_or(String::new(), |checksum| format!("{checksum:016x}"))
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<'m> {
        &mut self.engine
    }

    /// Bytes read per token, by part: what all passes of the runs so far read, over their tokens. The KV cache counts at its mean
    /// length, in layers with a sliding window at no more than the window; the queries of a pass read it together.
    pub fn bytes_per_token(&self) -> BTreeMap<String, u64> {
        let (model, count) = (self.engine.model(), self.count);
        let (config, weights, head) = (model.config(), model.weight_bytes(), self.engine.head_use());
        let mean_context = self.workload.depth + self.workload.tokens() / 2;
        let n_global = config.sliding.map_or(config.n_layers, |sliding| config.n_layers / sliding.pattern.max(1));
        let in_window = config.sliding.map_or(0, |sliding| mean_context.min(sliding.window));
        let positions = n_global * mean_context + (config.n_layers - n_global) * in_window;
        let per_position = self.engine.kv().ty().bytes_for(config, 1) / config.n_layers.max(1);
        let row = |bytes: u64| bytes / config.vocab.max(1) as u64;
        let of_head = head.whole * weights.head + head.screened * weights.screen + head.rescored * row(weights.head);
        let of_passes = [
            ("linear", weights.linear * count.passes),
            ("lm_head", of_head),
            ("norms", weights.vectors * count.passes),
            ("kv", (positions * per_position) as u64 * count.passes),
            ("embedding", row(model.embedding_bytes()) * count.inputs),
        ];
        of_passes.into_iter().map(|(part, bytes)| (part.to_owned(), bytes / count.tokens.max(1))).collect()
    }

    /// Multiply-adds per token in the linear layers and the head, counted in the same way. Scores of a screened head are int8
    /// multiply-adds: beside layers of floats, whose peak is lower, they are not counted.
    pub fn macs_per_token(&self) -> u64 {
        let (model, count, head) = (self.engine.model(), self.count, self.engine.head_use());
        let (linear, whole) = model.macs_per_token();
        let scores = if model.weights_name() == "ternary" { whole } else { 0 };
        let row = whole / model.config().vocab.max(1) as u64;
        let of_head = head.in_whole * whole + head.in_screened * scores + head.rescored * row;
        (linear * count.inputs + of_head) / count.tokens.max(1)
    }

    /// What became of the drafts, where there are any.
    pub fn drafts(&self) -> Option<DraftUse> {
        (self.workload.draft > 0).then(|| self.speculator.count())
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.engine.kv().bytes() as u64
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
    let parts = bench.bytes_per_token();
    let share = head.rescored as f64 / (head.in_screened.max(1) * model.config().vocab.max(1) as u64) as f64;
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
        macs_per_token: bench.macs_per_token(),
        head: Some(record::Head {
            head: if head.screened > 0 { "screened" } else { "full" }.to_owned(),
            head_rescored_share: (head.screened > 0).then_some(share),
            head_whole_share: head.in_whole as f64 / head.positions.max(1) as f64,
        }),
        kv: bench.engine.kv().ty().name().to_owned(),
        drafts: bench.drafts().map(|drafts| record::Drafts {
            drafted: drafts.drafted,
            drafts_accepted: drafts.accepted,
            draft_passes: drafts.passes,
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
        for name in ["pp512", "tg128", "tg128@d2048", "tg128+draft4", "tg8@d16+draft2"] {
            assert_eq!(name.parse::<Workload>().unwrap().to_string(), name);
        }
        for name in ["", "pp", "pp0", "tg-1", "xx5", "tg5@d", "pp5+draft2", "tg5+draft", "é"] {
            assert!(name.parse::<Workload>().is_err(), "{name}");
        }
    }
}
