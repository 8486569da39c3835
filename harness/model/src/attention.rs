//! Causal softmax attention over the keys and values of many sequences.

use std::ops::Range;

use ternbench_kernels::team::SharedMut;
use ternbench_kernels::{Team, ops};

use crate::config::ModelConfig;
use crate::transformer::Segment;

/// Queries (a head of a token) that one work item answers: they share keys and values while those are in the L1 cache.
const QUERIES: usize = 16;

/// Every token of `segments` attends to its sequence up to itself, at most the last `window` positions; query head `i` reads KV
/// head `i / (heads / kv_heads)`. `q` and `out` are `tokens x heads x head_dim`; the keys and values are in the caches, which
/// have not been advanced yet.
///
/// A result depends on its query and its sequence alone: keys are taken in order, however queries are put together.
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
    let n_parts = n_heads / together;
    let block = (QUERIES / together).max(1);
    // Some neighbouring tokens of a sequence: (cache, position and row of the first, how many).
    let mut blocks = Vec::new();
    let mut row = 0;
    for segment in segments {
        for start in (0..segment.tokens.len()).step_by(block) {
            let len = block.min(segment.tokens.len() - start);
            blocks.push((&*segment.cache, segment.cache.len() + start, row + start, len));
        }
        row += segment.tokens.len();
    }
    let scale = 1.0 / (head_dim as f32).sqrt();
    let out = SharedMut::new(out);
    let n_items = blocks.len() * n_parts;
    team.split(n_items, n_items.div_ceil(team.n_threads() * 8), |items| {
        let (mut scores, mut wide) = (Vec::new(), Vec::new());
        for item in items {
            let (cache, position, row, n_tokens) = blocks[item / n_parts];
            let first_head = item % n_parts * together;
            // The positions that a token of the block sees, and those that any does.
            let seen = |token: usize| {
                let end = position + token + 1;
                window.map_or(0, |window| end.saturating_sub(window))..end
            };
            let all = seen(0).start..position + n_tokens;
            // A token's head, where its scores begin, and where its values are in `q` and `out`.
            let queries = || {
                (0..n_tokens * together).map(|query| {
                    let (token, head) = (query / together, first_head + query % together);
                    let at = ((row + token) * n_heads + head) * head_dim;
                    (token, query * all.len(), at..at + head_dim)
                })
            };
            let pieces = || {
                let mut start = all.start;
                cache.head(layer, first_head / group, all.clone()).map(move |(keys, values)| {
                    let piece = start..start + keys.len() / head_dim;
                    start = piece.end;
                    (piece, keys, values)
                })
            };
            scores.resize(n_tokens * together * all.len(), 0.0);
            for (piece, keys, _) in pieces() {
                let keys = keys.widened(&mut wide);
                for (token, first, at) in queries() {
                    let part = common(&piece, &seen(token));
                    let scores = &mut scores[first + part.start - all.start..first + part.end - all.start];
                    ops::attention_scores(&q[at], rows(keys, &piece, &part, head_dim), scale, scores);
                }
            }
            for (token, first, at) in queries() {
                let seen = seen(token);
                ops::softmax(&mut scores[first + seen.start - all.start..first + seen.end - all.start]);
                // SAFETY: each (token, head) belongs to one item, and items are handed out once.
                unsafe { out.slice(at) }.fill(0.0);
            }
            for (piece, _, values) in pieces() {
                let values = values.widened(&mut wide);
                for (token, first, at) in queries() {
                    let part = common(&piece, &seen(token));
                    let weights = &scores[first + part.start - all.start..first + part.end - all.start];
                    // SAFETY: as above.
                    let out = unsafe { out.slice(at) };
                    ops::add_weighted_sum(weights, rows(values, &piece, &part, head_dim), out);
                }
            }
        }
    });
}

/// What is in both; an empty part of `piece` when nothing is.
fn common(piece: &Range<usize>, other: &Range<usize>) -> Range<usize> {
    let start = piece.start.max(other.start).min(piece.end);
    start..piece.end.min(other.end).max(start)
}

/// The rows of `part` in `data`, which holds those of `piece`.
fn rows<'d>(data: &'d [f32], piece: &Range<usize>, part: &Range<usize>, width: usize) -> &'d [f32] {
    &data[(part.start - piece.start) * width..(part.end - piece.start) * width]
}
