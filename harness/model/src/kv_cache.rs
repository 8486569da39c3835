//! Keys and values of one sequence.

use crate::config::ModelConfig;

/// The keys and values of the tokens a sequence has seen, in f32, per layer and KV head: `[layer][kv_head][position][head_dim]`.
#[derive(Clone, Debug)]
pub struct KvCache {
    n_kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl KvCache {
    /// Room for `capacity` tokens.
    pub fn new(config: &ModelConfig, capacity: usize) -> Self {
        let layer = || vec![0.0; capacity * config.kv_dim()];
        Self {
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            capacity,
            len: 0,
            keys: (0..config.n_layers).map(|_| layer()).collect(),
            values: (0..config.n_layers).map(|_| layer()).collect(),
        }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of a cache for `capacity` tokens.
    pub fn bytes_for(config: &ModelConfig, capacity: usize) -> usize {
        2 * 4 * config.n_layers * config.kv_dim() * capacity
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Puts `n` tokens' keys and values (`n x kv_dim` each, heads already rotated) behind the ones held, in one layer.
    /// [`Self::advance`] makes them count, once all layers have theirs.
    pub(crate) fn store(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let kv_dim = self.n_kv_heads * self.head_dim;
        for (rows, cache) in [(keys, &mut self.keys[layer]), (values, &mut self.values[layer])] {
            for (i, row) in rows.chunks_exact(kv_dim).enumerate() {
                for (head, row) in row.chunks_exact(self.head_dim).enumerate() {
                    let at = (head * self.capacity + self.len + i) * self.head_dim;
                    cache[at..at + self.head_dim].copy_from_slice(row);
                }
            }
        }
    }

    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Keys and values of one head at positions `start..end`, each `(end - start) x head_dim`.
    pub(crate) fn head(&self, layer: usize, head: usize, start: usize, end: usize) -> (&[f32], &[f32]) {
        let at = |position: usize| (head * self.capacity + position) * self.head_dim;
        (&self.keys[layer][at(start)..at(end)], &self.values[layer][at(start)..at(end)])
    }
}
