//! Causal softmax attention over the keys and values of many sequences.
//!
//! Positions are taken in chunks of [`CHUNK`], whose scores stay in the L1 cache and which many threads can share. Each chunk has a
//! softmax of its own, and the answers of the chunks are folded in order (the online softmax of Milakov & Gimelshein 2018; between
//! threads, the split of Flash-Decoding, Dao et al. 2023). A result depends on its query and its sequence alone: chunks begin at fixed
//! positions, and a chunk's positions are taken in order, however queries are put together and work is split.

use std::cell::RefCell;
use std::ops::Range;

use ternbench_kernels::bytes::Aligned;
use ternbench_kernels::team::SharedMut;
use ternbench_kernels::{Team, ops};

use crate::config::ModelConfig;
use crate::kv_cache::KvCache;
use crate::panels::{BLOCK, CHUNK, Panels, Queries, common};
use crate::segment::Segment;

/// Queries (a head of a token) that one work item answers: they share keys and values while those are near. Four times the 12 that go together
/// with AVX-512, three times the 16 of an AMX tile.
const QUERIES: usize = 48;

/// Work items per thread from which on no item is split into chunks.
const ENOUGH: usize = 8;

/// Every token of `segments` attends to its sequence up to itself, at most the last `window` positions; query head `i` reads KV
/// head `i / (heads / kv_heads)`. `q` and `out` are `tokens x heads x head_dim`; the keys and values are in the caches, which
/// have not been advanced yet.
pub(crate) fn attend(
    team: &Team,
    config: &ModelConfig,
    segments: &[Segment<'_>],
    layer: usize,
    window: Option<usize>,
    q: &[f32],
    out: &mut [f32],
) {
    let (head_dim, n_heads) = (config.head_dim, config.n_heads);
    let group = n_heads / config.n_kv_heads;
    // The heads of a group go together, unless that leaves threads without work: a single sequence on many cores.
    let n_tokens: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
    let enough = |heads: &usize| n_tokens * n_heads >= 2 * team.n_threads() * *heads;
    let together = (1..=group).rev().filter(|heads| group.is_multiple_of(*heads)).find(enough).unwrap_or(1);
    let mut items = Vec::new();
    let mut row = 0;
    for segment in segments {
        let n_tokens = (QUERIES / together).max(1);
        // One KV head after the other: what it has stays near for all tokens.
        for first_head in (0..n_heads).step_by(together) {
            items.extend((0..segment.tokens.len()).step_by(n_tokens).map(|start| Item {
                cache: &*segment.cache,
                layer,
                kv_head: first_head / group,
                position: segment.cache.len() + start,
                window,
                n_tokens: n_tokens.min(segment.tokens.len() - start),
                n_heads: together,
                at: ((row + start) * n_heads + first_head) * head_dim,
                token_stride: n_heads * head_dim,
                head_dim,
            }));
        }
        row += segment.tokens.len();
    }
    let out = SharedMut::new(out);
    let n_chunks = items.iter().map(|item| item.chunks().len()).max().unwrap_or(0);
    if n_chunks <= 1 || items.len() >= ENOUGH * team.n_threads() {
        by_items(team, &items, q, &out);
    } else {
        by_chunks(team, &items, q, &out);
    }
}

/// Threads take items, one after the other.
fn by_items(team: &Team, items: &[Item<'_>], q: &[f32], out: &SharedMut<'_, f32>) {
    team.split(items.len(), items.len().div_ceil(team.n_threads() * 8), |range| {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { queries, answers, of_chunk, .. } = scratch;
            let from = items.iter().enumerate().skip(range.start);
            let work = from.flat_map(|(i, item)| item.chunks().map(move |chunk| (i, item, chunk)));
            in_turn(work, range.end, |_, item, chunk, views, next| {
                let is_first = chunk == item.chunks().start;
                if is_first {
                    item.take_queries(q, queries);
                    answers.resize(item.answers_len(), 0.0);
                }
                item.answer(chunk, views, next, queries, of_chunk);
                item.fold(answers, &of_chunk.answers, is_first);
                if chunk + 1 == item.chunks().end {
                    item.finish(answers, out);
                }
            });
        });
    });
}

/// For a few queries over long sequences: threads take chunks of items, in the order in which they lie in memory. What they make of them is
/// folded at the end, or by a single thread at once.
fn by_chunks(team: &Team, items: &[Item<'_>], q: &[f32], out: &SharedMut<'_, f32>) {
    let alone = team.n_threads() == 1;
    let mut pieces: Vec<(usize, usize)> =
        items.iter().enumerate().flat_map(|(i, item)| item.chunks().map(move |chunk| (chunk, i))).collect();
    pieces.sort_unstable();
    // The item of each part.
    let parts_of: Vec<usize> =
        if alone { (0..items.len()).collect() } else { pieces.iter().map(|&(_, item)| item).collect() };
    // Taken out, as this thread works on chunks as well.
    let take = |scratch: &mut Scratch| (std::mem::take(&mut scratch.of_items), std::mem::take(&mut scratch.parts));
    let (mut queries, mut parts) = SCRATCH.with_borrow_mut(take);
    queries.resize_with(queries.len().max(items.len()), Queries::default);
    items.iter().zip(&mut queries).for_each(|(item, queries)| item.take_queries(q, queries));
    let len = items.iter().map(Item::answers_len).max().unwrap_or(0);
    parts.resize(parts_of.len() * len, 0.0);
    let shared = SharedMut::new(&mut parts);
    team.split(pieces.len(), pieces.len().div_ceil(team.n_threads() * 32), |range| {
        SCRATCH.with_borrow_mut(|Scratch { of_chunk, .. }| {
            let from = pieces.iter().enumerate().skip(range.start);
            let work = from.map(|(i, &(chunk, item))| (i, &items[item], chunk));
            in_turn(work, range.end, |i, item, chunk, views, next| {
                let of_item = pieces[i].1;
                item.answer(chunk, views, next, &queries[of_item], of_chunk);
                let start = len * if alone { of_item } else { i };
                // SAFETY: each piece of work is handed out once, and this is its own part, or all is done by one thread.
                let part = unsafe { shared.slice(start..start + item.answers_len()) };
                item.fold(part, &of_chunk.answers, !alone || chunk == item.chunks().start);
            });
        });
    });
    team.split(items.len(), 1, |range| {
        for i in range {
            let item = &items[i];
            let mut answers = vec![0.0; item.answers_len()];
            let parts = parts.chunks_exact(len).zip(&parts_of).filter(|(_, of)| **of == i);
            for (number, (part, _)) in parts.enumerate() {
                item.fold(&mut answers, &part[..item.answers_len()], number == 0);
            }
            item.finish(&answers, out);
        }
    });
    SCRATCH.with_borrow_mut(|scratch| (scratch.of_items, scratch.parts) = (queries, parts));
}

/// Calls `answer(i, item, chunk, its views, the next views)` for each piece of `work`, an item and a chunk, up to the first whose number `i`
/// is `end`: that one is only what comes next.
fn in_turn<'i, 'c: 'i>(
    work: impl Iterator<Item = (usize, &'i Item<'c>, usize)>,
    end: usize,
    mut answer: impl FnMut(usize, &Item<'c>, usize, &Views<'c>, Option<&Views<'c>>),
) {
    let mut work = work.map(|(i, item, chunk)| (i, item, chunk, item.views(chunk))).peekable();
    while let Some((i, item, chunk, views)) = work.next_if(|&(i, ..)| i < end) {
        answer(i, item, chunk, &views, work.peek().map(|(.., views)| views));
    }
}

/// The keys and the values of a head in the blocks of a chunk.
type Views<'c> = (Panels<'c>, Panels<'c>);

/// Neighbouring tokens of a sequence with neighbouring heads that read one KV head: `n_tokens * n_heads` queries.
///
/// An answer is `Σ e^(score - max) · value`, up to a multiple of 16 numbers, the largest score, and `Σ e^(score - max)`.
struct Item<'c> {
    cache: &'c KvCache,
    layer: usize,
    kv_head: usize,
    /// Of the first token.
    position: usize,
    window: Option<usize>,
    n_tokens: usize,
    n_heads: usize,
    /// Where the first query is, and its output; from token to token it is `token_stride` further.
    at: usize,
    token_stride: usize,
    head_dim: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    queries: Queries,
    /// Where chunks are work of their own: the queries of every item.
    of_items: Vec<Queries>,
    /// The answers of every chunk there.
    parts: Vec<f32>,
    answers: Vec<f32>,
    of_chunk: ChunkScratch,
}

#[derive(Default)]
struct ChunkScratch {
    scores: Aligned<ops::Scores>,
    ints: Vec<ops::IntWeights>,
    seen: Vec<Range<usize>>,
    answers: Aligned<f32>,
}

impl<'c> Item<'c> {
    fn n_queries(&self) -> usize {
        self.n_tokens * self.n_heads
    }

    /// The positions that a token sees.
    fn seen(&self, token: usize) -> Range<usize> {
        let end = self.position + token + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The chunks that any token sees.
    fn chunks(&self) -> Range<usize> {
        self.seen(0).start / CHUNK..self.seen(self.n_tokens - 1).end.div_ceil(CHUNK)
    }

    /// Where the heads of a token are in the queries and in the output.
    fn heads(&self, token: usize) -> Range<usize> {
        let start = self.at + token * self.token_stride;
        start..start + self.n_heads * self.head_dim
    }

    fn answer_len(&self) -> usize {
        self.head_dim.next_multiple_of(ops::LANES) + 2
    }

    fn answers_len(&self) -> usize {
        self.n_queries() * self.answer_len()
    }

    /// Takes the queries of all in `q` that are the item's.
    fn take_queries(&self, q: &[f32], queries: &mut Queries) {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let of_item = (0..self.n_tokens).flat_map(|token| q[self.heads(token)].chunks_exact(self.head_dim));
        queries.set(self.cache.ty(), of_item, scale);
    }

    /// The positions of a chunk that any token sees.
    fn seen_of(&self, chunk: usize) -> Range<usize> {
        let all = self.seen(0).start..self.seen(self.n_tokens - 1).end;
        common(&all, &(chunk * CHUNK..(chunk + 1) * CHUNK))
    }

    /// Keys and values at those.
    fn views(&self, chunk: usize) -> Views<'c> {
        let all = self.seen_of(chunk);
        self.cache.head(self.layer, self.kv_head, all.start / BLOCK..all.end.div_ceil(BLOCK))
    }

    /// Answers the queries over the positions of a chunk; `next` will be read after its views.
    fn answer(
        &self,
        chunk: usize,
        (keys, values): &Views<'_>,
        next: Option<&Views<'_>>,
        queries: &Queries,
        scratch: &mut ChunkScratch,
    ) {
        let ChunkScratch { scores, ints, seen, answers } = scratch;
        scores.resize(self.n_queries());
        let all = self.seen_of(chunk);
        // Counted from the first block's beginning on.
        let start = all.start / BLOCK * BLOCK;
        seen.clear();
        seen.extend((0..self.n_tokens).map(|token| {
            let seen = common(&self.seen(token), &all);
            seen.start - start..seen.end - start
        }));

        keys.scores(queries, scores, Some(values));
        let answer_len = self.answer_len();
        answers.resize(self.answers_len());
        answers.fill(0.0);
        ops::exponentials(scores, seen, answers, answer_len);
        values.add_values(scores, seen, ints, answers, answer_len, next.map(|(keys, _)| keys));
    }

    /// Takes the answers over later positions into those over earlier ones, unless these are the first.
    fn fold(&self, answers: &mut [f32], later: &[f32], are_first: bool) {
        if are_first {
            return answers.copy_from_slice(later);
        }
        let len = self.answer_len();
        for (answer, later) in answers.chunks_exact_mut(len).zip(later.chunks_exact(len)) {
            let ((answer, state), (later, later_state)) = (answer.split_at_mut(len - 2), later.split_at(len - 2));
            // Nothing was seen; a sum that is not a number has to go on.
            if later_state[1] != 0.0 {
                let max = state[0].max(later_state[0]);
                // Mostly one of them is the largest.
                let [a, b] = [state[0], later_state[0]].map(|of| if of == max { 1.0 } else { (of - max).exp() });
                ops::mix(a, answer, b, later);
                state.copy_from_slice(&[max, a * state[1] + b * later_state[1]]);
            }
        }
    }

    /// Puts the answers where they belong in the output.
    fn finish(&self, answers: &[f32], out: &SharedMut<'_, f32>) {
        let mut answers = answers.chunks_exact(self.answer_len());
        for token in 0..self.n_tokens {
            // SAFETY: each (token, head) belongs to one item, and items are handed out once.
            let out = unsafe { out.slice(self.heads(token)) };
            for (out, answer) in out.chunks_exact_mut(self.head_dim).zip(&mut answers) {
                let inverse = 1.0 / answer[answer.len() - 1];
                ops::scale(inverse, &answer[..self.head_dim], out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Architecture;
    use crate::kv_cache::{KvPool, KvType};
    use crate::segment::Logits;
    use ternbench_kernels::Pool;

    const LEN: usize = 2 * CHUNK + 37;

    fn wave(n: usize, rate: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * rate).sin() * 3.0).collect()
    }

    /// The output for the last `n` tokens of a sequence of `LEN`, `step` at a time.
    fn attended(
        config: &ModelConfig,
        ty: KvType,
        threads: usize,
        n: usize,
        step: usize,
        window: Option<usize>,
    ) -> Vec<f32> {
        let kv_dim = config.kv_dim();
        let q_dim = config.n_heads * config.head_dim;
        let (q, keys, values) = (wave(LEN * q_dim, 0.37), wave(LEN * kv_dim, 0.73), wave(LEN * kv_dim, 0.11));
        let mut cache = KvPool::new(config, ty).new_cache(LEN);
        cache.store(0, &keys[..(LEN - n) * kv_dim], &values[..(LEN - n) * kv_dim]);
        cache.advance(LEN - n);
        let pool = Pool::new(threads).unwrap();
        let mut out = vec![f32::NAN; n * q_dim];
        for start in (LEN - n..LEN).step_by(step) {
            let tokens = start..(start + step).min(LEN);
            cache.store(
                0,
                &keys[tokens.start * kv_dim..tokens.end * kv_dim],
                &values[tokens.start * kv_dim..tokens.end * kv_dim],
            );
            let ids = vec![0; tokens.len()];
            let q = &q[tokens.start * q_dim..tokens.end * q_dim];
            let out = &mut out[(start + n - LEN) * q_dim..][..tokens.len() * q_dim];
            let segments = [Segment { cache: &mut cache, tokens: &ids, logits: Logits::None }];
            pool.run(|team| attend(team, config, &segments, 0, window, q, out));
            cache.advance(tokens.len());
        }
        out
    }

    fn expected(config: &ModelConfig, n: usize, window: Option<usize>) -> Vec<f64> {
        let ModelConfig { head_dim, n_heads, n_kv_heads, .. } = *config;
        let (q, keys, values) = (
            wave(LEN * n_heads * head_dim, 0.37),
            wave(LEN * n_kv_heads * head_dim, 0.73),
            wave(LEN * n_kv_heads * head_dim, 0.11),
        );
        let mut out = Vec::new();
        for token in LEN - n..LEN {
            for head in 0..n_heads {
                let q = &q[(token * n_heads + head) * head_dim..][..head_dim];
                let row = |all: &[f32], position: usize| -> Vec<f64> {
                    let at = (position * n_kv_heads + head * n_kv_heads / n_heads) * head_dim;
                    all[at..at + head_dim].iter().map(|&x| f64::from(x)).collect()
                };
                let seen = window.map_or(0, |window| (token + 1).saturating_sub(window))..token + 1;
                let score = |position| -> f64 {
                    let dot: f64 = row(&keys, position).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let sum: f64 = scores.iter().sum();
                let mut answer = vec![0.0; head_dim];
                for (position, score) in seen.zip(scores) {
                    answer.iter_mut().zip(row(&values, position)).for_each(|(out, v)| *out += score / sum * v);
                }
                out.extend(answer);
            }
        }
        out
    }

    #[test]
    fn attention_is_that_of_the_definition_and_does_not_depend_on_how_work_is_split() {
        for (n_heads, n_kv_heads, head_dim) in [(4, 1, 16), (3, 3, 20), (6, 2, 8)] {
            let config = ModelConfig::new(Architecture::Bitnet, 1, 64, 64, n_heads, n_kv_heads, head_dim, 8);
            for window in [None, Some(5), Some(CHUNK + 3)] {
                let n = 70;
                let together = attended(&config, KvType::F32, 1, n, n, window);
                for (got, expected) in together.iter().zip(expected(&config, n, window)) {
                    assert!((f64::from(*got) - expected).abs() < 2e-5, "{got} {expected}");
                }
                for (threads, step) in [(1, 1), (2, 1), (2, 7), (1, 33)] {
                    let apart = attended(&config, KvType::F32, threads, n, step, window);
                    assert!(apart == together, "{threads} threads, {step} tokens at a time, window {window:?}");
                }
                for (ty, error) in [(KvType::F16, 2e-2), (KvType::Int8, 8e-2)] {
                    let rounded = attended(&config, ty, 1, n, n, window);
                    assert!(attended(&config, ty, 2, n, 1, window) == rounded, "{ty:?}, window {window:?}");
                    let worst = rounded.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst > 0.0 && worst < error, "{ty:?}: {worst}");
                }
            }
        }
    }

    #[test]
    fn a_key_or_value_that_is_no_number_is_not_lost() {
        let config = ModelConfig::new(Architecture::Bitnet, 1, 16, 16, 1, 1, 16, 8);
        let pool = Pool::new(1).unwrap();
        let bad = [3..4, CHUNK + 3..CHUNK + 4, LEN - 1..LEN, 0..CHUNK, CHUNK..2 * CHUNK];
        for (ty, bad) in
            [KvType::F32, KvType::F16, KvType::Int8].into_iter().flat_map(|ty| bad.clone().map(|bad| (ty, bad)))
        {
            for in_keys in [true, false] {
                let mut cache = KvPool::new(&config, ty).new_cache(LEN);
                let (mut keys, mut values) = (wave(LEN * 16, 0.73), wave(LEN * 16, 0.11));
                (if in_keys { &mut keys } else { &mut values })[bad.start * 16..bad.end * 16].fill(f32::NAN);
                cache.store(0, &keys, &values);
                cache.advance(LEN - 1);
                let segments = [Segment { cache: &mut cache, tokens: &[0], logits: Logits::None }];
                let mut out = [0.0; 16];
                pool.run(|team| attend(team, &config, &segments, 0, None, &wave(16, 0.37), &mut out));
                assert!(out.iter().all(|x| x.is_nan()), "{ty:?}, in keys: {in_keys}, positions {bad:?}: {out:?}");
            }
        }
    }

    #[test]
    fn what_a_block_held_before_changes_nothing() {
        let config = ModelConfig::new(Architecture::Bitnet, 1, 16, 16, 1, 1, 16, 8);
        let pool = Pool::new(1).unwrap();
        let attended = |cache: &mut KvCache, window| {
            let n = 21;
            cache.store(0, &wave(n * 16, 0.73), &wave(n * 16, 0.11));
            let segments = [Segment { cache, tokens: &vec![0; n], logits: Logits::None }];
            let mut out = vec![0.0; n * 16];
            pool.run(|team| attend(team, &config, &segments, 0, window, &wave(n * 16, 0.37), &mut out));
            out
        };
        for ty in [KvType::F32, KvType::F16, KvType::Int8] {
            for window in [None, Some(5)] {
                let expected = attended(&mut KvPool::new(&config, ty).new_cache(64), window);
                for before in [f32::NAN, f32::INFINITY, 1e30] {
                    let kv = KvPool::new(&config, ty);
                    let mut cache = kv.new_cache(64);
                    cache.store(0, &[before; 64 * 16], &[before; 64 * 16]);
                    cache.advance(64);
                    cache.truncate(0);
                    assert_eq!(attended(&mut cache, window), expected, "{ty:?}, truncated, {before} before");
                    cache.store(0, &[before; 64 * 16], &[before; 64 * 16]);
                    drop(cache);
                    assert_eq!(
                        attended(&mut kv.new_cache(64), window),
                        expected,
                        "{ty:?}, taken again, {before} before"
                    );
                }
            }
        }
    }
}
