//! Every type on AVX2 + FMA + F16C: weights become f32 in registers, activations stay f32.
//!
//! Up to [`FUSED_TOKENS`] tokens, weights go from memory through a conversion straight into the multiply-adds, four rows at a
//! time: one pass over the rows at memory speed. From there on a block of weights is converted once to L1 and used for all
//! tokens. Both paths keep eight running sums per output in the same order (see [`LANES`]), so they give the same bits.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::avx2::{self, Method};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, LANES, sum_lanes};
use crate::arch::x86_64::prefetch;

/// A storage type whose weights can be loaded eight at a time.
trait Source {
    /// Weights `8 i .. 8 i + 8` of the row of whole blocks that starts at `row`.
    ///
    /// # Safety
    /// The CPU has AVX2, FMA and F16C, and the row at `row` has at least `8 i + 8` weights.
    unsafe fn load(row: *const u8, i: usize) -> __m256;
}

/// A type and its [`Source`]; the body is compiled with the CPU features, as if it were a safe `#[target_feature]` function.
macro_rules! source {
    ($(#[$doc:meta])* $ty:ident, $name:literal, |$row:ident, $i:ident| $body:expr) => {
        $(#[$doc])*
        pub struct $ty;

        impl Method for $ty {
            const INFO: DenseInfo = avx2::info($name, DenseType::$ty, Activations::F32);

            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn multiply(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
                if m <= FUSED_TOKENS { fused::<Self>(w, x, m, rows, y) } else { blocked::<Self>(w, x, m, rows, y) }
            }
        }

        impl Source for $ty {
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn load($row: *const u8, $i: usize) -> __m256 {
                // SAFETY: by this function's contract the eight weights and the head of their block lie inside the row.
                unsafe { $body }
            }
        }
    };
}

source!(
    /// 32 bytes.
    F32, "avx2-f32-fma", |row, i| _mm256_loadu_ps(row.add(32 * i).cast())
);
source!(
    /// 16 bytes, converted by F16C.
    F16, "avx2-f16-fma", |row, i| _mm256_cvtph_ps(_mm_loadu_si128(row.add(16 * i).cast()))
);
source!(
    /// 16 bytes: the upper halves of eight f32.
    BF16, "avx2-bf16-fma", |row, i| {
        let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(row.add(16 * i).cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
);
source!(
    /// A quarter of a block of 34 bytes: `d`, then 32 int8.
    Q8_0, "avx2-q8_0-fma", |row, i| {
        let block = row.add(34 * (i / 4));
        let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(block.add(2 + 8 * (i % 4)).cast()));
        _mm256_mul_ps(half(block), _mm256_cvtepi32_ps(codes))
    }
);
source!(
    /// A quarter of a block of 18 bytes: `d`, then 16 bytes with codes `j` (low) and `j + 16` (high).
    Q4_0, "avx2-q4_0-fma", |row, i| {
        let block = row.add(18 * (i / 4));
        let codes = _mm256_sub_epi32(nibbles(block.add(2), i % 4), _mm256_set1_epi32(8));
        _mm256_mul_ps(half(block), _mm256_cvtepi32_ps(codes))
    }
);
source!(
    /// A quarter of a block of 20 bytes: `d`, `m`, then 16 bytes of codes as in Q4_0.
    Q4_1, "avx2-q4_1-fma", |row, i| {
        let block = row.add(20 * (i / 4));
        let codes = _mm256_cvtepi32_ps(nibbles(block.add(4), i % 4));
        // Exact product (11 by 4 bits), so fused or not makes no difference.
        _mm256_fmadd_ps(half(block), codes, half(block.add(2)))
    }
);

/// The f16 at `at`, in every lane.
///
/// # Safety
/// Two bytes can be read at `at`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn half(at: *const u8) -> __m256 {
    // SAFETY: by the contract.
    let bits = unsafe { at.cast::<u16>().read_unaligned() };
    _mm256_cvtph_ps(_mm_set1_epi16(bits.cast_signed()))
}

/// Codes `8 quarter .. 8 quarter + 8` of the 16 bytes at `codes`.
///
/// # Safety
/// 16 bytes can be read at `codes`, and `quarter < 4`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles(codes: *const u8, quarter: usize) -> __m256i {
    // SAFETY: bytes 0..8 or 8..16 of the 16.
    let bytes = unsafe { _mm_loadl_epi64(codes.add(8 * (quarter % 2)).cast()) };
    let shift = _mm_cvtsi32_si128(if quarter < 2 { 0 } else { 4 });
    _mm256_and_si256(_mm256_srl_epi32(_mm256_cvtepu8_epi32(bytes), shift), _mm256_set1_epi32(15))
}

/// Up to this many tokens weights are converted in registers, again for every pair of tokens: four rows stay in the L1 cache
/// meanwhile. Three tokens at a time were slower (the conversion needs registers too), and so was the blocked path at 4 and 8.
const FUSED_TOKENS: usize = 8;
/// Rows of a register tile: with three tokens 12 sums, 3 activations and 1 weight fill the 16 registers.
const TILE_ROWS: usize = 4;
/// Tokens of a register tile.
const TILE_TOKENS: usize = 3;
/// Rows converted at a time: with [`BLOCK_K`] columns 16 KB, half of the L1 cache.
const BLOCK_ROWS: usize = 8;
/// Columns converted at a time. Blocks of 16, 32 and 64 rows, of 256 and 1024 columns, and tiles of 6 x 2 and 5 x 2 were slower.
const BLOCK_K: usize = 512;

#[target_feature(enable = "avx2,fma,f16c")]
fn fused<S: Source>(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let (k, n_rows) = (w.k(), rows.len());
    // The rows of a tile lie a quarter of the range apart, so each worker reads four long streams: one alone, or four that are
    // neighbours, stop at 17 GB/s on Zen 3 where four streams read 26.
    let spacing = n_rows / TILE_ROWS;
    for r in 0..n_rows - spacing * (TILE_ROWS - 1) {
        // The last rows, that no tile has.
        let r = if r < spacing { r } else { r + spacing * (TILE_ROWS - 1) };
        let mut token = 0;
        while token < m {
            let (x, y) = (&x[token * k..], &mut y[token * n_rows + r..]);
            let pair = token + 1 < m;
            match (r < spacing, pair) {
                (true, true) => fused_tile::<S, TILE_ROWS, 2>(w, x, rows.start + r, spacing, n_rows, y),
                (true, false) => fused_tile::<S, TILE_ROWS, 1>(w, x, rows.start + r, spacing, n_rows, y),
                (false, true) => fused_tile::<S, 1, 2>(w, x, rows.start + r, 0, n_rows, y),
                (false, false) => fused_tile::<S, 1, 1>(w, x, rows.start + r, 0, n_rows, y),
            }
            token += if pair { 2 } else { 1 };
        }
    }
}

/// `R` rows, `spacing` apart, x `T` tokens over all of `k`.
#[target_feature(enable = "avx2,fma,f16c")]
fn fused_tile<S: Source, const R: usize, const T: usize>(
    w: &DenseMatrix,
    x: &[f32],
    first: usize,
    spacing: usize,
    stride: usize,
    y: &mut [f32],
) {
    let k = w.k();
    let mut rows = [std::ptr::null(); R];
    let mut tokens: [&[f32]; T] = [&[]; T];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = w.row(first + r * spacing).as_ptr();
    }
    for (t, token) in tokens.iter_mut().enumerate() {
        *token = &x[t * k..][..k];
    }
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    for i in 0..k / LANES {
        let mut x = [_mm256_setzero_ps(); T];
        for t in 0..T {
            // SAFETY: `8 i + 8 <= k`, the length of `tokens[t]`.
            x[t] = unsafe { _mm256_loadu_ps(tokens[t].as_ptr().add(LANES * i)) };
        }
        for r in 0..R {
            // SAFETY: the features are enabled here, and every row has `k >= 8 i + 8` weights.
            let w = unsafe { S::load(rows[r], i) };
            for t in 0..T {
                sums[r][t] = _mm256_fmadd_ps(w, x[t], sums[r][t]);
            }
        }
    }
    let rest = k / LANES * LANES;
    for r in 0..R {
        for t in 0..T {
            let mut sum = sums[r][t];
            if rest < k {
                let w = load_rest(
                    |out| w.ty().dequantize(&w.row(first + r * spacing)[rest * w.ty().block_bytes()..], out),
                    k - rest,
                );
                let x = load_rest(|out| out.copy_from_slice(&tokens[t][rest..]), k - rest);
                sum = _mm256_fmadd_ps(w, x, sum);
            }
            y[t * stride + r * spacing] = reduce(sum);
        }
    }
}

/// The last `len < 8` values, padded with zeros.
#[target_feature(enable = "avx2")]
fn load_rest(fill: impl FnOnce(&mut [f32]), len: usize) -> __m256 {
    let mut values = [0.0; LANES];
    fill(&mut values[..len]);
    load(&values)
}

/// Eight values that share a cache line: loads that cross one count twice, and loads are nearly the limit.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Lanes([f32; LANES]);

const ZEROS: Lanes = Lanes([0.0; LANES]);

/// Buffers of the blocked path, kept per thread.
#[derive(Default)]
struct Buffers {
    /// `BLOCK_ROWS x BLOCK_K` weights.
    weights: Vec<Lanes>,
    /// The running sums, `BLOCK_ROWS` lanes per token.
    sums: Vec<[Lanes; BLOCK_ROWS]>,
    /// The input: [`BLOCK_K`] columns of every token, then the next. In the input itself tokens lie a power of two apart, in few
    /// sets of the caches; with this, alignment and prefetching 66 instead of 53 % of the peak on a busy Zen 3.
    x: Vec<Lanes>,
    /// The last columns of every token, padded to [`LANES`].
    rest: Vec<Lanes>,
}

/// Brings `m` rows of `x`, as far as they are whole lanes, into the order of [`Buffers::x`].
#[target_feature(enable = "avx2")]
fn in_columns(x: &[f32], k: usize, out: &mut Vec<Lanes>) {
    out.clear();
    let whole = k / LANES * LANES;
    for column in (0..whole).step_by(BLOCK_K) {
        for x in x.chunks_exact(k) {
            let x = &x[column..whole.min(column + BLOCK_K)];
            out.extend(x.as_chunks().0.iter().map(|x| Lanes(*x)));
        }
    }
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

#[target_feature(enable = "avx2,fma,f16c")]
fn blocked<S: Source>(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
    BUFFERS.with_borrow_mut(|buffers| blocked_with::<S>(buffers, w, x, m, rows, y));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn blocked_with<S: Source>(
    Buffers { weights, sums, x: columns, rest }: &mut Buffers,
    w: &DenseMatrix,
    x: &[f32],
    m: usize,
    rows: Range<usize>,
    y: &mut [f32],
) {
    let k = w.k();
    let whole = k / LANES * LANES;
    weights.resize(BLOCK_ROWS * BLOCK_K / LANES, ZEROS);
    in_columns(x, k, columns);
    rest.clear();
    if whole < k {
        let padded = |x: &[f32]| Lanes(std::array::from_fn(|i| x.get(whole + i).copied().unwrap_or(0.0)));
        rest.extend(x.chunks_exact(k).map(padded));
    }
    for first in rows.clone().step_by(BLOCK_ROWS) {
        let n_rows = (rows.end - first).min(BLOCK_ROWS);
        sums.clear();
        sums.resize(m, [ZEROS; BLOCK_ROWS]);
        for column in (0..whole).step_by(BLOCK_K) {
            let n_chunks = (whole - column).min(BLOCK_K) / LANES;
            for (r, weights) in weights.chunks_exact_mut(BLOCK_K / LANES).take(n_rows).enumerate() {
                let row = w.row(first + r).as_ptr();
                for (i, weights) in weights[..n_chunks].iter_mut().enumerate() {
                    // SAFETY: the features are enabled here; `column + 8 i + 8 <= whole <= k` weights lie in the row.
                    store(&mut weights.0, unsafe { S::load(row, column / LANES + i) });
                }
            }
            let (next_row, next_column) =
                if column + BLOCK_K < whole { (first, column + BLOCK_K) } else { (first + BLOCK_ROWS, 0) };
            let ahead = Ahead::new(w, next_row, next_column);
            multiply_block(weights, n_rows, &columns[m * column / LANES..][..m * n_chunks], sums, ahead);
        }
        if whole < k {
            for (r, weights) in weights.chunks_exact_mut(BLOCK_K / LANES).take(n_rows).enumerate() {
                weights[0] = ZEROS;
                w.ty().dequantize(&w.row(first + r)[whole * w.ty().block_bytes()..], &mut weights[0].0[..k - whole]);
            }
            multiply_block(weights, n_rows, rest, sums, Ahead::new(w, rows.end, 0));
        }
        for (sums, y) in sums.iter().zip(y[first - rows.start..].chunks_mut(rows.len())) {
            for (sums, y) in sums[..n_rows].iter().zip(y) {
                *y = sum_lanes(sums.0);
            }
        }
    }
}

/// The weights that the next block converts. They are asked for a few cache lines at a time while this one is multiplied: a
/// whole F16 model prefills 10 to 15 % faster for it, on one thread of a Zen 3.
struct Ahead {
    start: *const u8,
    row_bytes: usize,
    lines_per_row: usize,
    asked: usize,
}

impl Ahead {
    /// For the block at `row` and `column`, which may lie behind the matrix.
    fn new(w: &DenseMatrix, row: usize, column: usize) -> Self {
        let bytes = |columns: usize| columns / w.ty().block_len() * w.ty().block_bytes();
        let row_bytes = bytes(w.k());
        let start = w.data().as_ptr().wrapping_add(row * row_bytes + bytes(column));
        Self { start, row_bytes, lines_per_row: bytes(BLOCK_K.min(w.k() - column)).div_ceil(64), asked: 0 }
    }

    fn n_lines(&self) -> usize {
        BLOCK_ROWS * self.lines_per_row
    }

    #[target_feature(enable = "avx2")]
    fn ask(&mut self, n_lines: usize) {
        for line in self.asked..(self.asked + n_lines).min(self.n_lines()) {
            let (row, line) = (line / self.lines_per_row, line % self.lines_per_row);
            prefetch::<_MM_HINT_T1>(self.start.wrapping_add(row * self.row_bytes + 64 * line));
        }
        self.asked += n_lines;
    }
}

/// Adds one block of converted weights times the matching columns of every token, which lie in `x` one token after the other.
#[target_feature(enable = "avx2,fma")]
fn multiply_block(weights: &[Lanes], n_rows: usize, x: &[Lanes], sums: &mut [[Lanes; BLOCK_ROWS]], mut ahead: Ahead) {
    let n_chunks = x.len() / sums.len();
    let lines_per_tile = ahead.n_lines().div_ceil(sums.len().div_ceil(TILE_TOKENS));
    let mut tiles = x.chunks_exact(TILE_TOKENS * n_chunks);
    let mut sums = sums.chunks_exact_mut(TILE_TOKENS);
    for (x, sums) in tiles.by_ref().zip(sums.by_ref()) {
        ahead.ask(lines_per_tile);
        rows_of_block::<TILE_TOKENS>(weights, n_rows, x, sums);
    }
    let (x, sums) = (tiles.remainder(), sums.into_remainder());
    match sums.len() {
        2 => rows_of_block::<2>(weights, n_rows, x, sums),
        1 => rows_of_block::<1>(weights, n_rows, x, sums),
        _ => {}
    }
}

#[target_feature(enable = "avx2,fma")]
fn rows_of_block<const T: usize>(weights: &[Lanes], n_rows: usize, x: &[Lanes], sums: &mut [[Lanes; BLOCK_ROWS]]) {
    let mut r = 0;
    while r + TILE_ROWS <= n_rows {
        tile::<TILE_ROWS, T>(weights, r, x, sums);
        r += TILE_ROWS;
    }
    while r < n_rows {
        tile::<1, T>(weights, r, x, sums);
        r += 1;
    }
}

/// The register tile: rows `first .. first + R` of the block and `T` tokens. It prefetches its share of the next tokens: whole
/// tiles of rows, two a block, bring a cache line each step.
#[target_feature(enable = "avx2,fma")]
fn tile<const R: usize, const T: usize>(
    weights: &[Lanes],
    first: usize,
    x: &[Lanes],
    sums: &mut [[Lanes; BLOCK_ROWS]],
) {
    let n_chunks = x.len() / T;
    let mut rows: [&[Lanes]; R] = [&[]; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &weights[(first + r) * (BLOCK_K / LANES)..][..n_chunks];
    }
    let mut tokens: [&[Lanes]; T] = [&[]; T];
    for (t, token) in tokens.iter_mut().enumerate() {
        *token = &x[t * n_chunks..][..n_chunks];
    }
    let next = x.as_ptr().wrapping_add(x.len() + first / TILE_ROWS * x.len() * TILE_ROWS / BLOCK_ROWS);
    let mut lanes = [[_mm256_setzero_ps(); T]; R];
    for r in 0..R {
        for t in 0..T {
            lanes[r][t] = load(&sums[t][first + r].0);
        }
    }
    for i in 0..n_chunks {
        prefetch::<_MM_HINT_T0>(next.wrapping_add(2 * i).cast());
        let mut x = [_mm256_setzero_ps(); T];
        for t in 0..T {
            x[t] = load(&tokens[t][i].0);
        }
        for r in 0..R {
            let w = load(&rows[r][i].0);
            for t in 0..T {
                lanes[r][t] = _mm256_fmadd_ps(w, x[t], lanes[r][t]);
            }
        }
    }
    for r in 0..R {
        for t in 0..T {
            store(&mut sums[t][first + r].0, lanes[r][t]);
        }
    }
}

#[target_feature(enable = "avx2")]
fn reduce(sum: __m256) -> f32 {
    let mut lanes = [0.0; LANES];
    store(&mut lanes, sum);
    sum_lanes(lanes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(values: &[f32; LANES]) -> __m256 {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(values: &mut [f32; LANES], value: __m256) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), value) };
}
