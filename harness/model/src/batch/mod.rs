//! Many requests through one model at once: what an evaluation and a server run on.
//!
//! Every pass takes one token of each sequence that generates, and fills up with prompt tokens of any number of others, to a
//! budget (continuous batching, as in Orca, Yu et al. 2022). A request begins as soon as there is room, and takes the keys and
//! values of the longest beginning it shares with another request, running or just finished, instead of computing them; it
//! waits for a beginning that is being computed.
//!
//! The model's results do not depend on what else is in a pass, so neither do those of a request: one at a time, in any order
//! or all at once, they are the same bits.

mod job;
mod request;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use job::{Job, Row};
use request::Request;
pub use request::{Event, Finish, Generate, RequestError, RequestId, Score, TokenScore};

use crate::engine::Engine;
use crate::kv_cache::{BLOCK, KvCache};
use crate::sampler;
use crate::segment::{ForwardError, Segment};

/// What a batch runs on: [`Engine`], or a toy in tests.
pub trait ForwardPass {
    /// The keys and values of a sequence.
    type Cache: SequenceCache;

    /// Logits per row.
    fn vocab(&self) -> usize;

    /// The most tokens a sequence may have.
    fn context(&self) -> usize;

    /// An empty cache that takes `capacity` tokens.
    fn new_cache(&self, capacity: usize) -> Self::Cache;

    /// [`Engine::forward`].
    fn forward(&mut self, segments: &mut [Segment<'_, Self::Cache>]) -> Result<&[f32], ForwardError>;

    /// [`Engine::greedy`].
    fn greedy(&mut self, segments: &mut [Segment<'_, Self::Cache>]) -> Result<Vec<Option<u32>>, ForwardError> {
        let vocab = self.vocab();
        Ok(self.forward(segments)?.chunks_exact(vocab).map(sampler::greedy).collect())
    }

    /// Blocks of [`BLOCK`] positions that all caches hold together.
    fn blocks_in_use(&self) -> usize;

    /// Bytes of such a block.
    fn block_bytes(&self) -> usize;
}

/// The keys and values of a sequence: [`KvCache`], or a toy's.
pub trait SequenceCache {
    /// Tokens held.
    fn n_tokens(&self) -> usize;

    /// Blocks referred to.
    fn n_blocks(&self) -> usize;

    /// A cache that begins with the first `len` tokens of this one and takes `capacity`.
    fn fork(&self, len: usize, capacity: usize) -> Self;
}

impl SequenceCache for KvCache {
    fn n_tokens(&self) -> usize {
        self.len()
    }

    fn n_blocks(&self) -> usize {
        self.n_blocks()
    }

    fn fork(&self, len: usize, capacity: usize) -> Self {
        self.fork(len, capacity)
    }
}

impl ForwardPass for Engine<'_> {
    type Cache = KvCache;

    fn vocab(&self) -> usize {
        self.model().config().vocab
    }

    fn context(&self) -> usize {
        self.model().config().context
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        self.new_cache(capacity)
    }

    fn forward(&mut self, segments: &mut [Segment<'_>]) -> Result<&[f32], ForwardError> {
        self.forward(segments)
    }

    fn greedy(&mut self, segments: &mut [Segment<'_>]) -> Result<Vec<Option<u32>>, ForwardError> {
        self.greedy(segments)
    }

    fn blocks_in_use(&self) -> usize {
        self.kv().blocks_in_use()
    }

    fn block_bytes(&self) -> usize {
        self.kv().block_bytes()
    }
}

/// How much goes on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests at work; the others wait.
    pub max_requests: usize,
    /// Tokens per pass; generating sequences come first and always have one each.
    pub tokens_per_pass: usize,
    /// Bytes of keys and values, those kept for later requests included.
    pub kv_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_requests: 32, tokens_per_pass: 512, kv_bytes: 4 << 30 }
    }
}

/// Rows of logits per pass, beyond one of each generating sequence. A row of a 128,256-token vocabulary is half a megabyte; the
/// head's weights are read once for all of them, and more reuse than this makes no pass faster.
const MAX_ROWS: usize = 128;

/// Tokens that kernels take together at most. A pass of many tokens ends with a full tile, if there is work for another pass.
const TILE: usize = 32;

/// Finished sequences whose keys and values are kept while there is room.
const MAX_KEPT: usize = 8;

/// What went through the model so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Passes.
    pub passes: u64,
    /// Tokens of prompts and scored continuations.
    pub prefill_tokens: u64,
    /// Generated tokens that went through the model.
    pub decode_tokens: u64,
    /// Tokens taken from other sequences instead of being computed.
    pub shared_tokens: u64,
    /// Time of passes with prompt tokens alone, with generated tokens alone, and with both.
    pub prefill_time: Duration,
    /// See [`Self::prefill_time`].
    pub decode_time: Duration,
    /// See [`Self::prefill_time`].
    pub mixed_time: Duration,
    /// Tokens of the passes with generated tokens alone.
    pub decode_only_tokens: u64,
    /// Tokens of the passes with prompt tokens alone.
    pub prefill_only_tokens: u64,
    /// The most blocks of keys and values at once.
    pub peak_blocks: usize,
}

/// Runs many requests at once.
///
/// [`Self::generate`] and [`Self::score`] take requests at any time, [`Self::step`] does one forward pass and says what came of
/// it, [`Self::cancel`] ends a request early.
pub struct Batch<M: ForwardPass> {
    model: M,
    limits: Limits,
    waiting: VecDeque<(RequestId, Request)>,
    running: Vec<Job<M::Cache>>,
    /// Finished sequences, the oldest first.
    kept: VecDeque<(Vec<u32>, M::Cache)>,
    next_id: RequestId,
    stats: Stats,
}

impl<M: ForwardPass> Batch<M> {
    /// An empty batch on `model`. Limits of 0 count as 1.
    pub fn new(model: M, limits: Limits) -> Self {
        let limits = Limits {
            max_requests: limits.max_requests.max(1),
            tokens_per_pass: limits.tokens_per_pass.max(1),
            ..limits
        };
        let (waiting, kept) = (VecDeque::new(), VecDeque::new());
        Self { model, limits, waiting, running: Vec::new(), kept, next_id: 0, stats: Stats::default() }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What went through the model so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The same, and counts from nothing again.
    pub fn take_stats(&mut self) -> Stats {
        std::mem::take(&mut self.stats)
    }

    /// Requests that wait for room.
    pub fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests at work.
    pub fn n_running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes a request to generate: events [`Event::Token`] and at last [`Event::Finished`].
    pub fn generate(&mut self, request: Generate) -> Result<RequestId, RequestError> {
        self.submit(Request::Generate(request))
    }

    /// Takes a request to score: one event, [`Event::Scored`].
    pub fn score(&mut self, request: Score) -> Result<RequestId, RequestError> {
        self.submit(Request::Score(request))
    }

    /// Ends a request; no more events come of it. False if there is none of this name any more.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.running.iter().position(|job| job.id == id) {
            let job = self.running.remove(at);
            self.keep(job);
            return true;
        }
        let n = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.waiting.len() < n
    }

    fn submit(&mut self, request: Request) -> Result<RequestId, RequestError> {
        request.check(self.model.vocab(), self.model.context())?;
        let needed = job::blocks_needed(&request, 0);
        if needed > self.max_blocks() {
            let needed = needed * self.model.block_bytes();
            return Err(RequestError::Memory { needed, allowed: self.limits.kv_bytes });
        }
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back((id, request));
        Ok(id)
    }

    fn max_blocks(&self) -> usize {
        self.limits.kv_bytes / self.model.block_bytes().max(1)
    }

    /// Does one forward pass over everything that has room, and says what came of it, in the order of the requests. Nothing
    /// happens when the batch is idle.
    ///
    /// # Errors
    /// Never for requests that were taken: an error is a defect.
    pub fn step(&mut self) -> Result<Vec<Event>, ForwardError> {
        self.admit();
        let (mut prefill, mut decode) = (0, 0);
        for job in self.running.iter_mut().filter(|job| job.decodes()) {
            for sequence in &mut job.sequences {
                sequence.plan(&mut 1, &mut 1);
                decode += sequence.planned();
            }
        }
        let mut tokens = self.limits.tokens_per_pass.saturating_sub(decode).max(usize::from(decode == 0));
        let mut rows = MAX_ROWS;
        for job in self.running.iter_mut().filter(|job| !job.decodes()) {
            for sequence in &mut job.sequences {
                sequence.plan(&mut tokens, &mut rows);
                prefill += sequence.planned();
            }
        }
        if prefill + decode == 0 {
            return Ok(Vec::new());
        }
        prefill -= self.defer(prefill, decode);
        let greedy = self.running.iter().filter(|job| job.is_planned()).all(Job::is_greedy);
        let mut segments: Vec<_> = self
            .running
            .iter_mut()
            .flat_map(|job| &mut job.sequences)
            .filter_map(|sequence| sequence.segment())
            .collect();
        let start = Instant::now();
        let vocab = self.model.vocab();
        let mut rows: Vec<Row<'_>> = if greedy {
            self.model.greedy(&mut segments)?.into_iter().map(Row::Greedy).collect()
        } else {
            self.model.forward(&mut segments)?.chunks_exact(vocab).map(Row::Logits).collect()
        };
        let time = start.elapsed();
        let mut rows = rows.drain(..);
        let mut events = Vec::new();
        for job in &mut self.running {
            job.take_rows(&mut rows, &mut events);
        }
        drop(rows);
        self.stats.peak_blocks = self.stats.peak_blocks.max(self.model.blocks_in_use());
        self.count(prefill as u64, decode as u64, time);
        let mut i = 0;
        while i < self.running.len() {
            match self.running[i].advance() {
                Some(event) => {
                    events.push(event);
                    let job = self.running.remove(i);
                    self.keep(job);
                }
                None => i += 1,
            }
        }
        Ok(events)
    }

    /// Takes what would begin another tile off the plan, from the last sequences on, and says how much it was.
    fn defer(&mut self, prefill: usize, decode: usize) -> usize {
        let sequences = || self.running.iter().filter(|job| !job.decodes()).flat_map(|job| &job.sequences);
        let is_last = self.waiting.is_empty() && sequences().all(|sequence| sequence.n_left() == sequence.planned());
        if is_last || prefill < 4 * TILE {
            return 0;
        }
        let excess = (prefill + decode) % TILE;
        let mut left = excess;
        for job in self.running.iter_mut().rev().filter(|job| !job.decodes()) {
            job.sequences.iter_mut().rev().for_each(|sequence| sequence.defer(&mut left));
        }
        excess
    }

    fn count(&mut self, prefill: u64, decode: u64, time: Duration) {
        let stats = &mut self.stats;
        stats.passes += 1;
        stats.prefill_tokens += prefill;
        stats.decode_tokens += decode;
        match (prefill, decode) {
            (_, 0) => {
                stats.prefill_time += time;
                stats.prefill_only_tokens += prefill;
            }
            (0, _) => {
                stats.decode_time += time;
                stats.decode_only_tokens += decode;
            }
            _ => stats.mixed_time += time,
        }
    }

    /// Begins waiting requests, in order, while there is room.
    fn admit(&mut self) {
        let mut i = 0;
        while i < self.waiting.len() && self.running.len() < self.limits.max_requests {
            let (tokens, shareable) = self.waiting[i].1.trunk();
            let wanted = &tokens[..shareable];
            // A beginning that another request is computing is worth waiting for; those behind may go first.
            let ready = self.longest_ready(wanted).1;
            let coming =
                self.running.iter().flat_map(|job| &job.sequences).map(|other| n_common(wanted, &other.tokens));
            if coming.max().unwrap_or(0) >= ready + BLOCK {
                i += 1;
                continue;
            }
            let Some(cache) = self.make_room(i, wanted) else { break };
            let Some((id, request)) = self.waiting.remove(i) else { break };
            self.stats.shared_tokens += cache.n_tokens() as u64;
            self.running.push(Job::new(id, request, cache));
        }
    }

    /// A cache for waiting request `i` with what others have of `wanted`; gives up kept sequences for it. `None`: no room yet.
    fn make_room(&mut self, i: usize, wanted: &[u32]) -> Option<M::Cache> {
        loop {
            let request = &self.waiting[i].1;
            let capacity = request.lengths().into_iter().max()?;
            let (source, shared) = self.longest_ready(wanted);
            let needed = job::blocks_needed(request, shared);
            let growth: usize = self.running.iter().map(Job::growth).sum();
            if self.model.blocks_in_use() + growth + needed <= self.max_blocks() {
                return Some(match source {
                    Some(source) => source.fork(shared, capacity),
                    None => self.model.new_cache(capacity),
                });
            }
            self.kept.pop_front()?;
        }
    }

    /// Of which sequence most tokens of `wanted` are computed, and how many.
    fn longest_ready(&self, wanted: &[u32]) -> (Option<&M::Cache>, usize) {
        let running = self.running.iter().flat_map(|job| &job.sequences);
        let running = running.map(|sequence| (&sequence.tokens, &sequence.cache));
        let kept = self.kept.iter().map(|(tokens, cache)| (tokens, cache));
        let mut best = (None, 0);
        for (tokens, cache) in running.chain(kept) {
            let n = n_common(wanted, &tokens[..cache.n_tokens()]);
            if n > best.1 {
                best = (Some(cache), n);
            }
        }
        best
    }

    /// Keeps what a request computed for others that begin alike.
    fn keep(&mut self, job: Job<M::Cache>) {
        for mut sequence in job.sequences.into_iter().take(1) {
            sequence.tokens.truncate(sequence.cache.n_tokens());
            if sequence.tokens.len() >= BLOCK {
                self.kept.push_back((sequence.tokens, sequence.cache));
            }
        }
        if self.kept.len() > MAX_KEPT {
            self.kept.pop_front();
        }
    }
}

/// With how many tokens both begin.
fn n_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
