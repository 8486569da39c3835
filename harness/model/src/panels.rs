//! A head's keys and values as a KV cache keeps them: where numbers lie in a block, and what attention does with them.
//!
//! Within a block numbers lie in the order in which attention asks for them: keys with the positions in neighbouring lanes, so that
//! scores need no sum across lanes, and values in panels of 16 dimensions. Int8 numbers lie in pairs, of dimensions or of positions, and
//! the units of the block's 16 rows lie behind them.

use std::ops::{Deref, Range};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use ternbench_kernels::ops::{self, IntWeights, LANES, Query, Scores};

use crate::config::{MAX_HEAD_DIM, ModelConfig};

/// Positions per block: as many as there are lanes. Smaller blocks waste less at the ends of short sequences, and a head's part of
/// one is still some pages of memory.
pub const BLOCK: usize = LANES;

/// Blocks that hold `n` positions.
pub fn blocks_for(n: usize) -> usize {
    n.div_ceil(BLOCK)
}

/// Positions of the blocks that [`Panels`] are made of, at most.
pub(crate) const CHUNK: usize = 16 * BLOCK;

const _: () = assert!(MAX_HEAD_DIM <= size_of::<Query>() / size_of::<f32>());
const _: () = assert!(CHUNK <= size_of::<Scores>() / size_of::<f32>());
const _: () = assert!(MAX_HEAD_DIM <= IntWeights::MAX_NUMBERS && CHUNK <= IntWeights::MAX_POSITIONS);

/// Bytes of the units of a block's positions.
const UNITS: usize = BLOCK * size_of::<f32>();

/// What keys and values are kept as. Softmax is computed in f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As computed: the reference for accuracy.
    #[default]
    F32,
    /// Rounded to half precision, as llama.cpp keeps them: half of the bytes to read at every token.
    F16,
    /// Rounded to int8 in a unit of each position and head, a quarter of the bytes. Queries and softmax weights are rounded to int16.
    Int8,
}

impl KvType {
    /// The name in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of a row of numbers, with its unit.
    fn row_bytes(self, n: usize) -> usize {
        match self {
            Self::F32 => 4 * n,
            Self::F16 => 2 * n,
            Self::Int8 => n + size_of::<f32>(),
        }
    }

    /// Bytes of keys and values of `n` tokens.
    pub fn bytes_for(self, config: &ModelConfig, n: usize) -> usize {
        2 * self.row_bytes(config.head_dim) * config.n_kv_heads * config.n_layers * n
    }

    /// Bytes of a head's keys, or of its values, in a block: the last panel of values may not be full.
    pub(crate) fn part_bytes(self, head_dim: usize) -> usize {
        BLOCK * self.row_bytes(head_dim.next_multiple_of(LANES))
    }

    /// Puts a key at position `lane` of a block's keys.
    pub(crate) fn store_key(self, part: &mut [u8], lane: usize, key: &[f32]) {
        self.store(part, lane, key, |i| match self {
            Self::F32 | Self::F16 => i * BLOCK + lane,
            Self::Int8 => 2 * (i / 2 * BLOCK + lane) + i % 2,
        });
    }

    /// Puts a value at position `lane` of a block's values.
    pub(crate) fn store_value(self, part: &mut [u8], lane: usize, value: &[f32]) {
        self.store(part, lane, value, |i| {
            let (panel, column) = (i / LANES * BLOCK, i % LANES);
            match self {
                Self::F32 | Self::F16 => (panel + lane) * LANES + column,
                Self::Int8 => (panel + lane / 2 * 2) * LANES + 2 * column + lane % 2,
            }
        });
    }

    /// Asks for the memory to which [`Self::store_key`], or [`Self::store_value`], will put position `lane`.
    pub(crate) fn ask_for_position(self, part: &[u8], lane: usize, is_key: bool) {
        // Of a panel of values.
        let row = LANES
            * match self {
                Self::F32 => 4,
                Self::F16 => 2,
                Self::Int8 => 1,
            };
        if is_key { ops::ask_for_lines(part, 64) } else { ops::ask_for_lines(&part[lane * row..], BLOCK * row) }
    }

    /// Puts `row[i]` at `place(i)`, and what row `lane` counts in behind all.
    fn store(self, part: &mut [u8], lane: usize, row: &[f32], place: impl Fn(usize) -> usize) {
        match self {
            Self::F32 => {
                let all: &mut [f32] = bytemuck::cast_slice_mut(part);
                row.iter().enumerate().for_each(|(i, &x)| all[place(i)] = x);
            }
            Self::F16 => {
                let all: &mut [f16] = bytemuck::cast_slice_mut::<u8, u16>(part).reinterpret_cast_mut();
                // Together: one by one, each would ask for the CPU's features.
                let mut halves = [f16::ZERO; MAX_HEAD_DIM];
                let halves = &mut halves[..row.len()];
                halves.convert_from_f32_slice(row);
                halves.iter().enumerate().for_each(|(i, &x)| all[place(i)] = x);
            }
            Self::Int8 => {
                let mut ints = [0; MAX_HEAD_DIM];
                let ints = &mut ints[..row.len()];
                let unit = ops::quantize_i16(row, 127.0, ints);
                let (all, units) = part.split_at_mut(part.len() - UNITS);
                ints.iter().enumerate().for_each(|(i, &x)| all[place(i)] = x as u8);
                bytemuck::cast_slice_mut(units)[lane] = unit;
            }
        }
    }
}

/// Queries as they are multiplied with keys: one of these is empty.
#[derive(Default)]
pub(crate) struct Queries {
    floats: Vec<Query>,
    /// Of int8 keys.
    ints: Vec<IntWeights>,
}

impl Queries {
    /// Takes others, scaled, for keys of a type.
    pub(crate) fn set<'q>(&mut self, ty: KvType, queries: impl Iterator<Item = &'q [f32]> + Clone, scale: f32) {
        let n = queries.clone().count();
        let (floats, ints) = if ty == KvType::Int8 { (0, n) } else { (n, 0) };
        self.floats.resize(floats, [0.0; _]);
        self.ints.resize(ints, IntWeights::default());
        for (floats, query) in self.floats.iter_mut().zip(queries.clone()) {
            ops::scale(scale, query, &mut floats[..query.len()]);
        }
        let mut scaled = [0.0; MAX_HEAD_DIM];
        for (ints, query) in self.ints.iter_mut().zip(queries) {
            let scaled = &mut scaled[..query.len()];
            ops::scale(scale, query, scaled);
            ints.set_query(scaled);
        }
    }
}

/// A head's keys, or its values, in some blocks.
pub(crate) struct Panels<'c> {
    /// The blocks as bytes.
    parts: Each<&'c [u8]>,
    ty: KvType,
    head_dim: usize,
}

/// Something of each block, without a visit to the allocator.
#[derive(Default)]
struct Each<T> {
    all: [T; CHUNK / BLOCK],
    len: usize,
}

impl<T: Default> Extend<T> for Each<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        for item in items {
            self.all[self.len] = item;
            self.len += 1;
        }
    }
}

impl<T: Default> FromIterator<T> for Each<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut each = Self::default();
        each.extend(items);
        each
    }
}

impl<T> Deref for Each<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[..self.len]
    }
}

impl<'c> Panels<'c> {
    pub(crate) fn new(parts: impl Iterator<Item = &'c [u8]>, ty: KvType, head_dim: usize) -> Self {
        Self { parts: parts.collect(), ty, head_dim }
    }

    /// The blocks, and those of `next`, which will be read after them.
    fn blocks<'p>(&'p self, next: Option<&'p Panels<'_>>) -> ops::Blocks<'p> {
        ops::Blocks { all: &self.parts, next: next.map_or(&[], |next| &next.parts) }
    }

    /// The scores of keys: their products with queries, for all positions of the blocks, those that are not held among them, which mean
    /// nothing. `next` will be read after them.
    pub(crate) fn scores(&self, queries: &Queries, scores: &mut [Scores], next: Option<&Panels<'_>>) {
        let blocks = self.blocks(next);
        match self.ty {
            KvType::F32 => ops::scores_f32(&queries.floats, blocks, self.head_dim, scores),
            KvType::F16 => ops::scores_f16(&queries.floats, blocks, self.head_dim, scores),
            KvType::Int8 => ops::scores_i8(&queries.ints, blocks, self.head_dim.div_ceil(2), scores),
        }
    }

    /// Adds `Σ weight · value` over the positions of the blocks that a query sees to its sums, which are 0 before, and `stride` apart. `seen` has
    /// them for each token, whose queries follow each other. Weights of what is not seen may be set to 0. `next` will be read after them.
    pub(crate) fn add_values(
        &self,
        weights: &mut [Scores],
        seen: &[Range<usize>],
        ints: &mut Vec<IntWeights>,
        sums: &mut [f32],
        stride: usize,
        next: Option<&Panels<'_>>,
    ) {
        let blocks = self.blocks(next);
        match self.ty {
            KvType::F32 => ops::add_values_f32(weights, blocks, seen, sums, stride),
            KvType::F16 => ops::add_values_f16(weights, blocks, seen, sums, stride),
            KvType::Int8 => {
                let n_heads = weights.len() / seen.len();
                ints.resize(weights.len(), IntWeights::default());
                for (i, (ints, weights)) in ints.iter_mut().zip(weights).enumerate() {
                    let seen = &seen[i / n_heads];
                    weights[..seen.start].fill(0.0);
                    weights[seen.end..self.parts.len() * BLOCK].fill(0.0);
                    ops::quantize_weights(weights, &self.parts, ints);
                }
                ops::values_i8(ints, blocks, self.head_dim.div_ceil(LANES), sums, stride);
            }
        }
    }
}

/// What is in both; an empty part of `other` when nothing is.
pub(crate) fn common(range: &Range<usize>, other: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(other.start, other.end);
    start..range.end.clamp(start, other.end.max(start))
}
