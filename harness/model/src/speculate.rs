//! Speculation without loss: what a text said after the same few tokens before is drafted and verified in one pass.
//!
//! A pass over some drafted tokens reads the weights once, and gives the greedy token behind each of them: those that agree with the
//! draft are what greedy decoding gives one by one (speculative decoding, Leviathan et al. 2022; the drafts are those of prompt
//! lookup, Saxena 2023). A pass's results do not depend on what else is in it, so the tokens and their logits are the same to the bit.

use crate::engine::Engine;
use crate::kv_cache::KvCache;
use crate::segment::{ForwardError, Logits, Segment};

/// The longest and the shortest ending that is looked up.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// What became of the drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftUse {
    /// Passes, those without a draft included.
    pub passes: u64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Those that greedy decoding gave as well.
    pub accepted: u64,
}

/// Greedy decoding, several tokens a pass where the text repeats itself.
#[derive(Debug, Default)]
pub struct Speculator {
    max_draft: usize,
    count: DraftUse,
    tokens: Vec<u32>,
    best: Vec<(u32, f32)>,
}

impl Speculator {
    /// Drafts at most `max_draft` tokens a pass; 0 is plain greedy decoding.
    pub fn new(max_draft: usize) -> Self {
        Self { max_draft, ..Self::default() }
    }

    /// What became of the drafts so far.
    pub fn count(&self) -> DraftUse {
        self.count
    }

    /// The next greedy tokens behind `text` with their logits: at least one, at most `most`. `cache` holds a beginning of `text`, and
    /// afterwards all of it and all but the last of the new tokens.
    pub fn next(
        &mut self,
        engine: &mut Engine<'_>,
        cache: &mut KvCache,
        text: &[u32],
        most: usize,
    ) -> Result<&[(u32, f32)], ForwardError> {
        self.count.passes += 1;
        self.best.clear();
        let pending = &text[cache.len().min(text.len())..];
        let draft = draft(text, self.max_draft.min(most.saturating_sub(1)));
        if draft.is_empty() || pending.is_empty() {
            let best = engine.top(&mut [Segment { cache, tokens: pending, logits: Logits::Last }], 1)?;
            self.best.extend(best.iter().flatten());
            return Ok(&self.best);
        }
        self.tokens.clear();
        self.tokens.extend_from_slice(pending);
        self.tokens.extend_from_slice(draft);
        let segment = Segment { cache, tokens: &self.tokens, logits: Logits::From(pending.len() - 1) };
        let best = engine.top(&mut [segment], 1)?;
        let drafted = draft.iter().map(Some).chain([None]);
        for (best, drafted) in best.iter().flatten().zip(drafted) {
            self.best.push(*best);
            if drafted != Some(&best.0) {
                break;
            }
        }
        let accepted = self.best.len() - 1;
        cache.truncate(text.len() + accepted);
        self.count.drafted += draft.len() as u64;
        self.count.accepted += accepted as u64;
        Ok(&self.best)
    }
}

/// What followed the last place before the end where `text` had the same ending, the longest that there is; at most `most` tokens.
fn draft(text: &[u32], most: usize) -> &[u32] {
    for n in (SHORTEST..=LONGEST).rev() {
        let Some(start) = text.len().checked_sub(n) else { continue };
        let ending = &text[start..];
        if let Some(found) = (0..start).rev().find(|&at| text[at..].starts_with(ending)) {
            let follows = &text[found + n..];
            return &follows[..follows.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_place_with_the_longest_ending_is_drafted_from() {
        //            0  1  2  3  4  5  6  7  8  9
        let text = [1, 2, 3, 9, 2, 3, 7, 1, 2, 3];
        assert_eq!(draft(&text, 2), [9, 2], "three tokens at 0, not two at 4");
        assert_eq!(draft(&text[..9], 8), [3, 9, 2, 3, 7, 1, 2]);
        assert_eq!(draft(&[5, 5, 5, 5], 8), [5], "an ending may overlap its last place");
        for nothing in [&[][..], &[1], &[1, 1], &[1, 2, 1], &[1, 2, 3, 4]] {
            assert_eq!(draft(nothing, 8), [0u32; 0], "{nothing:?}");
        }
        assert_eq!(draft(&text, 0), [0u32; 0]);
    }
}
