//! Keys and values of sequences, in blocks that sequences with a common beginning share.
//!
//! A block holds the keys and values of [`BLOCK`] positions in all layers. A fork shares the full blocks of what it continues and
//! copies the one that is being filled, so that a common prefix lies in memory once (the idea of PagedAttention, Kwon et al.
//! 2023). Where blocks begin depends on positions alone, so sharing changes no bit of a result.
//!
//! From block to block a head's keys are neighbours in memory, and so are its values (module `slabs`).

use std::ops::Range;
use std::sync::Arc;

use ternbench_kernels::Team;

use crate::config::ModelConfig;
use crate::panels::Panels;
pub use crate::panels::{BLOCK, KvType, blocks_for};
use crate::segment::Segment;
use crate::slabs::{Block, Slabs};

#[derive(Clone, Copy, Debug)]
struct Shape {
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
    ty: KvType,
}

/// Makes caches of one shape and counts the blocks that they hold together, each shared one once.
#[derive(Clone, Debug)]
pub struct KvPool {
    shape: Shape,
    slabs: Arc<Slabs>,
}

impl KvPool {
    /// For sequences of a model.
    pub fn new(config: &ModelConfig, ty: KvType) -> Self {
        let ModelConfig { n_layers, n_kv_heads, head_dim, .. } = *config;
        Self::of(Shape { n_layers, n_kv_heads, head_dim, ty })
    }

    fn of(shape: Shape) -> Self {
        Self {
            shape,
            slabs: Arc::new(Slabs::new(2 * shape.n_layers * shape.n_kv_heads, shape.ty.part_bytes(shape.head_dim))),
        }
    }

    /// What keys and values are kept as.
    pub fn ty(&self) -> KvType {
        self.shape.ty
    }

    /// An empty cache that takes at most `capacity` tokens. Memory is taken block by block.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache { pool: self.clone(), capacity, len: 0, blocks: Vec::new() }
    }

    /// Blocks held by all caches.
    pub fn blocks_in_use(&self) -> usize {
        self.slabs.in_use()
    }

    /// Bytes taken from the system, for blocks to come among them.
    pub fn bytes(&self) -> usize {
        self.slabs.bytes()
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.slabs.block_bytes()
    }
}

impl Shape {
    /// The parts of a block with a head's keys and with its values.
    fn parts(self, layer: usize, head: usize) -> [usize; 2] {
        let keys = 2 * (layer * self.n_kv_heads + head);
        [keys, keys + 1]
    }
}

/// Puts the keys and values of every segment's tokens (rows of all heads, already rotated) behind the ones held, in one layer.
/// [`KvCache::advance`] makes them count, once all layers have theirs.
pub(crate) fn store(team: &Team, segments: &mut [Segment<'_>], layer: usize, keys: &[f32], values: &[f32]) {
    let mut firsts = Vec::with_capacity(segments.len());
    let mut m = 0;
    for segment in segments.iter_mut() {
        segment.cache.make_room(segment.tokens.len());
        firsts.push(m);
        m += segment.tokens.len();
    }
    let Some(Shape { n_kv_heads: n_heads, head_dim, .. }) = segments.first().map(|s| s.cache.pool.shape) else {
        return;
    };
    let kv_dim = n_heads * head_dim;
    let segments = &*segments;
    // What one token has is not worth a region.
    let grain = if m == 1 { 2 * n_heads } else { (2 * n_heads * segments.len()).div_ceil(team.n_threads() * 8) };
    let place = |i: usize| {
        let part = i % (2 * n_heads);
        (i / (2 * n_heads), Part { head: part / 2, keys: part.is_multiple_of(2) })
    };
    team.split(2 * n_heads * segments.len(), grain, |parts| {
        for i in parts.clone() {
            // Parts lie on pages of their own, which take longer to find than to write to.
            if i + 1 < parts.end {
                let (segment, part) = place(i + 1);
                segments[segment].cache.ask_for_part(layer, part);
            }
            let (segment, part) = place(i);
            let Segment { cache, tokens, .. } = &segments[segment];
            let rows = firsts[segment] * kv_dim..(firsts[segment] + tokens.len()) * kv_dim;
            // SAFETY: there is room; the team hands out every part of every segment once, and segments have caches of their own.
            unsafe { cache.store_part(layer, part, if part.keys { &keys[rows] } else { &values[rows] }) };
        }
    });
}

/// The keys or the values of a head.
#[derive(Clone, Copy)]
struct Part {
    head: usize,
    keys: bool,
}

/// The keys and values of the tokens a sequence has seen.
#[derive(Debug)]
pub struct KvCache {
    pool: KvPool,
    capacity: usize,
    len: usize,
    blocks: Vec<Arc<Block>>,
}

impl KvCache {
    /// What keys and values are kept as.
    pub(crate) fn ty(&self) -> KvType {
        self.pool.ty()
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there may be.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks it refers to, shared ones included.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Forgets all tokens from position `len` on; their memory is kept for the next ones.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A cache that begins with the first `len` tokens of this one (or all, if it has fewer) and takes `capacity`. Full blocks
    /// are shared, the last one is copied if it is not full.
    pub fn fork(&self, len: usize, capacity: usize) -> Self {
        let len = len.min(self.len);
        let mut blocks = self.blocks[..blocks_for(len)].to_vec();
        if !len.is_multiple_of(BLOCK)
            && let Some(last) = blocks.last_mut()
        {
            *last = Arc::new(Block::clone(last));
        }
        Self { pool: self.pool.clone(), capacity, len, blocks }
    }

    /// Makes room for `n` tokens behind the ones held. Blocks that others share are full, so this copies only behind a `truncate`.
    fn make_room(&mut self, n: usize) {
        for block in self.len / BLOCK..blocks_for(self.len + n) {
            if block == self.blocks.len() {
                self.blocks.push(Arc::new(self.pool.slabs.take()));
            }
            Arc::make_mut(&mut self.blocks[block]);
        }
    }

    /// Asks for the memory of the next token's part.
    fn ask_for_part(&self, layer: usize, Part { head, keys }: Part) {
        let part = self.pool.shape.parts(layer, head)[usize::from(!keys)];
        if let Some(block) = self.blocks.get(self.len / BLOCK) {
            self.pool.ty().ask_for_position(block.part(part), self.len % BLOCK, keys);
        }
    }

    /// Puts one part of the keys or values of tokens (rows of all heads) behind the ones held.
    ///
    /// # Safety
    /// [`Self::make_room`] made room for them, and nobody else reads or writes the part meanwhile.
    unsafe fn store_part(&self, layer: usize, Part { head, keys }: Part, rows: &[f32]) {
        let shape = self.pool.shape;
        let [of_keys, of_values] = shape.parts(layer, head);
        for (i, row) in rows.chunks_exact(shape.n_kv_heads * shape.head_dim).enumerate() {
            let (block, lane) = ((self.len + i) / BLOCK, (self.len + i) % BLOCK);
            let row = &row[head * shape.head_dim..][..shape.head_dim];
            // SAFETY: the block is this cache's alone since room was made, the part the caller's.
            let part = |part| unsafe { self.blocks[block].own_part(part) };
            if keys {
                shape.ty.store_key(part(of_keys), lane, row);
            } else {
                shape.ty.store_value(part(of_values), lane, row);
            }
        }
    }

    /// [`store`] for tests.
    #[cfg(test)]
    pub(crate) fn store(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let n = keys.len() / (self.pool.shape.n_kv_heads * self.pool.shape.head_dim);
        let mut segments = [Segment { cache: self, tokens: &vec![0; n], logits: crate::segment::Logits::None }];
        let pool = ternbench_kernels::Pool::new(2).expect("threads");
        pool.run(|team| store(team, &mut segments, layer, keys, values));
    }

    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Keys and values of one head in some blocks.
    pub(crate) fn head(&self, layer: usize, head: usize, blocks: Range<usize>) -> (Panels<'_>, Panels<'_>) {
        let shape = self.pool.shape;
        let [keys, values] = shape.parts(layer, head);
        let parts = |part| self.blocks[blocks.clone()].iter().map(move |block| block.part(part));
        [keys, values].map(|part| Panels::new(parts(part), shape.ty, shape.head_dim)).into()
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use ternbench_kernels::ops::LANES;

    use super::*;
    use crate::panels::Queries;

    const SHAPE: Shape = Shape { n_layers: 2, n_kv_heads: 2, head_dim: 3, ty: KvType::F32 };

    fn pool() -> KvPool {
        KvPool::of(SHAPE)
    }

    /// Appends `n` tokens whose numbers say layer, position, head and `salt`.
    fn push(cache: &mut KvCache, n: usize, salt: f32) {
        for layer in 0..SHAPE.n_layers {
            let row = |position: usize, sign: f32| {
                (0..6).map(move |i| sign * (salt + (1000 * layer + 10 * position) as f32 + i as f32))
            };
            let rows = |sign| (cache.len()..cache.len() + n).flat_map(|p| row(p, sign)).collect::<Vec<f32>>();
            let (keys, values) = (rows(1.0), rows(-1.0));
            cache.store(layer, &keys, &values);
        }
        cache.advance(n);
    }

    /// All keys at `positions`, having held the values against them.
    fn read(cache: &KvCache, positions: Range<usize>) -> Vec<f32> {
        let mut all = Vec::new();
        for layer in 0..SHAPE.n_layers {
            for head in 0..SHAPE.n_kv_heads {
                for position in positions.clone() {
                    let block = position / BLOCK;
                    let (keys, values) = cache.head(layer, head, block..block + 1);
                    let lane = position % BLOCK;
                    let (mut key, mut value) = ([0.0; 3], [0.0; LANES]);
                    let mut ints = Vec::new();
                    for (i, key) in key.iter_mut().enumerate() {
                        let (mut query, mut scores) = ([0.0; 3], [[0.0; _]]);
                        query[i] = 1.0;
                        let mut queries = Queries::default();
                        queries.set(cache.ty(), std::iter::once(&query[..]), 1.0);
                        keys.scores(&queries, &mut scores, None);
                        *key = scores[0][lane];
                    }
                    let mut weights = [0.0; _];
                    weights[lane] = 1.0;
                    let seen = lane..lane + 1;
                    let seen = std::slice::from_ref(&seen);
                    values.add_values(&mut [weights], seen, &mut ints, &mut value, LANES, None);
                    // Queries and weights are rounded, too, where the cache is of int8.
                    let most = if cache.pool.ty() == KvType::Int8 { 1e-6 } else { 0.0 };
                    assert!(key.iter().zip(&value).all(|(a, b)| (a + b).abs() <= a.abs() * most), "{key:?} {value:?}");
                    all.extend(key);
                }
            }
        }
        all
    }

    #[test]
    fn rows_come_back_in_order_however_they_were_stored() {
        let mut whole = pool().new_cache(100);
        push(&mut whole, 50, 0.0);
        let mut pieces = pool().new_cache(100);
        [1, 15, 1, 20, 13].into_iter().for_each(|n| push(&mut pieces, n, 0.0));
        for positions in [0..50, 0..16, 5..33, 16..17, 31..32, 48..50] {
            let rows = read(&whole, positions.clone());
            assert_eq!(rows.len(), positions.len() * 3 * 4);
            assert_eq!(rows[0], (10 * positions.start) as f32);
            assert_eq!(read(&pieces, positions), rows);
        }
    }

    #[test]
    fn half_precision_rounds_and_takes_half_of_the_bytes() {
        let half = KvPool::of(Shape { ty: KvType::F16, ..SHAPE });
        assert_eq!(2 * half.block_bytes(), pool().block_bytes());
        let mut cache = half.new_cache(100);
        push(&mut cache, 20, 0.25);
        // Whole numbers and a quarter: exact below 512 (eleven bits), even numbers from 2048 on.
        let rows = read(&cache, 0..20);
        assert_eq!(rows[..3], [0.25, 1.25, 2.25]);
        let mut wide = pool().new_cache(100);
        push(&mut wide, 20, 0.25);
        let expected: Vec<f32> = read(&wide, 0..20).into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
        assert_eq!(rows, expected);
        assert_ne!(rows, read(&wide, 0..20));
    }

    #[test]
    fn int8_rounds_to_a_unit_of_the_row() {
        let pool = KvPool::of(Shape { ty: KvType::Int8, ..SHAPE });
        // Rows of 16 numbers, behind them a unit: 20 bytes for 64.
        assert_eq!(16 * pool.block_bytes(), 5 * self::pool().block_bytes());
        let mut cache = pool.new_cache(100);
        for layer in 0..2 {
            cache.store(layer, &[127.0, -3.0, 5.4, 2.0, -4.0, 1.0], &[-127.0, 3.0, -5.4, -2.0, 4.0, -1.0]);
        }
        cache.advance(1);
        let rows = read(&cache, 0..1);
        let expected = [127.0, -3.0, 5.0, 4.0 * 64.0 / 127.0, -4.0, 4.0 * 32.0 / 127.0];
        assert!(rows.iter().zip(expected.into_iter().cycle()).all(|(a, b)| (a - b).abs() < 1e-3), "{rows:?}");
    }

    #[test]
    fn forks_share_full_blocks_and_do_not_see_each_other() {
        let pool = pool();
        let mut trunk = pool.new_cache(100);
        push(&mut trunk, 40, 0.0);
        assert_eq!(pool.blocks_in_use(), 3);
        let (mut a, mut b) = (trunk.fork(40, 100), trunk.fork(20, 100));
        // Two full blocks are shared by a, one by b; each has a copy of the block that it writes to.
        assert_eq!((pool.blocks_in_use(), a.n_blocks(), b.n_blocks()), (5, 3, 2));
        assert_eq!((a.len(), b.len(), trunk.fork(99, 100).len()), (40, 20, 40));
        push(&mut a, 10, 0.25);
        push(&mut b, 20, 0.5);
        push(&mut trunk, 10, 0.0);
        let mut alone = KvPool::of(SHAPE).new_cache(100);
        push(&mut alone, 50, 0.0);
        assert_eq!(read(&trunk, 0..50), read(&alone, 0..50));
        assert_eq!(read(&a, 0..40), read(&trunk, 0..40));
        assert_eq!(read(&a, 40..41)[0], 400.25);
        assert_eq!((read(&b, 19..20)[0], read(&b, 20..21)[0]), (190.0, 200.5));
        drop(trunk);
        drop(a);
        assert_eq!(pool.blocks_in_use(), b.n_blocks());
    }

    #[test]
    fn writing_behind_a_truncation_leaves_forks_alone() {
        let pool = pool();
        let mut cache = pool.new_cache(100);
        push(&mut cache, 32, 0.0);
        let fork = cache.fork(32, 100);
        cache.truncate(4);
        push(&mut cache, 4, 0.5);
        assert_eq!((read(&cache, 4..5)[0], read(&fork, 4..5)[0]), (40.5, 40.0));
    }
}
