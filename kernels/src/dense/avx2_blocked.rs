//! Batches on AVX2 + FMA: a tile of rows and tokens whose sums stay in registers over a block of columns.
//!
//! A block of weights, some rows x some columns, stays in the L2 cache, its next is asked for meanwhile, and one token tile after
//! the other goes by: the tile's activations lie in the L1 cache, the weights stream past them. F16 is converted by the loads of
//! the innermost loop, on other ports than the multiply-adds; types that cost more to convert are turned into f32 block by block.
//!
//! Measured on one thread of a shared Zen 3, F16, 64 and 128 tokens: 63 to 78 % of the multiply-add peak with weights from memory,
//! 72 to 89 % with weights in the L2 cache; the machine has slow and fast spells. Before, with 8 rows of f32 weights in L1 and
//! activations streaming past them, 47 to 76 %. Blocks of half the columns were slower, of 48 rows no faster.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::avx2_fma::{F32, Source};
use super::{DenseMatrix, DenseType, LANES};
use crate::arch::x86_64::prefetch;

/// Eight values that share a cache line: loads that cross one count twice.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Lanes([f32; LANES]);

const ZEROS: Lanes = Lanes([0.0; LANES]);

/// Rows of a tile: with four tokens 12 sums, 3 weights and 1 activation fill the 16 registers.
const TILE_ROWS: usize = 3;
/// Tokens of a tile.
const TILE_TOKENS: usize = 4;
/// Bytes of a row in a block. The activations of a tile are 8 or, with F16, 16 KB of the L1 cache, its weights 6.
const ROW_BYTES: usize = 2048;
/// Rows of a block: 192 KB, which fits in the L2 cache twice. The more, the less often activations are copied.
const BLOCK_ROWS: usize = 96;

/// Whether the innermost loop can load weights as they are stored, because that costs little.
const fn in_place(ty: DenseType) -> bool {
    matches!(ty, DenseType::F32 | DenseType::F16)
}

/// Buffers, kept per thread.
#[derive(Default)]
struct Buffers {
    /// A block of weights as f32, of types that the tile cannot read as they are stored.
    weights: Vec<Lanes>,
    /// The activations of a tile, column by column: in the input itself tokens lie a power of two apart, in few sets of the cache.
    x: Vec<Lanes>,
    /// The sums of a block of rows, tile by tile, from one block of columns to the next.
    sums: Vec<Lanes>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// `y = w · x` as [`super::DenseKernel::compute`] says, for batches.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn blocked<S: Source>(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
    BUFFERS.with_borrow_mut(|buffers| blocked_with::<S>(buffers, w, x, m, rows, y));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn blocked_with<S: Source>(
    Buffers { weights, x: tile_x, sums }: &mut Buffers,
    w: &DenseMatrix,
    x: &[f32],
    m: usize,
    rows: Range<usize>,
    y: &mut [f32],
) {
    let (k, ty) = (w.k(), w.ty());
    let bytes = |columns: usize| columns / ty.block_len() * ty.block_bytes();
    let whole = k / LANES * LANES;
    let block_k = ROW_BYTES / if in_place(S::INFO.ty) { ty.block_bytes() } else { size_of::<f32>() };
    let most_rows = rows.len().min(BLOCK_ROWS);
    weights.resize(most_rows * if in_place(S::INFO.ty) { 1 } else { block_k / LANES }, ZEROS);
    tile_x.resize(TILE_TOKENS * block_k / LANES, ZEROS);
    if k > block_k || whole < k {
        sums.resize(m * most_rows, ZEROS);
    }
    for first in rows.clone().step_by(BLOCK_ROWS) {
        let n_rows = (rows.end - first).min(BLOCK_ROWS);
        let mut column = 0;
        loop {
            // The last columns, fewer than a vector, are a block of their own.
            let columns = column..if column < whole { whole.min(column + block_k) } else { k };
            column = columns.end;
            let (next_row, next_column) = if column < k { (first, column) } else { (first + n_rows, 0) };
            let ahead = Ahead {
                start: w.data().as_ptr().wrapping_add(next_row * bytes(k) + bytes(next_column)),
                row_bytes: bytes(k),
                lines_per_row: bytes((k - next_column).min(block_k)).div_ceil(64),
                n_rows: (w.n() - next_row).min(BLOCK_ROWS),
                asked: 0,
            };
            let place = Place { k, columns, stride: rows.len() };
            let y = &mut y[first - rows.start..];
            if in_place(S::INFO.ty) && column <= whole {
                let start = w.row(first)[bytes(place.columns.start)..].as_ptr();
                let block = Block { start, row_bytes: bytes(k), n_rows };
                // SAFETY: every row has the columns `place.columns`, whole vectors.
                unsafe { multiply::<S>(block, &place, x, tile_x, sums, ahead, y) };
            } else {
                let row_len = place.n_chunks().max(1);
                for (r, out) in weights.chunks_exact_mut(row_len).take(n_rows).enumerate() {
                    to_f32::<S>(w, first + r, place.columns.clone(), out);
                }
                let row_bytes = row_len * size_of::<Lanes>();
                let block = Block { start: weights.as_ptr().cast(), row_bytes, n_rows };
                // SAFETY: the rows were just written, padded to whole vectors.
                unsafe { multiply::<F32>(block, &place, x, tile_x, sums, ahead, y) };
            }
            if column == k {
                break;
            }
        }
    }
}

/// Writes columns of a row as f32; a last vector is padded with zeros.
#[target_feature(enable = "avx2,fma,f16c")]
fn to_f32<S: Source>(w: &DenseMatrix, row: usize, columns: Range<usize>, out: &mut [Lanes]) {
    let (row, ty) = (w.row(row), w.ty());
    if columns.len() < LANES {
        out[0] = ZEROS;
        ty.dequantize(&row[columns.start * ty.block_bytes()..], &mut out[0].0[..columns.len()]);
    } else {
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the features are enabled here, and these eight of the columns lie in the row.
            store(&mut out.0, unsafe { S::load(row.as_ptr(), columns.start / LANES + i) });
        }
    }
}

/// The weights that come next. They are asked for a few cache lines at a time while a block is multiplied. In the loop before this
/// one that and activations column by column together let a whole F16 model prefill 10 to 15 % faster, on one thread of a Zen 3;
/// here it was not measured apart.
struct Ahead {
    start: *const u8,
    row_bytes: usize,
    lines_per_row: usize,
    n_rows: usize,
    asked: usize,
}

impl Ahead {
    /// Asks for one part of `n_parts`.
    fn ask(&mut self, n_parts: usize) {
        let n_lines = self.n_rows * self.lines_per_row;
        let end = (self.asked + n_lines.div_ceil(n_parts)).min(n_lines);
        for line in self.asked..end {
            let (row, line) = (line / self.lines_per_row, line % self.lines_per_row);
            prefetch::<_MM_HINT_T1>(self.start.wrapping_add(row * self.row_bytes + 64 * line));
        }
        self.asked = end;
    }
}

/// A block of weights.
#[derive(Clone, Copy)]
struct Block {
    start: *const u8,
    /// From row to row.
    row_bytes: usize,
    n_rows: usize,
}

/// What a block is multiplied with, and where sums go.
struct Place {
    /// Values of a token.
    k: usize,
    /// The columns of the block.
    columns: Range<usize>,
    /// Outputs from token to token.
    stride: usize,
}

impl Place {
    /// Vectors of a row of the block.
    fn n_chunks(&self) -> usize {
        self.columns.len().div_ceil(LANES)
    }
}

/// Adds a block times its columns of all tokens of `x` to `sums`, which after the last columns become outputs.
///
/// # Safety
/// Each row of the block holds [`Place::n_chunks`] vectors of weights.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<S: Source>(
    block: Block,
    place: &Place,
    x: &[f32],
    tile_x: &mut [Lanes],
    sums: &mut [Lanes],
    mut ahead: Ahead,
    y: &mut [f32],
) {
    let m = x.len() / place.k.max(1);
    for token in (0..m).step_by(TILE_TOKENS) {
        ahead.ask(m.div_ceil(TILE_TOKENS));
        let (x, y) = (&x[token * place.k..], &mut y[token * place.stride..]);
        let sums = sums.get_mut(token * block.n_rows..).unwrap_or_default();
        // SAFETY: by this function's contract.
        unsafe {
            match m - token {
                1 => multiply_tokens::<S, 1>(block, place, x, tile_x, sums, y),
                2 => multiply_tokens::<S, 2>(block, place, x, tile_x, sums, y),
                3 => multiply_tokens::<S, 3>(block, place, x, tile_x, sums, y),
                _ => multiply_tokens::<S, TILE_TOKENS>(block, place, x, tile_x, sums, y),
            }
        }
    }
}

/// The same for the first `T` tokens.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_tokens<S: Source, const T: usize>(
    block: Block,
    place: &Place,
    x: &[f32],
    tile_x: &mut [Lanes],
    sums: &mut [Lanes],
    y: &mut [f32],
) {
    let tile_x = &mut tile_x.as_chunks_mut::<T>().0[..place.n_chunks()];
    for t in 0..T {
        let (x, rest) = x[t * place.k..][place.columns.clone()].as_chunks();
        for (tile_x, x) in tile_x.iter_mut().zip(x) {
            tile_x[t] = Lanes(*x);
        }
        if let (false, Some(last)) = (rest.is_empty(), tile_x.last_mut()) {
            last[t] = ZEROS;
            last[t].0[..rest.len()].copy_from_slice(rest);
        }
    }
    let ends = (place.columns.start == 0, place.columns.end == place.k);
    let next_x = x.as_ptr().wrapping_add(TILE_TOKENS * place.k + place.columns.start);
    let n_tiles = block.n_rows.div_ceil(TILE_ROWS);
    let line_of = |tile: usize| place.columns.len().div_ceil(16) * tile / n_tiles;
    for i in 0..n_tiles {
        for line in line_of(i)..line_of(i + 1) {
            for t in 0..TILE_TOKENS {
                prefetch::<_MM_HINT_T1>(next_x.wrapping_add(t * place.k + 16 * line).cast());
            }
        }
        let r = i * TILE_ROWS;
        // SAFETY: by this function's contract; the rows exist.
        unsafe {
            if r + TILE_ROWS <= block.n_rows {
                tile::<S, TILE_ROWS, T>(block, r, tile_x, ends, sums, &mut y[r..], place.stride);
            } else {
                for r in r..block.n_rows {
                    tile::<S, 1, T>(block, r, tile_x, ends, sums, &mut y[r..], place.stride);
                }
            }
        }
    }
}

/// Rows `row .. row + R` and `T` tokens. `ends` says whether these columns are the first and whether they are the last: the first
/// begin new sums, after the last the sums are outputs, `stride` from token to token.
///
/// # Safety
/// The block has `R` rows from `row` on, each with `x.len()` vectors of weights.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<S: Source, const R: usize, const T: usize>(
    block: Block,
    row: usize,
    x: &[[Lanes; T]],
    ends: (bool, bool),
    sums: &mut [Lanes],
    y: &mut [f32],
    stride: usize,
) {
    let mut rows = [std::ptr::null(); R];
    for (r, pointer) in rows.iter_mut().enumerate() {
        *pointer = block.start.wrapping_add((row + r) * block.row_bytes);
    }
    let sums = match ends {
        (true, true) => &mut [],
        _ => &mut sums[row * T..][..R * T],
    };
    let mut lanes = [[_mm256_setzero_ps(); T]; R];
    if !ends.0 {
        for r in 0..R {
            for t in 0..T {
                lanes[r][t] = load(&sums[r * T + t].0);
            }
        }
    }
    // SAFETY: the features are enabled here, and the rows have `x.len()` vectors.
    let n_done = unsafe { full_tile::<S, R, T>(rows, x, &mut lanes) };
    for (i, x) in x.iter().enumerate().skip(n_done) {
        let mut w = [_mm256_setzero_ps(); R];
        for r in 0..R {
            // SAFETY: the features are enabled here, and the row has more than `i` vectors.
            w[r] = unsafe { S::load(rows[r], i) };
        }
        for t in 0..T {
            let x = load(&x[t].0);
            for r in 0..R {
                lanes[r][t] = _mm256_fmadd_ps(w[r], x, lanes[r][t]);
            }
        }
    }
    if ends.1 {
        for t in 0..T {
            let mut four = [_mm256_setzero_ps(); 4];
            for r in 0..R {
                four[r] = lanes[r][t];
            }
            let mut out = [0.0; 4];
            // SAFETY: the array holds the 16 bytes that are written.
            unsafe { _mm_storeu_ps(out.as_mut_ptr(), sum_lanes(four)) };
            y[t * stride..][..R].copy_from_slice(&out[..R]);
        }
    } else {
        for r in 0..R {
            for t in 0..T {
                store(&mut sums[r * T + t].0, lanes[r][t]);
            }
        }
    }
}

/// The instructions of one token and vector: its activations, `$at` bytes on, times the weights of three rows.
macro_rules! token {
    ($at:literal, $a:literal, $b:literal, $c:literal) => {
        concat!(
            "vmovups {x}, [{tokens} + 8 * {i} + ",
            $at,
            "]\n",
            "vfmadd231ps {",
            $a,
            "}, {w0}, {x}\n",
            "vfmadd231ps {",
            $b,
            "}, {w1}, {x}\n",
            "vfmadd231ps {",
            $c,
            "}, {w2}, {x}",
        )
    };
}

/// The instructions that load a vector of each row: 16 bytes an `$each` of `{i}`.
macro_rules! rows {
    ($load:literal, $each:literal, $at:literal) => {
        concat!(
            $load,
            " {w0}, [{row0} + ",
            $each,
            " * {i} + ",
            $at,
            "]\n",
            $load,
            " {w1}, [{row1} + ",
            $each,
            " * {i} + ",
            $at,
            "]\n",
            $load,
            " {w2}, [{row2} + ",
            $each,
            " * {i} + ",
            $at,
            "]",
        )
    };
}

/// Adds as many vectors as come in pairs, for whole tiles, and says how many. Two vectors a turn are 6 % faster in a tile than
/// one, and the compiler, left to unroll or made to, loads the weights of the second too early to keep the sums in registers.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C, and the rows have `x.len()` vectors of weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn full_tile<S: Source, const R: usize, const T: usize>(
    rows: [*const u8; R],
    x: &[[Lanes; T]],
    lanes: &mut [[__m256; T]; R],
) -> usize {
    let n = x.len() / 2 * 2;
    if (R, T) != (TILE_ROWS, TILE_TOKENS) || n == 0 {
        return 0;
    }
    macro_rules! pairs {
        ($load:literal, $each:literal, $second:literal) => {
            // SAFETY: reads `n` vectors of every row and token, which exist by the contract, and writes registers only.
            unsafe {
                asm!(
                    ".p2align 5", "2:",
                    rows!($load, $each, 0),
                    token!(0, "a0", "b0", "c0"),
                    token!(32, "a1", "b1", "c1"),
                    token!(64, "a2", "b2", "c2"),
                    token!(96, "a3", "b3", "c3"),
                    rows!($load, $each, $second),
                    token!(128, "a0", "b0", "c0"),
                    token!(160, "a1", "b1", "c1"),
                    token!(192, "a2", "b2", "c2"),
                    token!(224, "a3", "b3", "c3"),
                    "add {i}, 32",
                    "cmp {i}, {end}",
                    "jb 2b",
                    i = inout(reg) 0usize => _,
                    end = in(reg) 16 * n,
                    tokens = in(reg) x.as_ptr(),
                    row0 = in(reg) rows[0], row1 = in(reg) rows[1 % R], row2 = in(reg) rows[2 % R],
                    a0 = inout(ymm_reg) lanes[0][0], a1 = inout(ymm_reg) lanes[0][1 % T],
                    a2 = inout(ymm_reg) lanes[0][2 % T], a3 = inout(ymm_reg) lanes[0][3 % T],
                    b0 = inout(ymm_reg) lanes[1 % R][0], b1 = inout(ymm_reg) lanes[1 % R][1 % T],
                    b2 = inout(ymm_reg) lanes[1 % R][2 % T], b3 = inout(ymm_reg) lanes[1 % R][3 % T],
                    c0 = inout(ymm_reg) lanes[2 % R][0], c1 = inout(ymm_reg) lanes[2 % R][1 % T],
                    c2 = inout(ymm_reg) lanes[2 % R][2 % T], c3 = inout(ymm_reg) lanes[2 % R][3 % T],
                    w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, w2 = out(ymm_reg) _, x = out(ymm_reg) _,
                    options(nostack, readonly),
                );
            }
        };
    }
    match S::INFO.ty {
        DenseType::F16 => pairs!("vcvtph2ps", 1, 16),
        DenseType::F32 => pairs!("vmovups", 2, 32),
        _ => return 0,
    }
    n
}

/// [`super::sum_lanes`] of four vectors, in the same order.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_lanes(v: [__m256; 4]) -> __m128 {
    let mut halves = [_mm_setzero_ps(); 4];
    for i in 0..4 {
        halves[i] = _mm_add_ps(_mm256_castps256_ps128(v[i]), _mm256_extractf128_ps::<1>(v[i]));
    }
    let [a, b, c, d] = halves;
    // Lanes 0 and 2, 1 and 3 of each half.
    let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
    let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
    _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd))
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
