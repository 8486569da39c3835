//! What a forward pass takes: stretches of tokens of any number of sequences, and why it may refuse them.

use thiserror::Error;

use crate::kv_cache::KvCache;

/// Which positions of a segment get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: the tokens only fill the cache.
    None,
    /// The last one.
    Last,
    /// The one at this index of the segment's tokens, and all after it.
    From(usize),
}

/// Tokens of one sequence, appended to its cache by a forward pass. A pass takes any number of segments.
pub struct Segment<'a, C = KvCache> {
    /// The sequence so far.
    pub cache: &'a mut C,
    /// What comes next, at least one token.
    pub tokens: &'a [u32],
    /// Where logits are wanted.
    pub logits: Logits,
}

/// Tokens of a long sequence that go through the layers together: what is kept of them between two matrices stays near. On Emerald Rapids 256 took
/// 1.04 times as long by tiles and as long without, 512 1.04 to 1.07 times.
const TOGETHER: usize = 128;

impl<C> Segment<'_, C> {
    /// The first [`TOGETHER`] tokens as a segment of their own, where there are more and nobody asks for their logits.
    pub(crate) fn take_head(&mut self) -> Option<Segment<'_, C>> {
        let unasked = match self.logits {
            Logits::None | Logits::Last => self.tokens.len() - 1,
            Logits::From(index) => index.min(self.tokens.len() - 1),
        };
        if unasked < TOGETHER {
            return None;
        }
        let (head, rest) = self.tokens.split_at(TOGETHER);
        self.tokens = rest;
        if let Logits::From(index) = &mut self.logits {
            *index -= TOGETHER;
        }
        Some(Segment { cache: self.cache, tokens: head, logits: Logits::None })
    }
}

/// Why a forward pass was refused. Nothing was computed, and no cache was changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ForwardError {
    /// A token id beyond the vocabulary.
    #[error("token id {id} is not below the vocabulary size {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab: usize,
    },
    /// More tokens than the cache has room for.
    #[error("{needed} positions needed, the KV cache has room for {capacity}")]
    Context {
        /// Positions held and to come.
        needed: usize,
        /// Positions there is room for.
        capacity: usize,
    },
    /// A segment without tokens.
    #[error("a segment has no tokens")]
    Empty,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_taken_until_somebody_asks_for_logits() {
        let tokens: Vec<u32> = (0..600).collect();
        for (logits, heads, left) in [
            (Logits::Last, 4, Logits::Last),
            (Logits::None, 4, Logits::None),
            (Logits::From(0), 0, Logits::From(0)),
            (Logits::From(127), 0, Logits::From(127)),
            (Logits::From(128), 1, Logits::From(0)),
            (Logits::From(599), 4, Logits::From(87)),
        ] {
            let mut segment = Segment { cache: &mut (), tokens: &tokens, logits };
            let mut taken = Vec::new();
            while let Some(head) = segment.take_head() {
                assert_eq!((head.tokens.len(), head.logits), (TOGETHER, Logits::None));
                taken.extend_from_slice(head.tokens);
            }
            assert_eq!((taken.len(), segment.logits), (heads * TOGETHER, left), "{logits:?}");
            taken.extend_from_slice(segment.tokens);
            assert_eq!(taken, tokens, "{logits:?}");
        }
        let mut segment = Segment { cache: &mut (), tokens: &tokens[..TOGETHER], logits: Logits::Last };
        assert!(segment.take_head().is_none(), "the last token stays");
    }
}
