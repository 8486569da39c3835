//! The kernel contract.
//!
//! A kernel computes `acc[m][n] = Σ_k w[n,k] · x[m,k]` in i32, with `w` in {-1, 0, +1} and `x` in [-127, 127]. Scales are
//! applied once, in [`crate::driver`]. Any `n`, `k` and `m` work: `pack` pads with zero trits, so no kernel has a tail.
//!
//! Three phases, timed apart: [`TernaryKernel::pack`] once per matrix, [`TernaryKernel::prepare`] once per input (shared by
//! every matrix that reads that input), [`TernaryKernel::compute`] in the hot loop: no allocation, no threads, no panic.

use std::fmt;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::bytes::{AlignedBytes, Bytes};
use crate::isa::Feature;
use crate::ops;
use crate::team::{SharedMut, Team};
use crate::trit::TernaryMatrix;

/// How close a kernel's sums are to the oracle's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exactness {
    /// Equal, bit for bit, on every legal input.
    Exact,
    /// Off by at most `per_group` for every `group` columns begun (derived in the kernel's docs). Never ranked beside exact
    /// kernels unmarked.
    Bounded {
        /// Largest possible share of one group in the error of a sum.
        per_group: f32,
        /// Columns of a group.
        group: usize,
    },
}

impl Exactness {
    /// The largest legal difference between a sum over `k` columns and the oracle's.
    pub fn allowed(self, k: usize) -> u32 {
        match self {
            Self::Exact => 0,
            Self::Bounded { per_group, group } => (per_group * k.div_ceil(group) as f32).ceil() as u32,
        }
    }
}

impl fmt::Display for Exactness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Bounded { per_group, group } => write!(f, "within {:.2} k", per_group / *group as f32),
        }
    }
}

/// What a kernel is, known at compile time and on every CPU.
#[derive(Debug)]
pub struct KernelInfo {
    /// `<isa>-<layout>-<method>`, the name on the command line and in every record.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// CPU features it needs, all of them.
    pub features: &'static [Feature],
    /// The packed layout, as headed in LAYOUTS.md.
    pub layout: &'static str,
    /// Packed bits per weight, without padding.
    pub bits_per_weight: f32,
    /// `compute` takes ranges that start and end on a multiple of this many rows.
    pub row_tile: usize,
    /// Equal to the oracle, or how far off.
    pub exactness: Exactness,
    /// The paper or project whose idea it is.
    pub source: &'static str,
}

impl KernelInfo {
    /// The instruction set the kernel runs on: the first part of its name.
    pub fn isa(&self) -> &'static str {
        self.name.split('-').next().unwrap_or(self.name)
    }
}

/// A matrix in a kernel's own layout.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    /// Rows of the matrix, without padding.
    pub n: usize,
    /// Columns of the matrix, without padding.
    pub k: usize,
    /// The packed weights, rows padded to `row_tile`.
    pub data: Bytes,
}

/// An input in the form a kernel wants it in. Reused from call to call; `bytes` and `sums` mean what the kernel says.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// Tokens.
    pub m: usize,
    /// Bytes (or table entries) per token.
    pub stride: usize,
    /// Permuted activations or tables.
    pub bytes: AlignedBytes,
    /// One correction per token: `Σ_k x`, for layouts that store `w + 1`.
    pub sums: Vec<i32>,
}

/// Places that packed rows are read from side by side for one token, and the screened head for one query: one stream stops at 15 GB/s on Zen 3,
/// which reads 26 from four, and at 11 to 14 of 20 on an Emerald Rapids with 300 MB of L3 cache.
pub const STREAMS: usize = 4;

/// Tokens of a tile of activations.
pub const TILE_TOKENS: usize = 16;
/// Columns of a tile of activations.
pub const TILE_COLUMNS: usize = 64;

/// Tokens that a worker takes at once, where the form does not say it.
const TOKENS: usize = 8;

impl Prepared {
    /// The plain form: int8 in their own order, every token padded with zeros to a multiple of `multiple`, and `Σ_k x`.
    pub fn fill_in_order(&mut self, team: &Team, x: &QuantizedActivations, multiple: usize) {
        self.fill_in_blocks(team, x, multiple, usize::MAX);
    }

    /// Blocks of `block` columns one after the other, each of them all tokens in turn: what a kernel that works through a block
    /// for all tokens reads from end to end. Columns are padded with zeros to a multiple of `multiple`; the last block may be
    /// narrower. See [`block`](Self::block).
    pub fn fill_in_blocks(&mut self, team: &Team, x: &QuantizedActivations, multiple: usize, block: usize) {
        self.fill(team, x, multiple, block, TOKENS, |first, tokens, out| {
            let width = out.len() / tokens.len();
            for (token, out) in tokens.zip(out.chunks_exact_mut(width)) {
                let row = &x.row(token)[first.min(x.k)..(first + width).min(x.k)];
                out[..row.len()].copy_from_slice(row);
                out[row.len()..].fill(0);
            }
        });
    }

    /// Blocks of `block` columns, in each of them `group` tokens after the other, in each of these groups (the last may be smaller)
    /// steps of 4 columns, in each step the 4 values of every token: what a kernel reads from end to end that multiplies 4 columns of
    /// many rows by several tokens. Columns are padded with zeros to a multiple of `multiple`, itself one of 4; the last block may be
    /// narrower. See [`steps`](Self::steps).
    pub fn fill_in_steps(
        &mut self,
        team: &Team,
        x: &QuantizedActivations,
        multiple: usize,
        block: usize,
        group: usize,
    ) {
        self.fill(team, x, multiple, block, group, |first, tokens, out| {
            let (token, steps) = (tokens.start, out.as_chunks_mut().0);
            match tokens.len() {
                1 => interleave::<1>(x, token, first, steps),
                2 => interleave::<2>(x, token, first, steps),
                3 => interleave::<3>(x, token, first, steps),
                4 => interleave::<4>(x, token, first, steps),
                5 => interleave::<5>(x, token, first, steps),
                6 => interleave::<6>(x, token, first, steps),
                7 => interleave::<7>(x, token, first, steps),
                8 => interleave::<8>(x, token, first, steps),
                _ => unreachable!("no kernel takes more than 8 tokens at once"),
            }
        });
    }

    /// Groups of [`TILE_TOKENS`] tokens, in each of them steps of [`TILE_COLUMNS`] columns, in each step the values of every token: what
    /// instructions on tile registers read. Columns are padded with zeros to whole steps; in the place of tokens that the last group has
    /// not lies anything. `sums` stay as they were. See [`tiles`](Self::tiles).
    pub fn fill_in_tiles(&mut self, team: &Team, x: &QuantizedActivations) {
        let stride = x.k.next_multiple_of(TILE_COLUMNS);
        (self.m, self.stride) = (x.m, stride);
        self.bytes.ensure_len(x.m.next_multiple_of(TILE_TOKENS) * stride);
        let values = SharedMut::new(self.bytes.as_i8_mut());
        team.split(x.m.div_ceil(TILE_TOKENS), 1, |groups| {
            for group in groups {
                // SAFETY: a group is handed out once, and no other has its values.
                let values = unsafe { values.slice(group * TILE_TOKENS * stride..(group + 1) * TILE_TOKENS * stride) };
                let tiles: &mut [[[i8; TILE_COLUMNS]; TILE_TOKENS]] = values.as_chunks_mut().0.as_chunks_mut().0;
                for token in group * TILE_TOKENS..x.m.min((group + 1) * TILE_TOKENS) {
                    for (tile, columns) in tiles.iter_mut().zip(x.row(token).chunks(TILE_COLUMNS)) {
                        let (values, rest) = tile[token % TILE_TOKENS].split_at_mut(columns.len());
                        values.copy_from_slice(columns);
                        rest.fill(0);
                    }
                }
            }
        });
    }

    /// The steps of 64 columns of a group of 16 tokens.
    pub fn tiles(&self, group: usize) -> &[[i8; TILE_TOKENS * TILE_COLUMNS]] {
        self.bytes.as_i8()[group * TILE_TOKENS * self.stride..][..TILE_TOKENS * self.stride].as_chunks().0
    }

    /// Calls `write(first column, tokens, values)` for every block of `block` columns and every `group` tokens, split over the team.
    fn fill(
        &mut self,
        team: &Team,
        x: &QuantizedActivations,
        multiple: usize,
        block: usize,
        group: usize,
        write: impl Fn(usize, Range<usize>, &mut [i8]) + Sync,
    ) {
        let (m, stride) = (x.m, x.k.next_multiple_of(multiple));
        (self.m, self.stride) = (m, stride);
        self.bytes.ensure_len(m * stride);
        self.sums.resize(m, 0);
        let (values, sums) = (SharedMut::new(self.bytes.as_i8_mut()), SharedMut::new(&mut self.sums));
        team.split(m.div_ceil(group), 1, |groups| {
            for start in groups.map(|i| i * group) {
                let tokens = start..(start + group).min(m);
                for first in (0..stride).step_by(block) {
                    let width = block.min(stride - first);
                    let here = first * m + tokens.start * width..first * m + tokens.end * width;
                    // SAFETY: a group is handed out once, and its values in a block are its own.
                    write(first, tokens.clone(), unsafe { values.slice(here) });
                }
                // SAFETY: as above.
                let sums = unsafe { sums.slice(tokens.clone()) };
                tokens.zip(sums).for_each(|(token, sum)| *sum = ops::sum(x.row(token)));
            }
        });
    }

    /// The steps of the group of `T` tokens that begins with `token`, in the block that starts at column `first` and is `width` columns
    /// wide.
    #[inline(always)]
    pub fn steps<const T: usize>(&self, first: usize, width: usize, token: usize) -> &[[[i8; 4]; T]] {
        self.bytes.as_i8()[first * self.m + token * width..][..T * width].as_chunks().0.as_chunks().0
    }

    /// The values of one token in the block that starts at column `first` and is `width` columns wide.
    pub fn block(&self, first: usize, width: usize, token: usize) -> &[i8] {
        &self.bytes.as_i8()[first * self.m + token * width..][..width]
    }

    /// The values of token `token`, where they are int8.
    pub fn row(&self, token: usize) -> &[i8] {
        &self.bytes.as_i8()[token * self.stride..][..self.stride]
    }
}

/// Columns from `first` on of `T` tokens, 4 of each in turn, zeros behind the last.
fn interleave<const T: usize>(x: &QuantizedActivations, token: usize, first: usize, out: &mut [[i8; 4]]) {
    let out = out.as_chunks_mut::<T>().0;
    let n_whole = (x.k.saturating_sub(first) / 4).min(out.len());
    let (in_row, behind) = out.split_at_mut(n_whole);
    let mut rows: [&[[i8; 4]]; T] = [&[]; T];
    for t in 0..T {
        let row = &x.row(token + t)[first.min(x.k)..];
        rows[t] = &row.as_chunks().0[..n_whole];
        for (i, out) in behind.iter_mut().enumerate() {
            out[t] = [0; 4];
            if i == 0 {
                let rest = &row[4 * n_whole..];
                out[t][..rest.len()].copy_from_slice(rest);
            }
        }
    }
    // There are no more than 8.
    if let Some(rows) = rows.first_chunk() {
        return ops::interleave_eight(rows, in_row.as_flattened_mut().as_chunks_mut().0);
    }
    for t in 0..T {
        for (out, columns) in in_row.iter_mut().zip(rows[t]) {
            out[t] = *columns;
        }
    }
}

impl Default for AlignedBytes {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

/// One way to multiply by a ternary matrix. Constructed only where the CPU has what it needs (see [`crate::isa`]).
pub trait TernaryKernel: Send + Sync {
    /// What this kernel is.
    fn info(&self) -> &'static KernelInfo;

    /// Rows worth giving to one [`compute`](Self::compute) of `m` tokens, where the matrix has them. A kernel that builds tables there
    /// builds them once per call.
    fn rows_per_call(&self, _m: usize) -> usize {
        self.info().row_tile
    }

    /// Lays out `w` for [`compute`](Self::compute); pads rows to `row_tile` and columns with zero trits.
    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix;

    /// Brings quantised activations into this kernel's form, on the team.
    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared);

    /// Writes `acc[token * rows.len() + (row - rows.start)]` for every token of `x` and every row of `rows`.
    ///
    /// `rows` starts and ends on a multiple of `row_tile` (the padded rows at the end of the matrix give 0) and
    /// `acc` holds exactly `x.m * rows.len()` values. `w` and `x` come from this kernel's own `pack` and `prepare`.
    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]);
}

/// Bytes of an `n x k` matrix packed for `kernel`: layouts put row tiles one after the other.
pub fn packed_len(kernel: &dyn TernaryKernel, n: usize, k: usize) -> usize {
    // One row is padded to a tile.
    let row = TernaryMatrix::new(1, k, vec![0; k], 1.0);
    row.map_or(0, |row| n.div_ceil(kernel.info().row_tile) * kernel.pack(&row).data.len())
}

/// Why a kernel cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Built for this architecture, but the CPU lacks these features.
    MissingFeatures(Vec<Feature>),
    /// Built for another architecture only.
    OtherArchitecture(&'static str),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingFeatures(features) => {
                let names: Vec<_> = features.iter().map(|feature| feature.name()).collect();
                write!(f, "this CPU lacks {}", names.join(", "))
            }
            Self::OtherArchitecture(arch) => {
                write!(f, "needs {arch}, this is {}", std::env::consts::ARCH)
            }
        }
    }
}
