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
/// Groups of rows after which the workers' ranges may be cut.
const CHUNK: usize = 16;
/// Reading a row here and there costs this many times the bytes of reading all rows in order: one row at a time is 13 GB/s on
/// Zen 3, four streams are 20 to 26.
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

/// Scores the rows of `groups`: writes `ŵ·x̂` to `scores` and the bound to `bounds`, both as long as the rows that there are.
type Score = fn(&Rows, &Query, groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]);

/// What a search took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescored {
    /// Rows multiplied as the head would.
    pub rows: usize,
}

/// Buffers of a search, kept between searches.
#[derive(Default)]
pub struct SearchBuffers {
    query: Query,
    scores: Vec<f32>,
    bounds: Vec<f32>,
    candidates: Vec<u32>,
    logits: Vec<f32>,
}

impl SearchBuffers {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let floats =
            self.scores.capacity() + self.bounds.capacity() + self.candidates.capacity() + self.logits.capacity();
        4 * floats + self.query.x.capacity() + 8 * self.query.scales.capacity()
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
        #[cfg(target_arch = "x86_64")]
        if avx2::score().is_some() {
            return true;
        }
        false
    }

    /// Whether a search that rescored `rows` cost less than the head, as far as bytes tell.
    pub fn paid(&self, rows: usize) -> bool {
        self.bytes() as f64 + SCATTERED * (rows * self.row_bytes()) as f64 <= self.head.data().len() as f64
    }

    /// The `k` rows with the largest `scale · logit`, best first, of equals the one with the smaller index: exactly the rows and
    /// the bits that multiplying by the whole head gives. `None`, with `best` empty, where `x` is too large for the bound or so
    /// many rows reach it that the whole head is cheaper; the caller then multiplies by it.
    ///
    /// `scale` is the model's factor on logits, between 2^-20 and 2^20.
    pub fn search(
        &self,
        team: &Team,
        buffers: &mut SearchBuffers,
        x: &[f32],
        scale: f32,
        k: usize,
        best: &mut Vec<(u32, f32)>,
    ) -> Option<Rescored> {
        best.clear();
        let n = self.head.n();
        assert_eq!(x.len(), self.head.k(), "the input does not hold k values");
        if k == 0 || !(2f32.powi(-20)..=2f32.powi(20)).contains(&scale) || !buffers.query.prepare(x) {
            return None;
        }
        let SearchBuffers { query, scores, bounds, candidates, logits } = buffers;
        scores.resize(n, 0.0);
        bounds.resize(n, 0.0);
        let seeds = self.score_all(team, query, scores, bounds, k);

        candidates.clear();
        candidates.extend(seeds.iter().map(|&(row, _)| row));
        self.rescore(team, x, candidates, logits);
        let worst = logits.iter().copied().fold(f32::INFINITY, f32::min);
        // Logits this close could become equal when they are scaled, and of equals the smaller index is better.
        let least = worst - (worst.abs() * 2f32.powi(-21) + 2f32.powi(-100));
        candidates.clear();
        for (first, bounds) in bounds.chunks(BLOCK).enumerate() {
            // No early exit inside, so that it becomes vector code.
            if bounds.iter().fold(false, |any, &bound| any | (bound >= least)) {
                let reached = bounds.iter().enumerate().filter(|(_, bound)| **bound >= least);
                candidates.extend(reached.map(|(i, _)| (first * BLOCK + i) as u32));
            }
        }
        if SCATTERED * candidates.len() as f64 > n as f64 {
            return None;
        }
        self.rescore(team, x, candidates, logits);
        for (&row, &logit) in candidates.iter().zip(&*logits) {
            offer(best, k, (row, logit * scale));
        }
        Some(Rescored { rows: candidates.len() })
    }

    /// Scores and bounds of all rows, and the `k` rows with the best scores.
    fn score_all(
        &self,
        team: &Team,
        query: &Query,
        scores: &mut [f32],
        bounds: &mut [f32],
        k: usize,
    ) -> Vec<(u32, f32)> {
        let n = self.head.n();
        let best = Mutex::new(Vec::new());
        let (scores, bounds) = (SharedMut::new(scores), SharedMut::new(bounds));
        let n_chunks = self.rows.n_groups().div_ceil(CHUNK);
        team.split(n_chunks, n_chunks.div_ceil(team.n_threads() * 8), |chunks| {
            let groups = chunks.start * CHUNK..(chunks.end * CHUNK).min(self.rows.n_groups());
            let rows = groups.start * GROUP_ROWS..(groups.end * GROUP_ROWS).min(n);
            // SAFETY: the team hands out every chunk once, and the rows of chunks do not overlap.
            let (scores, bounds) = unsafe { (scores.slice(rows.clone()), bounds.slice(rows.clone())) };
            (self.score)(&self.rows, query, groups, scores, bounds);
            let mut mine = Vec::new();
            let mut bar = f32::NEG_INFINITY;
            for (row, &score) in rows.zip(&*scores) {
                if score > bar || mine.len() < k {
                    offer(&mut mine, k, (row as u32, score));
                    bar = if mine.len() < k { bar } else { mine[k - 1].1 };
                }
            }
            let mut best = best.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            mine.into_iter().for_each(|row| offer(&mut best, k, row));
        });
        best.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The head's own logits of `rows`.
    fn rescore(&self, team: &Team, x: &[f32], rows: &[u32], logits: &mut Vec<f32>) {
        logits.resize(rows.len(), 0.0);
        let logits = SharedMut::new(logits);
        team.split(rows.len(), 8, |range| {
            // SAFETY: the team hands out every index once.
            let logits = unsafe { logits.slice(range.clone()) };
            for (&row, logit) in rows[range].iter().zip(logits) {
                let row = row as usize;
                self.kernel.compute(&self.head, x, 1, row..row + 1, std::slice::from_mut(logit));
            }
        });
    }
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

fn fastest() -> Score {
    #[cfg(target_arch = "x86_64")]
    if let Some(score) = avx2::score() {
        return score;
    }
    portable::score
}

/// An input, quantised.
#[derive(Default)]
struct Query {
    /// Codes in -127..=127, padded with zeros to whole blocks.
    x: Vec<i8>,
    /// One per block: `x̂ = scale · code`.
    scales: Vec<f32>,
    /// What turns sums over codes 0..=31 into sums over -16..=15, per block: -16 Σx over the even and over the odd pairs of
    /// columns (that is how the vector code adds them up).
    offsets: Vec<[i16; 2]>,
    /// What `ρ` and `ω` are multiplied with.
    of_residual: f32,
    of_norm: f32,
}

impl Query {
    /// Quantises `h`. `false` where it is not finite or too large.
    fn prepare(&mut self, h: &[f32]) -> bool {
        self.x.clear();
        self.scales.clear();
        self.offsets.clear();
        let (mut norm, mut error) = (0.0, 0.0);
        for h in h.chunks(BLOCK) {
            let largest = h.iter().fold(0f32, |max, h| max.max(h.abs()));
            let scale = largest / 127.0;
            let per_unit = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            // One over a subnormal may be infinite: such a block counts as zero, and all of it as error.
            let (scale, per_unit) = if per_unit.is_finite() { (scale, per_unit) } else { (0.0, 0.0) };
            let mut pairs = [0i16; 2];
            for i in 0..BLOCK {
                let h = h.get(i).copied().unwrap_or(0.0);
                let code = rows::rounded((h * per_unit).clamp(-127.0, 127.0)) as i8;
                // Exact: 24 by 7 bits.
                let rest = f64::from(h) - f64::from(scale) * f64::from(code);
                norm += f64::from(h) * f64::from(h);
                error += rest * rest;
                pairs[i / 2 % 2] -= 16 * i16::from(code);
                self.x.push(code);
            }
            self.scales.push(scale);
            self.offsets.push(pairs);
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
