//! The workloads, named as llama-bench names them: `pp512` (prefill 512 tokens), `tg128` (decode 128 tokens one by one),
//! `tg128@d512` (the same behind 512 tokens of context); `tg128+draft4` (the same with up to 4 drafted tokens a pass); `tg32x8` (32 tokens
//! of each of 8 sequences, one of each a pass: what llama-batched-bench decodes).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ternbench_kernels::probe::Arithmetic;
use ternbench_measure::energy::Counters;
use ternbench_measure::limits::Work;
use ternbench_measure::{Cost, interrupt, record};
use ternbench_model::breakdown::Part;
use ternbench_model::kv_cache::{KvCache, KvType};
use ternbench_model::speculate::{DraftUse, Speculator};
use ternbench_model::weights::LinearName;
use ternbench_model::{Engine, Logits, ModelConfig, Segment};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens prefilled in one pass; 0 in decode.
    pub n_prompt: usize,
    /// Tokens decoded one by one, of every sequence; 0 in prefill.
    pub n_gen: usize,
    /// Sequences decoded together.
    pub n_parallel: usize,
    /// Tokens in the cache of each before.
    pub depth: usize,
    /// Tokens drafted at most per pass of decode; 0 is one token a pass.
    pub draft: usize,
}

impl Workload {
    /// Prefill of `n` tokens.
    pub const fn prefill(n: usize) -> Self {
        Self { n_prompt: n, n_gen: 0, n_parallel: 1, depth: 0, draft: 0 }
    }

    /// Decode of `n` tokens.
    pub const fn decode(n: usize) -> Self {
        Self { n_prompt: 0, n_gen: n, n_parallel: 1, depth: 0, draft: 0 }
    }

    /// Tokens that one run makes.
    pub fn tokens(self) -> usize {
        self.n_prompt + self.n_gen.saturating_mul(self.n_parallel)
    }

    /// Positions that the KV cache of a sequence needs.
    pub fn positions(self) -> usize {
        self.depth.saturating_add(self.n_prompt).saturating_add(self.n_gen)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.n_prompt, self.n_gen) {
            (n, 0) => write!(f, "pp{n}")?,
            (_, n) => write!(f, "tg{n}")?,
        }
        if self.n_parallel > 1 {
            write!(f, "x{}", self.n_parallel)?;
        }
        if self.depth > 0 {
            write!(f, "@d{}", self.depth)?;
        }
        if self.draft > 0 { write!(f, "+draft{}", self.draft) } else { Ok(()) }
    }
}

/// Sequences side by side, at most: their caches are made before anything runs, and above this stands a slip of the finger.
const MAX_PARALLEL: usize = 65536;

impl FromStr for Workload {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rest, draft) = text.split_once("+draft").unwrap_or((text, "0"));
        let (what, depth) = rest.split_once("@d").unwrap_or((rest, "0"));
        let (what, n_parallel) = what.split_once('x').unwrap_or((what, "1"));
        let parse = |digits: &str| digits.parse::<usize>().ok();
        let above_0 = |digits: &str| parse(digits).filter(|&n| n > 0);
        let n = what.get(2..).and_then(above_0);
        match (what.get(..2), n, above_0(n_parallel).filter(|&n| n <= MAX_PARALLEL), parse(depth), parse(draft)) {
            (Some("pp"), Some(n), Some(1), Some(depth), Some(0)) => Ok(Self { depth, ..Self::prefill(n) }),
            (Some("tg"), Some(n), Some(n_parallel), Some(depth), Some(draft)) if draft == 0 || n_parallel == 1 => {
                Ok(Self { n_parallel, depth, draft, ..Self::decode(n) })
            }
            _ => bail!(
                "'{text}' is no workload: expected ppN, tgN, tgNxB (B up to {MAX_PARALLEL}), tgN@dD or tgN+draftM, like pp512, tg32x8, tg128@d512 or tg128+draft4"
            ),
        }
    }
}

/// One workload on one model and pool, with its cache: what is run again and again.
pub struct Bench<'m> {
    engine: Engine<'m>,
    workload: Workload,
    sequences: Vec<Sequence>,
    speculator: Speculator,
    count: Count,
    checksum: Option<u64>,
}

/// A text, what of it is in its cache, and the logit of its last token.
struct Sequence {
    cache: KvCache,
    prompt: Vec<u32>,
    text: Vec<u32>,
    logit: f32,
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
        let sequence = |i| Sequence {
            cache: engine.new_cache(workload.positions()),
            prompt: prompt(config, workload.depth + workload.n_prompt.max(1), i),
            text: Vec::new(),
            logit: 0.0,
        };
        let sequences = (1..=workload.n_parallel as u64).map(sequence).collect();
        let speculator = Speculator::new(workload.draft);
        let mut bench = Self { engine, workload, sequences, speculator, count: Count::default(), checksum: None };
        for Sequence { cache, prompt, .. } in bench.sequences.iter_mut().filter(|_| workload.depth > 0) {
            let tokens = &prompt[..workload.depth];
            bench.engine.forward(&mut [Segment { cache, tokens, logits: Logits::None }])?;
        }
        Ok(bench)
    }

    /// Runs the workload once and returns its time in nanoseconds. The output is checked: every run must give the same.
    pub fn run(&mut self) -> Result<u64> {
        self.run_metered(None).map(|cost| cost.ns)
    }

    /// The same, with the joules that `counters` counted meanwhile.
    pub fn run_metered(&mut self, counters: Option<&Counters>) -> Result<Cost> {
        let Workload { n_prompt, n_gen, depth, draft, .. } = self.workload;
        for sequence in &mut self.sequences {
            sequence.cache.truncate(depth);
            sequence.text.clear();
            sequence.text.extend_from_slice(&sequence.prompt[..=depth]);
        }
        let drafts = self.speculator.count();
        let before = counters.and_then(Counters::read);
        let start = Instant::now();
        let mut passes = 0;
        if n_prompt > 0 {
            self.pass(depth..depth + n_prompt)?;
            passes += 1;
        } else if draft > 0 {
            self.speculate()?;
        } else {
            for at in depth..depth + n_gen {
                self.pass(at..at + 1)?;
                passes += 1;
            }
        }
        let ns = start.elapsed().as_nanos() as u64;
        let after = counters.and_then(Counters::read);
        let made = self.speculator.count();
        let tokens = self.workload.tokens() as u64;
        self.count.tokens += tokens;
        self.count.inputs += tokens + (made.drafted - drafts.drafted) - (made.accepted - drafts.accepted);
        self.count.passes += passes + made.passes - drafts.passes;
        let joules =
            counters.zip(before).zip(after).map(|((counters, before), after)| counters.joules(&before, &after));
        let mut hash = Fnv::default();
        for Sequence { text, logit, .. } in &self.sequences {
            text[depth + 1..].iter().for_each(|&token| hash.add(u64::from(token)));
            hash.add(u64::from(logit.to_bits()));
        }
        let checksum = *self.checksum.get_or_insert(hash.0);
        if checksum != hash.0 {
            bail!("wrong: two runs gave different results: the kernel or the memory is faulty");
        }
        Ok(Cost { ns, joules })
    }

    /// One pass over these positions of every sequence, and the token behind each.
    fn pass(&mut self, positions: Range<usize>) -> Result<()> {
        interrupt::check()?;
        let in_prompt = self.workload.n_prompt > 0;
        let sequences = self.sequences.iter_mut();
        let segments = sequences.map(|Sequence { cache, prompt, text, .. }| {
            let tokens = if in_prompt { &prompt[positions.clone()] } else { &text[positions.clone()] };
            Segment { cache, tokens, logits: Logits::Last }
        });
        let mut segments: Vec<Segment<'_>> = segments.collect();
        let best = self.engine.top(&mut segments, 1)?;
        for (sequence, best) in self.sequences.iter_mut().zip(best) {
            let &(token, logit) = best.first().context("the model has no tokens")?;
            sequence.text.push(token);
            sequence.logit = logit;
        }
        Ok(())
    }

    /// The whole decode with drafted tokens.
    fn speculate(&mut self) -> Result<()> {
        let len = self.workload.depth + 1 + self.workload.n_gen;
        for Sequence { cache, text, logit, .. } in &mut self.sequences {
            while text.len() < len {
                interrupt::check()?;
                let best = self.speculator.next(&mut self.engine, cache, text, len - text.len())?;
                *logit = best.last().context("the model has no tokens")?.1;
                text.extend(best.iter().map(|&(token, _)| token));
            }
        }
        Ok(())
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

    /// Bytes read per token: what all passes of the runs so far read, over their tokens. The KV cache of a sequence counts at its mean
    /// length; the sequence's queries in a pass read it together.
    pub fn bytes_per_token(&self) -> BTreeMap<String, u64> {
        let (model, count) = (self.engine.model(), self.count);
        let (config, weights, head) = (model.config(), model.weight_bytes(), self.engine.head_use());
        let per_position = (self.engine.kv().ty().bytes_for(config, 1) / config.n_layers.max(1)) as u64;
        let row = |bytes: u64| bytes / config.vocab.max(1) as u64;
        let of_head = head.whole * weights.head + head.screened * weights.screen + head.rescored * row(weights.head);
        let of_passes = [
            ("linear", weights.linear * count.passes),
            ("lm_head", of_head),
            ("norms", weights.vectors * count.passes),
            ("kv", self.positions_seen() * per_position * self.workload.n_parallel as u64 * count.passes),
            ("embedding", row(model.embedding_bytes()) * count.inputs),
        ];
        of_passes.into_iter().map(|(part, bytes)| (part.to_owned(), bytes / count.tokens.max(1))).collect()
    }

    /// Positions that a token attends to, itself included: the mean over the workload's tokens, summed over the layers.
    fn positions_seen(&self) -> u64 {
        let (config, depth) = (self.engine.model().config(), self.workload.depth);
        let new = self.workload.positions() - depth;
        let in_layer = |window: usize| (depth + 1..=depth + new).map(|end| end.min(window)).sum::<usize>();
        let windows = (0..config.n_layers).map(|i| config.window(i).map_or(usize::MAX, |local| local.window));
        (windows.map(in_layer).sum::<usize>() / new.max(1)) as u64
    }

    /// What a part of the forward pass costs per token, counted in the same way. Work that is no product of matrices (norms, softmax,
    /// quantising) counts with its bytes alone.
    pub fn work_of(&self, part: Part) -> Work {
        let (model, count, head) = (self.engine.model(), self.count, self.engine.head_use());
        let (config, bytes) = (model.config(), self.bytes_per_token());
        let per_token = |n: u64| n / count.tokens.max(1);
        let read = |names: &[&str]| names.iter().filter_map(|name| bytes.get(*name)).sum();
        let linear = |names: &[LinearName]| {
            let sizes =
                names.iter().map(|&name| config.linear_shape(name)).map(|(n, k)| (n * k * config.n_layers) as u64);
            Work {
                bytes_per_token: per_token(model.linear_bytes(part) * count.passes),
                macs_per_token: per_token(sizes.sum::<u64>() * count.inputs),
                fmas_per_token: 0,
            }
        };
        let is_ternary = model.weights_name() == "ternary";
        match part {
            Part::Qkv => linear(&[LinearName::Q, LinearName::K, LinearName::V]),
            Part::O => linear(&[LinearName::O]),
            Part::GateUp => linear(&[LinearName::Gate, LinearName::Up]),
            Part::Down => linear(&[LinearName::Down]),
            Part::Attention => {
                let (bytes_per_token, n) = (read(&["kv"]), 2 * config.q_dim() as u64 * self.positions_seen());
                let (macs, fmas) = match (self.engine.kv().ty(), is_ternary) {
                    // An instruction multiplies half as many int16 as int8.
                    (KvType::Int8, true) => (2 * n, 0),
                    // Beside layers of floats, whose peak is lower, they are not counted.
                    (KvType::Int8, false) => (0, 0),
                    (KvType::F32 | KvType::F16, _) => (0, n),
                };
                let [macs_per_token, fmas_per_token] = [macs, fmas].map(|n| per_token(n * count.inputs));
                Work { bytes_per_token, macs_per_token, fmas_per_token }
            }
            Part::Head => {
                let (_, whole) = model.macs_per_token();
                let exact = per_token(head.in_whole * whole + head.rescored * config.hidden as u64);
                let (macs_per_token, fmas_per_token) = match (model.arithmetic(), model.head_arithmetic()) {
                    (layers, head) if layers == head => (exact, 0),
                    (Arithmetic::Int8 | Arithmetic::Ternary, _) => (per_token(head.in_screened * whole), exact),
                    // Scores are int8 multiply-adds: beside layers of halves they are not counted.
                    _ => (0, exact),
                };
                Work { bytes_per_token: read(&["lm_head"]), macs_per_token, fmas_per_token }
            }
            Part::Other => Work { bytes_per_token: read(&["norms", "embedding"]), ..Work::default() },
        }
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
    let works = Part::ALL.map(|part| bench.work_of(part));
    let share = head.rescored as f64 / (head.in_screened.max(1) * model.config().vocab.max(1) as u64) as f64;
    record::Speed {
        model: loaded.info.clone(),
        code: loaded.code(),
        n_threads: bench.engine.pool().n_threads(),
        workload: workload.to_string(),
        n_prompt: workload.n_prompt as u64,
        n_gen: workload.n_gen as u64,
        n_parallel: workload.n_parallel as u64,
        n_depth: workload.depth as u64,
        bytes_per_token: parts.values().sum(),
        bytes_per_token_parts: parts,
        macs_per_token: works.iter().map(|work| work.macs_per_token).sum(),
        fmas_per_token: works.iter().map(|work| work.fmas_per_token).sum(),
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
    fn absurd_numbers_are_refused_or_held() {
        let workload: Workload = "tg1@d18446744073709551615".parse().expect("a workload");
        assert_eq!(workload.positions(), usize::MAX);
        assert!("tg1x100000000000".parse::<Workload>().is_err());
        assert_eq!(Workload { n_parallel: 2, ..Workload::decode(usize::MAX) }.tokens(), usize::MAX);
    }

    /// A sequence's tokens, and its last logit to the bit, are those that it gets alone.
    #[test]
    fn sequences_decoded_together_get_what_each_gets_alone() {
        let pool = crate::open::pool(2).expect("a pool");
        for (model, depth) in [("synthetic:bitnet-tiny", 0), ("synthetic:bitnet-tiny", 40), ("synthetic:llama-tiny", 3)]
        {
            let source = crate::open::source(model, Default::default()).expect("a model");
            let kernel = ternbench_kernels::registry::find("auto").expect("a kernel");
            let loaded =
                crate::open::Loaded::new(&*source, ternbench_kernels::Dispatch::from(kernel), &pool).expect("loads");
            let loaded = loaded.with_head(crate::open::HeadArg { head: crate::open::Head::Screened }, &pool, None);
            let workload = Workload { n_parallel: 9, depth, ..Workload::decode(6) };
            let mut bench = Bench::new(loaded.engine(&pool), workload).expect("a bench");
            bench.run().expect("runs");
            bench.run().expect("runs again, with the same checksum");
            assert_eq!((bench.count.tokens, bench.count.passes), (2 * 54, 2 * 6));
            let mut alone = Bench::new(loaded.engine(&pool), Workload { n_parallel: 1, ..workload }).expect("a bench");
            for Sequence { prompt, text, logit, .. } in &bench.sequences {
                alone.checksum = None;
                alone.sequences[0].cache.truncate(0);
                alone.sequences[0].prompt.clone_from(prompt);
                let segment =
                    Segment { cache: &mut alone.sequences[0].cache, tokens: &prompt[..depth], logits: Logits::None };
                (depth > 0).then(|| alone.engine.forward(&mut [segment]).map(|_| ())).transpose().expect("the depth");
                alone.run().expect("runs");
                assert_eq!((&alone.sequences[0].text, alone.sequences[0].logit), (text, *logit), "{model}@{depth}");
            }
            assert!(bench.sequences.iter().skip(1).all(|other| other.prompt != bench.sequences[0].prompt));
        }
    }

    #[test]
    fn workloads_read_and_write_the_same() {
        for name in ["pp512", "tg128", "tg128@d2048", "tg128+draft4", "tg8@d16+draft2", "tg32x8", "tg4x64@d512"] {
            assert_eq!(name.parse::<Workload>().unwrap().to_string(), name);
        }
        assert_eq!("tg32x1".parse::<Workload>().unwrap(), Workload::decode(32));
        for name in [
            "",
            "pp",
            "pp0",
            "tg-1",
            "xx5",
            "tg5@d",
            "pp5+draft2",
            "tg5+draft",
            "é",
            "pp5x2",
            "tg5x",
            "tg5x0",
            "tg5x2+draft2",
        ] {
            assert!(name.parse::<Workload>().is_err(), "{name}");
        }
    }
}
