//! The screened head: the `k` best rows of a big dense matrix, bit for bit, at a third of its bytes.
//!
//! Greedy decoding needs the largest logit and no other, yet an F16 head of 128,256 x 2560 is 657 MB a token. A [`Screen`] is a
//! copy of the rows in 5.25 bits a weight. It scores every row, with an upper bound on what the row's logit can be; the rows
//! with the best scores are multiplied as the head itself would; and so is every other row whose bound reaches the worst of
//! those. No other row can be among the best.
//!
//! # The bound
//! Row `w` is stored as `ŵ` (32 columns share a scale), the input `h` as `x̂` (int8, 32 columns share a scale), and with
//! `r = w - ŵ`, `e = h - x̂`
//!
//! ```text
//! w·h = ŵ·x̂ + ŵ·e + r·h   so by Cauchy-Schwarz   w·h <= ŵ·x̂ + |ŵ||e| + |r||h|
//! ```
//!
//! A row carries `ρ >= |r|` and `ω >= |w|, |ŵ|`, taken in f64 and rounded up, so the bound holds whatever the rounding to codes
//! did. What floating point adds is at most `γ ω (|h| + |e|)`, where `γ = m u / (1 - m u)`, `u = 2^-24` (Higham, Accuracy and
//! Stability, 3.1), and `m` counts the roundings that one product can go through: `k / 8 + 4` on its way to the head's logit
//! (eight running sums, three additions, one product where it is not fused), `2 k / 32 + 8` on its way to the score (sums of 32
//! columns are integers below 2^24 and exact). Both sums of absolute products are at most `ω (|h| + |e|)`, by Cauchy-Schwarz
//! again. `TINY` covers underflow. The idea of an exact answer from quantised scores is old in nearest-neighbour search
//! (VA-file: Weber, Schek, Blott 1998).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod rows;

use std::ops::Range;
use std::sync::Mutex;

use crate::bytes::{AlignedBytes, Bytes};
use crate::dense::{Activations, DenseKernel, DenseMatrix, DenseType};
use crate::team::{SharedMut, Team};
use rows::{GROUP_ROWS, Rows};

/// Columns that share a scale.
const BLOCK: usize = 32;
/// Groups of rows after which the workers' ranges may be cut: a multiple of what a path takes at once.
const CHUNK: usize = 24;
/// Reading a row here and there costs this many times the bytes of reading all rows in order: on Zen 3 13 GB/s one row at a time, where
/// four streams are 20 to 26; on Emerald Rapids 12 of 17 GB/s four rows at a time.
const SCATTERED: f64 = 1.6;
/// Far above anything that underflow can add up to while weights and inputs stay within [`LARGEST`], far below any logit.
const TINY: f64 = 1e-20;
/// Larger weights and input norms are left to the head itself: nothing overflows below.
const LARGEST: f64 = (1u64 << 40) as f64;

/// A quantised copy of a head, and the head.
pub struct Screen {
    head: DenseMatrix,
    kernel: &'static dyn DenseKernel,
    rows: Rows,
    score: Score,
}

/// Scores the rows of `groups` for every query: writes `ŵ·x̂` to `scores` and the bound to `bounds`, query after query, of each as
/// many as the rows that there are.
type Score = fn(&Rows, &[Query], groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]);

/// What a search took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescored {
    /// Rows multiplied as the head would, for all inputs together.
    pub rows: usize,
}

/// Buffers of a search, kept between searches.
#[derive(Default)]
pub struct SearchBuffers {
    queries: Vec<Query>,
    /// Of every query the bounds of all rows.
    bounds: Vec<f32>,
    /// A query and a row of it.
    candidates: Vec<(u32, u32)>,
    logits: Vec<f32>,
}

impl SearchBuffers {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let queries: usize = self.queries.iter().map(|query| query.blocks.capacity() * size_of::<QueryBlock>()).sum();
        4 * (self.bounds.capacity() + 2 * self.candidates.capacity() + self.logits.capacity()) + queries
    }
}

impl Screen {
    /// Quantises the rows of `head`, in parallel on the current rayon pool. `None` where the bound could not hold: weights that
    /// are not finite or larger than 2^40, or `kernel`, which the head is multiplied by, rounds its input.
    pub fn new(kernel: &'static dyn DenseKernel, head: &DenseMatrix) -> Option<Self> {
        Self::of_rows(kernel, head, || Rows::quantize(head))
    }

    /// Takes a copy of `head` that [`Self::packed`] gave before. `None` as in [`Self::new`], and where its length is wrong.
    pub fn from_packed(kernel: &'static dyn DenseKernel, head: &DenseMatrix, copy: Bytes) -> Option<Self> {
        Self::of_rows(kernel, head, || Rows::from_packed(head, copy))
    }

    fn of_rows(
        kernel: &'static dyn DenseKernel,
        head: &DenseMatrix,
        rows: impl FnOnce() -> Option<Rows>,
    ) -> Option<Self> {
        if kernel.info().activations != Activations::F32 {
            return None;
        }
        Some(Self { head: head.clone(), kernel, rows: rows()?, score: fastest() })
    }

    /// The copy of a small head, always the same: kept copies are compared by it, in case they were made by another version.
    pub fn sample() -> Option<Bytes> {
        let (n, k) = (11, 75);
        let weights: Vec<u8> = (0..n * k).flat_map(|i| ((i * i % 101) as f32 * 0.3 - 15.0).to_le_bytes()).collect();
        let mut data = AlignedBytes::zeroed(weights.len());
        data.copy_from_slice(&weights);
        let head = DenseMatrix::new(n, k, DenseType::F32, data.into())?;
        Rows::quantize(&head).map(|rows| rows.packed().clone())
    }

    /// The quantised copy.
    pub fn packed(&self) -> &Bytes {
        self.rows.packed()
    }

    /// Bytes of the copy: what one search reads, beside the rows it rescores.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Bytes of one row of the head.
    pub fn row_bytes(&self) -> usize {
        self.head.data().len() / self.head.n().max(1)
    }

    /// Bytes that a copy of `head` would have.
    pub fn bytes_for(head: &DenseMatrix) -> usize {
        Rows::bytes_for(head.n(), head.k())
    }

    /// Whether this CPU has a fast path; elsewhere the copy may cost more time than it saves.
    pub fn is_fast() -> bool {
        paths().count() > 1
    }

    /// Whether a search for `m` inputs that rescored `rows` cost less than the head, as far as bytes tell.
    pub fn paid(&self, rows: usize, m: usize) -> bool {
        self.bytes() as f64 + SCATTERED * (rows * self.row_bytes()) as f64
            <= (self.head.data().len() * whole_heads(m)) as f64
    }

    /// For each input of `x` (as many as `best` is long) the `k` rows with the largest `scale · logit`, best first, of equals the one with
    /// the smaller index: exactly the rows and the bits that multiplying by the whole head gives. `None`, with `best` empty, where an
    /// input is too large for the bound or so many rows reach it that the whole head is cheaper; the caller then multiplies by it.
    ///
    /// `scale` is the model's factor on logits, between 2^-20 and 2^20.
    pub fn search(
        &self,
        team: &Team,
        buffers: &mut SearchBuffers,
        x: &[f32],
        scale: f32,
        k: usize,
        best: &mut [Vec<(u32, f32)>],
    ) -> Option<Rescored> {
        best.iter_mut().for_each(Vec::clear);
        let (n, m) = (self.head.n(), best.len());
        assert_eq!(x.len(), m * self.head.k(), "the inputs do not hold k values each");
        if k == 0 || !(2f32.powi(-20)..=2f32.powi(20)).contains(&scale) {
            return None;
        }
        let SearchBuffers { queries, bounds, candidates, logits } = buffers;
        queries.resize_with(m, Query::default);
        if !queries.iter_mut().zip(x.chunks_exact(self.head.k().max(1))).all(|(query, x)| query.prepare(x)) {
            return None;
        }
        bounds.resize(m * n, 0.0);
        candidates.clear();
        for (query, seeds) in (0..).zip(self.score_all(team, queries, bounds, k)) {
            candidates.extend(seeds.iter().map(|&(row, _)| (query, row)));
        }
        self.rescore(team, x, candidates, logits);
        let mut least = vec![f32::INFINITY; m];
        for (&(query, _), &logit) in candidates.iter().zip(&*logits) {
            least[query as usize] = least[query as usize].min(logit);
        }
        // Logits this close could become equal when they are scaled, and of equals the smaller index is better.
        least.iter_mut().for_each(|worst| *worst -= worst.abs() * 2f32.powi(-21) + 2f32.powi(-100));
        candidates.clear();
        let reached = Mutex::new(candidates);
        team.split(m, 1, |queries| {
            for query in queries {
                let rows = rows_reaching(&bounds[query * n..][..n], least[query]);
                let mut reached = reached.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                reached.extend(rows.into_iter().map(|row| (query as u32, row)));
            }
        });
        let candidates = reached.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if SCATTERED * candidates.len() as f64 > (n * whole_heads(m)) as f64 {
            return None;
        }
        self.rescore(team, x, candidates, logits);
        for (&(query, row), &logit) in candidates.iter().zip(&*logits) {
            offer(&mut best[query as usize], k, (row, logit * scale));
        }
        Some(Rescored { rows: candidates.len() })
    }

    /// Bounds of all rows, and of every query the `k` rows with the best scores.
    fn score_all(&self, team: &Team, queries: &[Query], bounds: &mut [f32], k: usize) -> Vec<Vec<(u32, f32)>> {
        let (n, m) = (self.head.n(), queries.len());
        let best = Mutex::new(vec![Vec::new(); m]);
        let bounds = SharedMut::new(bounds);
        let n_chunks = self.rows.n_groups().div_ceil(CHUNK);
        team.split(n_chunks, n_chunks.div_ceil(team.n_threads() * 8), |chunks| {
            let mut mine = vec![(f32::NEG_INFINITY, Vec::new()); m];
            let mut scores = vec![0.0; m * CHUNK * GROUP_ROWS];
            let mut chunk_bounds = scores.clone();
            for chunk in chunks {
                let groups = chunk * CHUNK..((chunk + 1) * CHUNK).min(self.rows.n_groups());
                let rows = groups.start * GROUP_ROWS..(groups.end * GROUP_ROWS).min(n);
                let (scores, chunk_bounds) = (&mut scores[..m * rows.len()], &mut chunk_bounds[..m * rows.len()]);
                (self.score)(&self.rows, queries, groups, scores, chunk_bounds);
                let of_queries = scores.chunks_exact(rows.len()).zip(chunk_bounds.chunks_exact(rows.len()));
                for (query, ((scores, chunk_bounds), (bar, mine))) in of_queries.zip(&mut mine).enumerate() {
                    // SAFETY: the team hands out every chunk once, and the rows of chunks do not overlap.
                    unsafe { bounds.slice(query * n + rows.start..query * n + rows.end) }.copy_from_slice(chunk_bounds);
                    for (first, scores) in rows.clone().step_by(BLOCK).zip(scores.chunks(BLOCK)) {
                        // No early exit inside, so that it becomes vector code.
                        if mine.len() >= k && !scores.iter().fold(false, |any, &score| any | (score > *bar)) {
                            continue;
                        }
                        for (row, &score) in (first..).zip(scores) {
                            if score > *bar || mine.len() < k {
                                offer(mine, k, (row as u32, score));
                                *bar = if mine.len() < k { *bar } else { mine[k - 1].1 };
                            }
                        }
                    }
                }
            }
            let mut best = best.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for (best, (_, mine)) in best.iter_mut().zip(mine) {
                mine.into_iter().for_each(|row| offer(best, k, row));
            }
        });
        best.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The head's own logits of candidates.
    fn rescore(&self, team: &Team, x: &[f32], candidates: &[(u32, u32)], logits: &mut Vec<f32>) {
        logits.resize(candidates.len(), 0.0);
        let logits = SharedMut::new(logits);
        let k = self.head.k();
        team.split(candidates.len(), 32, |range| {
            // SAFETY: the team hands out every index once.
            let mut logits = unsafe { logits.slice(range.clone()) };
            for of_query in candidates[range].chunk_by(|a, b| a.0 == b.0) {
                let rows: Vec<u32> = of_query.iter().map(|&(_, row)| row).collect();
                let of_rows = logits.split_off_mut(..rows.len()).unwrap_or_default();
                self.kernel.compute_rows(&self.head, &x[of_query[0].0 as usize * k..][..k], &rows, of_rows);
            }
        });
    }
}

/// What multiplying the whole head by `m` inputs costs, in passes over its bytes: from four on it is the multiply-adds that take time.
fn whole_heads(m: usize) -> usize {
    m.div_ceil(4)
}

/// The rows whose bound is at least `least`.
fn rows_reaching(bounds: &[f32], least: f32) -> Vec<u32> {
    let mut rows = Vec::new();
    for (first, bounds) in bounds.chunks(BLOCK).enumerate() {
        // No early exit inside, so that it becomes vector code.
        if bounds.iter().fold(false, |any, &bound| any | (bound >= least)) {
            let reached = bounds.iter().enumerate().filter(|(_, bound)| **bound >= least);
            rows.extend(reached.map(|(i, _)| (first * BLOCK + i) as u32));
        }
    }
    rows
}

/// Puts `new`, a row and its logit, in its place in `best`, which is sorted and keeps `k` rows: the largest logit first, of equals
/// the smaller index, NaN behind all numbers.
pub fn offer(best: &mut Vec<(u32, f32)>, k: usize, new: (u32, f32)) {
    let before = |old: &(u32, f32)| old.1 > new.1 || (old.1 == new.1 && old.0 < new.0) || new.1.is_nan();
    let worst_is_before = best.last().is_some_and(before);
    let at = if worst_is_before { best.len() } else { best.partition_point(before) };
    if at < k {
        best.truncate(k - 1);
        best.insert(at, new);
    }
}

/// The ways to score that this CPU has, slowest first. All vector code gives the same bits.
fn paths() -> impl Iterator<Item = Score> {
    #[cfg(target_arch = "x86_64")]
    let vector = [avx2::score(), avx512::score()];
    #[cfg(not(target_arch = "x86_64"))]
    let vector = [None; 0];
    std::iter::once(portable::score as Score).chain(vector.into_iter().flatten())
}

fn fastest() -> Score {
    paths().last().unwrap_or(portable::score)
}

/// An input, quantised.
#[derive(Default)]
struct Query {
    blocks: Vec<QueryBlock>,
    /// What `ρ` and `ω` are multiplied with.
    of_residual: f32,
    of_norm: f32,
}

/// The columns of a block of an input.
#[derive(Clone, Copy)]
struct QueryBlock {
    /// Codes in -127..=127, zeros behind the last column.
    x: [i8; BLOCK],
    /// `x̂ = scale · code`.
    scale: f32,
    /// What turns sums over the rows' codes 0..=31 into sums over -16..=15: -16 Σx over the even and over the odd pairs of columns
    /// (that is how the vector code adds them up).
    offsets: [i16; 2],
    /// Their sum.
    offset: i32,
    /// The same, added to [`SHIFT`] as an integer.
    shifted_offset: i32,
}

/// Its bits and an integer between -2^22 and 2^22, added, are the bits of their sum: a product that begins with it need not be converted.
const SHIFT: f32 = 1.5 * (1 << 23) as f32;

impl Query {
    /// Quantises `h`. `false` where it is not finite or too large.
    fn prepare(&mut self, h: &[f32]) -> bool {
        self.blocks.clear();
        let (mut norm, mut error) = (0.0, 0.0);
        for h in h.chunks(BLOCK) {
            let largest = h.iter().fold(0f32, |max, h| max.max(h.abs()));
            let scale = largest / 127.0;
            let per_unit = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            // One over a subnormal may be infinite: such a block counts as zero, and all of it as error.
            let (scale, per_unit) = if per_unit.is_finite() { (scale, per_unit) } else { (0.0, 0.0) };
            let mut block = QueryBlock { x: [0; BLOCK], scale, offsets: [0; 2], offset: 0, shifted_offset: 0 };
            for i in 0..BLOCK {
                let h = h.get(i).copied().unwrap_or(0.0);
                let code = rows::rounded((h * per_unit).clamp(-127.0, 127.0)) as i8;
                // Exact: 24 by 7 bits.
                let rest = f64::from(h) - f64::from(scale) * f64::from(code);
                norm += f64::from(h) * f64::from(h);
                error += rest * rest;
                block.offsets[i / 2 % 2] -= 16 * i16::from(code);
                block.x[i] = code;
            }
            block.offset = block.offsets.map(i32::from).iter().sum();
            block.shifted_offset = SHIFT.to_bits().cast_signed() + block.offset;
            self.blocks.push(block);
        }
        let (norm, error) = (norm.sqrt() * (1.0 + 1e-9), error.sqrt() * (1.0 + 1e-9));
        let roundings = (h.len().div_ceil(8) + 4 + 2 * h.len().div_ceil(BLOCK) + 8) as f64 * 2f64.powi(-24);
        let gamma = roundings / (1.0 - roundings);
        // Rounding to f32, and the three roundings of `of_residual · ρ + of_norm · ω + TINY`, take less than this adds.
        self.of_residual = (norm * (1.0 + 2f64.powi(-20))) as f32;
        self.of_norm = ((error + gamma * (norm + error)) * (1.0 + 2f64.powi(-20))) as f32;
        norm.is_finite() && norm <= LARGEST && roundings < 0.1
    }
}

#[cfg(test)]
mod tests;
