//! A model on a pool of threads: what runs forward passes.

use ternbench_kernels::Pool;

use crate::breakdown::Breakdown;
use crate::kv_cache::{KvCache, KvPool};
use crate::transformer::{Buffers, ForwardError, Segment, Transformer};

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
        let kv = KvPool::new(model.config());
        Self { model, pool, kv, buffers: Buffers::default(), breakdown: Breakdown::default() }
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
        self.pool.run(|team| model.forward(team, buffers, segments, breakdown))?;
        Ok(self.buffers.logits())
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
