//! A request at work: its sequences, and what becomes of their logits.

use ternbench_kernels::ops;

use super::SequenceCache;
use super::request::{Event, Finish, Generate, Request, RequestId, Score, TokenScore};
use crate::kv_cache::{BLOCK, blocks_for};
use crate::sampler::are_logits;
use crate::segment::{Logits, Segment};

/// A request at work.
pub(super) struct Job<C> {
    pub(super) id: RequestId,
    pub(super) sequences: Vec<Sequence<C>>,
    kind: Kind,
    /// Blocks that it takes for itself in all.
    reserved: usize,
    /// Blocks of a trunk that branches now share.
    spent: usize,
    failure: Option<String>,
    finish: Option<Finish>,
}

/// Tokens of which some have gone through the model.
pub(super) struct Sequence<C> {
    pub(super) cache: C,
    pub(super) tokens: Vec<u32>,
    /// The first token whose logits are wanted.
    first_row: usize,
    /// Blocks that were there before it.
    inherited: usize,
    /// How many tokens go into the next pass.
    planned: usize,
    /// Which continuation it is; a trunk is all of them.
    branch: Option<usize>,
}

enum Kind {
    Generate(Generate, usize),
    Score(Score, Vec<Vec<TokenScore>>),
}

/// Blocks that `request` takes for itself when its first `shared` tokens are there already.
pub(super) fn blocks_needed(request: &Request, shared: usize) -> usize {
    let (trunk, _) = request.trunk();
    let branches: usize = match request {
        Request::Generate(_) => return blocks_for(request.lengths()[0]) - shared / BLOCK,
        Request::Score(_) => {
            let longer = request.lengths().into_iter().filter(|&length| length > trunk.len());
            longer.map(|length| blocks_for(length) - trunk.len() / BLOCK).sum()
        }
    };
    blocks_for(trunk.len()) - shared / BLOCK + branches
}

impl<C: SequenceCache> Sequence<C> {
    /// Tokens that have not gone through the model.
    pub(super) fn n_left(&self) -> usize {
        self.tokens.len() - self.cache.n_tokens()
    }

    /// Rows of logits when `n` tokens go through the model.
    fn n_rows(&self, n: usize) -> usize {
        (self.cache.n_tokens() + n).saturating_sub(self.first_row.max(self.cache.n_tokens()))
    }

    /// Plans as many tokens as the budgets of the pass allow, and takes them off.
    pub(super) fn plan(&mut self, tokens: &mut usize, rows: &mut usize) {
        let silent = self.first_row.saturating_sub(self.cache.n_tokens());
        self.planned = self.n_left().min(*tokens).min(silent + *rows);
        *tokens -= self.planned;
        *rows -= self.n_rows(self.planned);
    }

    /// Plans as many of `tokens` less as it can, and takes them off.
    pub(super) fn defer(&mut self, tokens: &mut usize) {
        let less = self.planned.min(*tokens);
        self.planned -= less;
        *tokens -= less;
    }

    pub(super) fn planned(&self) -> usize {
        self.planned
    }

    /// The planned tokens, for the model.
    pub(super) fn segment(&mut self) -> Option<Segment<'_, C>> {
        let done = self.cache.n_tokens();
        let logits = match self.n_rows(self.planned) {
            0 => Logits::None,
            rows => Logits::From(self.planned - rows),
        };
        let tokens = &self.tokens[done..done + self.planned];
        (!tokens.is_empty()).then_some(Segment { cache: &mut self.cache, tokens, logits })
    }
}

impl<C: SequenceCache> Job<C> {
    /// Begins with what `cache` holds of the request's tokens.
    pub(super) fn new(id: RequestId, request: Request, cache: C) -> Self {
        let reserved = blocks_needed(&request, cache.n_tokens());
        let (tokens, first_row) = request.trunk();
        let inherited = cache.n_tokens() / BLOCK;
        let trunk = Sequence { cache, tokens, first_row, inherited, planned: 0, branch: None };
        let kind = match request {
            Request::Generate(generate) => Kind::Generate(generate, 0),
            Request::Score(score) => {
                let scores = vec![Vec::new(); score.continuations.len()];
                Kind::Score(score, scores)
            }
        };
        Self { id, sequences: vec![trunk], kind, reserved, spent: 0, failure: None, finish: None }
    }

    /// Blocks that it has still to take.
    pub(super) fn growth(&self) -> usize {
        let taken = |sequence: &Sequence<C>| sequence.cache.n_blocks() - sequence.inherited;
        self.reserved.saturating_sub(self.spent + self.sequences.iter().map(taken).sum::<usize>())
    }

    /// Whether tokens of it go into the next pass.
    pub(super) fn is_planned(&self) -> bool {
        self.sequences.iter().any(|sequence| sequence.planned > 0)
    }

    /// Whether the likeliest tokens are all that it needs to know.
    pub(super) fn is_greedy(&self) -> bool {
        matches!(&self.kind, Kind::Generate(generate, _) if generate.sampler.is_greedy() && generate.logprobs.is_none())
    }

    /// Whether it generates and its prompt is through.
    pub(super) fn decodes(&self) -> bool {
        matches!(&self.kind, Kind::Generate(_, n) if *n > 0)
    }

    /// Takes what came of its planned tokens from the front of `rows`.
    pub(super) fn take_rows<'l>(&mut self, rows: &mut impl Iterator<Item = Row<'l>>, events: &mut Vec<Event>) {
        for i in 0..self.sequences.len() {
            let sequence = &mut self.sequences[i];
            let planned = std::mem::take(&mut sequence.planned);
            // The pass has moved the cache on.
            let end = sequence.cache.n_tokens();
            let begin = (end - planned).max(sequence.first_row);
            for position in begin..end {
                let Some(row) = rows.next() else { return };
                if self.failure.is_none()
                    && let Err(reason) = self.take_row(i, position, row, events)
                {
                    self.failure = Some(reason);
                }
            }
        }
    }

    /// What came of the token at `position` of a sequence.
    fn take_row(&mut self, i: usize, position: usize, row: Row<'_>, events: &mut Vec<Event>) -> Result<(), String> {
        let sequence = &mut self.sequences[i];
        match &mut self.kind {
            Kind::Generate(generate, n) => {
                let token = match row {
                    Row::Greedy(token) => token,
                    Row::Logits(logits) => are_logits(logits).then(|| generate.sampler.sample(logits)),
                };
                let token = token.ok_or(NOT_FINITE)?;
                let score = match (row, generate.logprobs) {
                    (Row::Logits(logits), Some(n_top)) => Some(LogProbs::new(logits, n_top)?.score(token)),
                    _ => None,
                };
                *n += 1;
                events.push(Event::Token { id: self.id, token, score });
                if generate.stop_ids.contains(&token) {
                    self.finish = Some(Finish::Stop);
                } else if *n == generate.max_new_tokens {
                    self.finish = Some(Finish::Length);
                } else {
                    sequence.tokens.push(token);
                    sequence.first_row = sequence.tokens.len() - 1;
                }
            }
            Kind::Score(score, scores) => {
                let at = position + 1 - score.context.len();
                let Row::Logits(logits) = row else { return Err("scores need logits".to_owned()) };
                let row = LogProbs::new(logits, score.n_top)?;
                for (k, (continuation, scores)) in score.continuations.iter().zip(scores).enumerate() {
                    if let Some(&target) = continuation.get(at)
                        && sequence.branch.is_none_or(|branch| branch == k)
                    {
                        scores.push(row.score(target));
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on after a pass: a finished trunk grows branches. The event that ends the job, once it is done.
    pub(super) fn advance(&mut self) -> Option<Event> {
        let id = self.id;
        if let Some(reason) = self.failure.take() {
            return Some(Event::Failed { id, reason });
        }
        if let Some(finish) = self.finish {
            return Some(Event::Finished { id, finish });
        }
        let Kind::Score(score, scores) = &mut self.kind else { return None };
        if self.sequences.iter().any(|sequence| sequence.n_left() > 0) {
            return None;
        }
        if let [trunk] = &self.sequences[..]
            && trunk.branch.is_none()
        {
            let n = trunk.tokens.len();
            let mut branches = Vec::new();
            for (branch, input) in score.inputs().into_iter().enumerate() {
                let tokens = [&score.context[..], input].concat();
                if tokens.len() > n {
                    let cache = trunk.cache.fork(n, tokens.len());
                    branches.push(Sequence {
                        cache,
                        tokens,
                        first_row: n,
                        inherited: n / BLOCK,
                        planned: 0,
                        branch: Some(branch),
                    });
                }
            }
            if !branches.is_empty() {
                self.spent = trunk.cache.n_blocks() - trunk.inherited;
                self.sequences = branches;
                return None;
            }
        }
        Some(Event::Scored { id, scores: std::mem::take(scores) })
    }
}

const NOT_FINITE: &str = "logits are not finite: the forward pass or the weights are broken";

/// What a pass says of a position.
#[derive(Clone, Copy)]
pub(super) enum Row<'l> {
    /// All logits.
    Logits(&'l [f32]),
    /// The likeliest token, where logits are finite.
    Greedy(Option<u32>),
}

/// Logits that give log-probabilities.
struct LogProbs<'l> {
    logits: &'l [f32],
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl<'l> LogProbs<'l> {
    fn new(logits: &'l [f32], n_top: usize) -> Result<Self, String> {
        let log_sum = ops::log_sum_exp(logits);
        if !log_sum.is_finite() {
            return Err(NOT_FINITE.to_owned());
        }
        let mut row = Self { logits, log_sum, top: Vec::new() };
        let mut top: Vec<u32> = Vec::with_capacity(n_top + 1);
        for (id, &logit) in logits.iter().enumerate() {
            if top.len() < n_top || top.last().is_some_and(|&last| logit > logits[last as usize]) {
                let at = top.partition_point(|&other| logits[other as usize] >= logit);
                top.insert(at, id as u32);
                top.truncate(n_top);
            }
        }
        row.top = top.into_iter().map(|id| (id, row.log_prob(id))).collect();
        Ok(row)
    }

    fn log_prob(&self, id: u32) -> f32 {
        (f64::from(self.logits[id as usize]) - self.log_sum) as f32
    }

    fn score(&self, token: u32) -> TokenScore {
        TokenScore { log_prob: self.log_prob(token), top: self.top.clone() }
    }
}
