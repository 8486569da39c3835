//! A model on a pool of threads: what runs forward passes.

use ternbench_kernels::Pool;

use crate::breakdown::Breakdown;
use crate::head::HeadUse;
use crate::kv_cache::{KvCache, KvPool, KvType};
use crate::sampler;
use crate::segment::{ForwardError, Logits, Segment};
use crate::transformer::{Buffers, Transformer};

/// A model on a pool of threads: what runs forward passes.
pub struct Engine<'m> {
    model: &'m Transformer,
    pool: &'m Pool,
    kv: KvPool,
    buffers: Buffers,
    breakdown: Breakdown,
}

impl<'m> Engine<'m> {
    /// Runs `model` on `pool`. Models and pools are shared: engines with other thread counts can stand beside this one.
    pub fn new(model: &'m Transformer, pool: &'m Pool) -> Self {
        let kv = KvPool::new(model.config(), KvType::default());
        Self { model, pool, kv, buffers: Buffers::default(), breakdown: Breakdown::default() }
    }

    /// Keeps keys and values as `ty` in the caches made from now on.
    pub fn with_kv(mut self, ty: KvType) -> Self {
        self.kv = KvPool::new(self.model.config(), ty);
        self
    }

    /// The model.
    pub fn model(&self) -> &'m Transformer {
        self.model
    }

    /// The threads.
    pub fn pool(&self) -> &'m Pool {
        self.pool
    }

    /// Where the caches' memory is counted.
    pub fn kv(&self) -> &KvPool {
        &self.kv
    }

    /// An empty cache that takes at most `capacity` tokens.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        self.kv.new_cache(capacity)
    }

    /// Appends every segment's tokens to its cache and returns the logits asked for: one row of `vocab` values per position,
    /// segments in order. What else is in the batch changes no bit of a row.
    pub fn forward(&mut self, segments: &mut [Segment<'_>]) -> Result<&[f32], ForwardError> {
        let (model, buffers, breakdown) = (self.model, &mut self.buffers, &mut self.breakdown);
        self.pool.run(|team| model.forward(team, buffers, segments, None, breakdown))?;
        Ok(self.buffers.logits())
    }

    /// Appends every segment's tokens to its cache and returns, for each position asked for, the `k` likeliest tokens with their logits,
    /// best first, of equals the smaller token first: what [`Self::forward`] gives, bit for bit. Where the model has a screen, it reads a
    /// part of the head instead of all.
    pub fn top(&mut self, segments: &mut [Segment<'_>], k: usize) -> Result<&[Vec<(u32, f32)>], ForwardError> {
        let (model, buffers, breakdown) = (self.model, &mut self.buffers, &mut self.breakdown);
        self.pool.run(|team| model.forward(team, buffers, segments, Some(k), breakdown))?;
        Ok(&self.buffers.head.best)
    }

    /// Appends `tokens` to `cache` and returns the likeliest token behind them: greedy decoding.
    pub fn next_token(&mut self, cache: &mut KvCache, tokens: &[u32]) -> Result<u32, ForwardError> {
        let best = self.top(&mut [Segment { cache, tokens, logits: Logits::Last }], 1)?;
        Ok(best.first().and_then(|best| best.first()).map_or(0, |&(token, _)| token))
    }

    /// Appends every segment's tokens to its cache and returns the likeliest token of each position asked for; `None` where logits are not
    /// finite.
    pub fn greedy(&mut self, segments: &mut [Segment<'_>]) -> Result<Vec<Option<u32>>, ForwardError> {
        self.top(segments, 1)?;
        let logits = self.buffers.logits();
        if logits.is_empty() {
            // Screened: weights and inputs are then finite, and so small that nothing overflows.
            return Ok(self.buffers.head.best.iter().map(|best| best.first().map(|&(token, _)| token)).collect());
        }
        Ok(logits.chunks_exact(self.model.config().vocab).map(sampler::greedy).collect())
    }

    /// How much of the head was read so far.
    pub fn head_use(&self) -> HeadUse {
        self.buffers.head.count
    }

    /// Where the time went since the last call.
    pub fn take_breakdown(&mut self) -> Breakdown {
        std::mem::take(&mut self.breakdown)
    }

    /// Bytes of activations held between passes.
    pub fn scratch_bytes(&self) -> u64 {
        self.buffers.bytes() as u64
    }
}
