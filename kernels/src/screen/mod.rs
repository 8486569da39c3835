//! The screened head: the `k` best rows of a big dense matrix, bit for bit, at a third of its bytes.
//!
//! Greedy decoding needs the largest logit and no other, yet an F16 head of 128,256 x 2560 is 657 MB a token. A [`Screen`] is a
//! copy of the rows in 5.25 bits a weight. It scores every row, with an upper bound on what the row's logit can be. Rows whose score
//! would put them among the best so far are multiplied at once as the head itself would, and so is, in the end, every other row whose
//! bound reaches the worst of the best. No other row can be among them.
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
//!
//! # By tiles
//! Tile registers sum up the products of all columns before anything can be scaled. For many inputs, where a CPU has them, rows are
//! rounded once more, to bytes `w̃` in a unit of the row, and inputs to 15 bits `x̂ = unit · (128 a + b)`, with `|a| <= 127` and `|b| <= 64`.
//! The bound is the same with `w - w̃` for `r`; `ω` is at least `|w̃|` too. Sums over `a` and over `b` are integers and exact; six roundings
//! follow. As the unit is at most `|h| / 16256`, the vectors `128 a` and `b` are together at most `1 + √k / 127` times as long as `|h| + |e|`, and six
//! times that is less than the `2 k / 32 + 8` above, whose rest covers the rounding of the unit.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod rows;
#[cfg(target_arch = "x86_64")]
mod side_by_side;

use std::ops::Range;
use std::sync::Mutex;

use crate::bytes::{AlignedBytes, Bytes};
use crate::dense::{Activations, DenseKernel, DenseMatrix, DenseType};
use crate::team::{SharedMut, Team};
use rows::{Factors, GROUP_ROWS, Rows};

/// Columns that share a scale.
const BLOCK: usize = 32;
/// Groups of rows after which the workers' ranges may be cut: a multiple of what a path takes at once.
const CHUNK: usize = 24;
/// Reading a row here and there costs this many times the bytes of reading all rows in order: on Zen 3 13 GB/s one row at a time, where
/// four streams are 20 to 26; on Emerald Rapids 12 of 17 GB/s four rows at a time.
const SCATTERED: f64 = 1.6;
/// Rows that are rescored while others are scored, for every input and row asked for: in an order without intent there are about
/// `ln(n / k)`.
const AT_ONCE: usize = 32;
/// Inputs from which on tiles pay: with 4 they take 0.9 of the time, with 8 0.8, with 16 0.7; two and three take as long without.
const TILES_FROM: usize = 4;
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
    /// For many inputs, where there are tiles.
    by_tiles: Option<Score>,
}

/// Scores the rows of `groups` for every query, and calls `found` for each whose bound is at least the query's number in `least`, which
/// then becomes what that returns.
type Score = fn(&Rows, &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>);
type Found<'a> = dyn FnMut(Candidate, f32) -> f32 + 'a;

/// A row that may be among the best of a query; beside it goes its score, `ŵ·x̂` or `w̃·x̂`.
#[derive(Clone, Copy)]
struct Candidate {
    query: u32,
    row: u32,
    bound: f32,
}

/// What a search took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescored {
    /// Rows multiplied as the head would, for all inputs together.
    pub rows: usize,
}

/// Buffers of a search, kept between searches.
#[derive(Default)]
pub struct SearchBuffers {
    queries: Queries,
    candidates: Vec<Candidate>,
    logits: Vec<f32>,
}

impl SearchBuffers {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.candidates.capacity() * size_of::<Candidate>() + 4 * self.logits.capacity() + self.queries.bytes()
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
        Some(Self { head: head.clone(), kernel, rows: rows()?, score: fastest(), by_tiles: by_tiles() })
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
        let SearchBuffers { queries, candidates, logits } = buffers;
        let by_tiles =
            self.by_tiles.filter(|_| m >= TILES_FROM && (1..=Queries::MOST_COLUMNS).contains(&self.head.k()));
        if !queries.quantize(x, m, self.head.k(), by_tiles.is_some()) {
            return None;
        }
        candidates.clear();
        let standings = Standings { x, scale, k, best, candidates, rescored: 0 };
        let score = by_tiles.unwrap_or(self.score);
        let Standings { best, candidates, rescored, .. } = self.score_all(team, score, queries, standings);
        candidates.retain(|candidate| candidate.bound >= least(&best[candidate.query as usize], k, scale));
        let rows = rescored + candidates.len();
        if SCATTERED * rows as f64 > (n * whole_heads(m)) as f64 {
            best.iter_mut().for_each(Vec::clear);
            return None;
        }
        candidates.sort_unstable_by_key(|candidate| (candidate.query, candidate.row));
        self.rescore(team, x, candidates, logits);
        for (candidate, logit) in candidates.iter().zip(&*logits) {
            offer(&mut best[candidate.query as usize], k, (candidate.row, logit * scale));
        }
        Some(Rescored { rows })
    }

    /// Scores all rows. Those that seem to be among the best so far are rescored at once, so that few others become candidates.
    fn score_all<'a>(&self, team: &Team, score: Score, queries: &Queries, standings: Standings<'a>) -> Standings<'a> {
        let Standings { x, scale, k, .. } = standings;
        let n_chunks = self.rows.n_groups().div_ceil(CHUNK);
        let shared = Mutex::new(standings);
        let lock = || shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        team.split(n_chunks, n_chunks.div_ceil(team.n_threads() * 8), |chunks| {
            let mut best = lock().best.to_vec();
            let mut bars: Vec<f32> = best.iter().map(|best| least(best, k, scale)).collect();
            let (mut candidates, mut rescored) = (Vec::new(), Vec::new());
            let n_queries = queries.all.len();
            let mut found = |candidate: Candidate, score: f32| {
                let Candidate { query, row, .. } = candidate;
                let best = &mut best[query as usize];
                let is_better = best.len() < k || score * scale > best[k - 1].1;
                if is_better && rescored.len() < AT_ONCE * k * n_queries {
                    let mut logit = [0.0];
                    let x = &x[query as usize * self.head.k()..][..self.head.k()];
                    self.kernel.compute_rows(&self.head, x, &[row], &mut logit);
                    rescored.push((query, (row, logit[0] * scale)));
                    offer(best, k, (row, logit[0] * scale));
                } else {
                    candidates.push(candidate);
                }
                least(best, k, scale)
            };
            let groups = chunks.start * CHUNK..(chunks.end * CHUNK).min(self.rows.n_groups());
            score(&self.rows, queries, groups, &mut bars, &mut found);
            let mut shared = lock();
            shared.candidates.append(&mut candidates);
            shared.rescored += rescored.len();
            for (query, row) in rescored {
                offer(&mut shared.best[query as usize], k, row);
            }
        });
        shared.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The head's own logits of candidates, which are sorted by query.
    fn rescore(&self, team: &Team, x: &[f32], candidates: &[Candidate], logits: &mut Vec<f32>) {
        logits.resize(candidates.len(), 0.0);
        let logits = SharedMut::new(logits);
        let k = self.head.k();
        team.split(candidates.len(), 32, |range| {
            // SAFETY: the team hands out every index once.
            let mut logits = unsafe { logits.slice(range.clone()) };
            for of_query in candidates[range].chunk_by(|a, b| a.query == b.query) {
                let rows: Vec<u32> = of_query.iter().map(|candidate| candidate.row).collect();
                let of_rows = logits.split_off_mut(..rows.len()).unwrap_or_default();
                self.kernel.compute_rows(&self.head, &x[of_query[0].query as usize * k..][..k], &rows, of_rows);
            }
        });
    }
}

/// What the workers of a search share.
struct Standings<'a> {
    x: &'a [f32],
    scale: f32,
    k: usize,
    /// For every query the best of the rows rescored so far, with their logits times `scale`.
    best: &'a mut [Vec<(u32, f32)>],
    candidates: &'a mut Vec<Candidate>,
    rescored: usize,
}

/// What the bound of a row must reach, or the row cannot come before the worst of `best`. Logits this close could become equal when they
/// are scaled, and of equals the smaller index is better.
fn least(best: &[(u32, f32)], k: usize, scale: f32) -> f32 {
    match best.get(k - 1) {
        Some(&(_, worst)) => worst / scale - (worst / scale).abs() * 2f32.powi(-21) - 2f32.powi(-100),
        None => f32::NEG_INFINITY,
    }
}

/// What multiplying the whole head by `m` inputs costs, in passes over its bytes: from four on it is the multiply-adds that take time.
fn whole_heads(m: usize) -> usize {
    m.div_ceil(4)
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

/// The way to score many inputs by tiles, where the CPU has them.
fn by_tiles() -> Option<Score> {
    #[cfg(target_arch = "x86_64")]
    return amx::score();
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// An input, quantised.
#[derive(Default)]
struct Query {
    blocks: Vec<QueryBlock>,
    /// `x̂ = scale · code`, where the input has one scale.
    scale: f32,
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

/// Scales and bounds the sums of a group, and hands on the rows whose bound reaches `least`. Inlined where more CPU features are enabled.
#[inline(always)]
fn finish(
    rows: &Rows,
    group: usize,
    factors: &Factors,
    (i, query): (usize, &Query),
    sums: &[f32; GROUP_ROWS],
    least: &mut f32,
    found: &mut Found<'_>,
) {
    let (mut scores, mut bounds) = ([0f32; GROUP_ROWS], [0f32; GROUP_ROWS]);
    for lane in 0..GROUP_ROWS {
        scores[lane] = sums[lane] * factors.scale[lane];
        let slack = query.of_norm.mul_add(factors.norm[lane], TINY as f32);
        bounds[lane] = scores[lane] + query.of_residual.mul_add(factors.residual[lane], slack);
    }
    // No early exit inside, so that it becomes vector code.
    if bounds.iter().fold(false, |any, bound| any | (bound >= least)) {
        let first = group * GROUP_ROWS;
        for (row, (&score, &bound)) in (first..rows.n()).zip(scores.iter().zip(&bounds)) {
            if bound >= *least {
                *least = found(Candidate { query: i as u32, row: row as u32, bound }, score);
            }
        }
    }
}

/// Its bits and an integer between -2^22 and 2^22, added, are the bits of their sum: a product that begins with it need not be converted.
const SHIFT: f32 = 1.5 * (1 << 23) as f32;

impl Query {
    /// Quantises `h` in blocks. `false` where it is not finite or too large.
    fn prepare(&mut self, h: &[f32]) -> bool {
        self.blocks.clear();
        let (mut norm, mut error) = (0.0, 0.0);
        for h in h.chunks(BLOCK) {
            let (scale, per_unit) = unit_of(h, 127.0);
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
        self.bound(h.len(), norm, error)
    }

    /// Quantises `h` as a whole, and gives every code in two parts: `128 · first + second`. `false` as in [`Self::prepare`].
    fn prepare_whole(&mut self, h: &[f32], mut part: impl FnMut(usize, [i8; 2])) -> bool {
        self.blocks.clear();
        let (scale, per_unit) = unit_of(h, 127.0 * 128.0);
        let (mut norm, mut error) = (0.0, 0.0);
        for (i, &h) in h.iter().enumerate() {
            let code = rows::rounded((h * per_unit).clamp(-127.0 * 128.0, 127.0 * 128.0)) as i32;
            // Exact: 24 by 15 bits.
            let rest = f64::from(h) - f64::from(scale) * f64::from(code);
            norm += f64::from(h) * f64::from(h);
            error += rest * rest;
            let first = (code + 64) >> 7;
            part(i, [first as i8, (code - 128 * first) as i8]);
        }
        self.scale = scale;
        self.bound(h.len(), norm, error)
    }

    /// The sums of a whole input, from those of its two parts.
    #[cfg(any(test, target_arch = "x86_64"))]
    #[inline(always)]
    fn of_parts(&self, first: &[i32; GROUP_ROWS], second: &[i32; GROUP_ROWS]) -> [f32; GROUP_ROWS] {
        let mut sums = [0.0; GROUP_ROWS];
        for lane in 0..GROUP_ROWS {
            sums[lane] = self.scale * (first[lane] as f32).mul_add(128.0, second[lane] as f32);
        }
        sums
    }

    /// Takes what bounds are made of: the squares of `|h|` and `|e|`, for so many columns.
    fn bound(&mut self, k: usize, norm: f64, error: f64) -> bool {
        let (norm, error) = (norm.sqrt() * (1.0 + 1e-9), error.sqrt() * (1.0 + 1e-9));
        let roundings = (k.div_ceil(8) + 4 + 2 * k.div_ceil(BLOCK) + 8) as f64 * 2f64.powi(-24);
        let gamma = roundings / (1.0 - roundings);
        // Rounding to f32, and the three roundings of `of_residual · ρ + of_norm · ω + TINY`, take less than this adds.
        self.of_residual = (norm * (1.0 + 2f64.powi(-20))) as f32;
        self.of_norm = ((error + gamma * (norm + error)) * (1.0 + 2f64.powi(-20))) as f32;
        norm.is_finite() && norm <= LARGEST && roundings < 0.1
    }
}

/// The unit in which the largest of `h` is `most`, and one over it.
fn unit_of(h: &[f32], most: f32) -> (f32, f32) {
    let unit = h.iter().fold(0f32, |max, h| max.max(h.abs())) / most;
    let per_unit = if unit > 0.0 { 1.0 / unit } else { 0.0 };
    // One over a subnormal may be infinite: such numbers count as zeros, and all of them as error.
    if per_unit.is_finite() { (unit, per_unit) } else { (0.0, 0.0) }
}

/// The inputs of a search.
#[derive(Default)]
struct Queries {
    all: Vec<Query>,
    /// Of whole inputs, [`TILE_INPUTS`] after the other and in those [`TILE_COLUMNS`] after the other.
    tiles: Vec<QueryTiles>,
}

/// Inputs, and columns, of a tile register.
const TILE_INPUTS: usize = 16;
const TILE_COLUMNS: usize = 64;

/// Two registers' worth: the first parts, and the second ones. Every row of one is a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct QueryTiles([[[i8; TILE_COLUMNS]; TILE_INPUTS]; 2]);

impl Queries {
    /// Of whole inputs, at most: sums stay below 127 · 127 · 2^17 < 2^31.
    const MOST_COLUMNS: usize = 1 << 17;

    /// Quantises `m` inputs of `k` columns, whole or in blocks; `false` where one is not finite or too large.
    fn quantize(&mut self, x: &[f32], m: usize, k: usize, whole: bool) -> bool {
        let Self { all, tiles } = self;
        all.resize_with(m, Query::default);
        let mut queries = all.iter_mut().zip(x.chunks_exact(k.max(1))).enumerate();
        if !whole {
            return queries.all(|(_, (query, x))| query.prepare(x));
        }
        let n_steps = k.div_ceil(TILE_COLUMNS);
        tiles.clear();
        tiles.resize(m.div_ceil(TILE_INPUTS) * n_steps, QueryTiles([[[0; _]; _]; 2]));
        queries.all(|(i, (query, x))| {
            let tiles = &mut tiles[i / TILE_INPUTS * n_steps..][..n_steps];
            query.prepare_whole(x, |column, parts| {
                for (tile, part) in tiles[column / TILE_COLUMNS].0.iter_mut().zip(parts) {
                    tile[i % TILE_INPUTS][column % TILE_COLUMNS] = part;
                }
            })
        })
    }

    fn bytes(&self) -> usize {
        let blocks: usize = self.all.iter().map(|query| query.blocks.capacity() * size_of::<QueryBlock>()).sum();
        blocks + self.tiles.capacity() * size_of::<QueryTiles>()
    }
}

#[cfg(test)]
mod tests;
