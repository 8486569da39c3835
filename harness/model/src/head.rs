//! The best logits without all logits: searches of the screened head, and when to leave them.

use ternbench_kernels::screen::SearchBuffers;
use ternbench_kernels::{Screen, Team};

/// How often the head was read, and how much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadUse {
    /// Positions that got logits, or their best ones.
    pub positions: u64,
    /// Passes over the whole head.
    pub whole: u64,
    /// Positions that they were for.
    pub in_whole: u64,
    /// Passes over its quantised copy.
    pub screened: u64,
    /// Positions that they were for.
    pub in_screened: u64,
    /// Rows read after that, one by one.
    pub rescored: u64,
}

/// The state of an engine's searches.
#[derive(Default)]
pub(crate) struct HeadSearch {
    buffers: SearchBuffers,
    /// For every position, best first: token and logit.
    pub(crate) best: Vec<Vec<(u32, f32)>>,
    pub(crate) count: HeadUse,
    /// Passes for which the copy is left alone.
    waiting: u32,
    /// How many those were last time.
    pause: u32,
}

impl HeadSearch {
    /// The pauses after a search that cost more than the whole head: they double while searches do not pay, so that a model
    /// that cannot be screened loses under 1 % of its time, and one that can is found again soon.
    const PAUSES: std::ops::RangeInclusive<u32> = 16..=1024;

    pub(crate) fn bytes(&self) -> usize {
        self.buffers.bytes()
    }

    /// Puts the `k` best logits behind each of the `m` positions of `x` into `best`; `false` where the whole head is needed, or cheaper.
    pub(crate) fn search(&mut self, screen: &Screen, team: &Team, x: &[f32], m: usize, scale: f32, k: usize) -> bool {
        if self.waiting > 0 {
            self.waiting -= 1;
            return false;
        }
        self.best.resize_with(m, Vec::new);
        let found = screen.search(team, &mut self.buffers, x, scale, k, &mut self.best);
        self.count.screened += 1;
        self.count.in_screened += m as u64;
        self.count.rescored += found.map_or(0, |found| found.rows as u64);
        if found.is_some_and(|found| screen.paid(found.rows, m)) {
            self.pause = 0;
        } else {
            self.pause = (2 * self.pause).clamp(*Self::PAUSES.start(), *Self::PAUSES.end());
            self.waiting = self.pause;
        }
        if found.is_some() {
            self.count.positions += m as u64;
        }
        found.is_some()
    }

    /// The same from all logits, `vocab` for each position.
    pub(crate) fn take_from(&mut self, logits: &[f32], vocab: usize, k: usize) {
        self.best.resize_with(logits.len() / vocab, Vec::new);
        for (best, logits) in self.best.iter_mut().zip(logits.chunks_exact(vocab)) {
            best.clear();
            for logit in (0..).zip(logits.iter().copied()) {
                ternbench_kernels::screen::offer(best, k, logit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::argmax;

    #[test]
    fn the_first_of_equals_as_the_sampler_has_it() {
        let mut search = HeadSearch::default();
        for logits in
            [vec![0.0, 3.0, 1.0, 3.0, 2.0], vec![-0.0, 0.0], vec![f32::NEG_INFINITY; 3], vec![f32::NAN, 1.0, 2.0]]
        {
            search.take_from(&logits, logits.len(), 1);
            assert_eq!(search.best[0][0].0, argmax(&logits), "{logits:?}");
        }
        search.take_from(&[0.0, 3.0, 1.0, 3.0, 2.0], 5, 4);
        assert_eq!(search.best, [[(1, 3.0), (3, 3.0), (4, 2.0), (2, 1.0)]]);
    }
}
