//! Batches: a tile of rows and tokens whose sums stay in registers over a block of columns.
//!
//! Activations are laid out once ([`prepare`]), as tiles of tokens take them. A block of weights, some rows x some columns, stays in the L2 cache,
//! its next is asked for meanwhile, and one token tile after the other goes by. Weights that are cheap to load as they are stored
//! are; others are turned into f32 block by block. Where rows are longer than a block, some blocks below each other take the same
//! columns before the next columns' turn, so that their activations are read from the L2 cache.
//!
//! The register tile alone, on weights in the L2 cache, runs at 97 % of the multiply-add peak of a Zen 3 and 98 % of an Emerald Rapids';
//! the whole at 78 to 85 % and 76 to 79 % on one thread in F16. On Zen 3, with activations laid out for every block of 96 rows, and
//! 1024 columns at a time for all tokens, so that 128 tokens' sums left the L2 cache, it took 3 to 7 % longer. Blocks of 144 and 192 rows were slower than 96 then, 48 no faster.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::avx2_fma::{F32, Source};
use super::{DenseMatrix, DenseType, LANES, for_each_tile};
use crate::arch::x86_64::prefetch;
use crate::bytes::AlignedBytes;
use crate::team::Team;

/// Eight values or running sums.
pub type Lanes = [f32; LANES];

/// The register tile of an instruction set.
pub trait Tile {
    /// Rows of a whole tile. The last rows of a block, that fill none, come one by one.
    const ROWS: usize;
    /// Tokens of a whole tile.
    const TOKENS: usize;
    /// Tokens that share a register: those missing to a multiple of it are zeros.
    const PACKED: usize;
    /// Types whose weights the innermost loop loads as they are stored, because that costs it little.
    const IN_PLACE: &[DenseType];
    /// Columns that a tile takes at a time.
    const TAKE: usize;
    /// Bytes of a row in a block. A tile takes them all before the next tile's turn, so its sums need not go further than the L2 cache.
    const ROW_BYTES: usize;
    /// Rows of a block.
    const BLOCK_ROWS: usize;
    /// Rows whose blocks of the same columns follow each other, and whose sums are kept meanwhile: whole blocks.
    const SUM_ROWS: usize;
    /// Whether the activations of the next turn are asked for, as the weights are.
    const ASKS_FOR_INPUT: bool;

    /// Multiplies [`Self::ROWS`] rows or one by `x`, which holds a vector of each token, column by column.
    ///
    /// # Safety
    /// The CPU has what the tile needs. Each row holds as many vectors of weights as each token of `x` has, and there are as many
    /// tokens as `out` says.
    unsafe fn multiply<S: Source>(rows: Block, x: &[Lanes], out: Out<'_>);
}

/// Where the sums of a tile go.
pub struct Out<'a> {
    /// Tokens that exist.
    pub n_tokens: usize,
    /// These columns are the first: they begin new sums.
    pub first: bool,
    /// These columns are the last: after them the sums are outputs.
    pub last: bool,
    /// The sums so far, row by row, [`Tile::PACKED`] tokens together; empty where the columns are all.
    pub sums: &'a mut [Lanes],
    /// The output of the first row and token: rows follow each other, tokens are `stride` apart.
    pub y: &'a mut [f32],
    pub stride: usize,
}

/// Tokens that go by together, block after block.
const GROUP_TOKENS: usize = 128;

/// Buffers, kept per thread.
struct Buffers {
    /// A block of weights as f32, of types that the tile cannot read as they are stored.
    weights: AlignedBytes,
    /// The sums of [`Tile::SUM_ROWS`], tile by tile, from one block of columns to the next.
    sums: AlignedBytes,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        weights: AlignedBytes::zeroed(0),
        sums: AlignedBytes::zeroed(0),
    });
}

/// Room for `n` vectors; a vector or two of it never share a cache line with others.
fn room(buffer: &mut AlignedBytes, n: usize) -> &mut [Lanes] {
    buffer.ensure_len(n * size_of::<Lanes>());
    bytemuck::cast_slice_mut(buffer)
}

/// Lays activations out tile by tile, column by column: in the input itself tokens lie a power of two apart, in few sets of the cache.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn prepare<T: Tile>(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
    for_each_tile(team, out, m, T::TOKENS, k.div_ceil(LANES), |tokens, out: &mut [Lanes]| {
        let n_packed = tokens.len().next_multiple_of(T::PACKED);
        let out = &mut out[..n_packed * k.div_ceil(LANES)];
        fill(out, n_packed, &x[tokens.start * k..], k, tokens.len());
    });
}

/// `y = w · x` as [`super::DenseKernel::compute`] says, for batches; `x` is what [`prepare`] made.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn blocked<S: Source, T: Tile>(w: &DenseMatrix, x: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let (k, n_rows) = (w.k(), rows.len());
    let x: &[Lanes] = bytemuck::cast_slice(x);
    if k == 0 {
        return y.fill(0.0);
    }
    BUFFERS.with_borrow_mut(|buffers| {
        for token in (0..m).step_by(GROUP_TOKENS) {
            let end = m.min(token + GROUP_TOKENS);
            let (x, y) = (&x[token * k.div_ceil(LANES)..], &mut y[token * n_rows..end * n_rows]);
            multiply_group::<S, T>(buffers, w, x, end - token, rows.clone(), y);
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_group<S: Source, T: Tile>(
    buffers: &mut Buffers,
    w: &DenseMatrix,
    x: &[Lanes],
    m: usize,
    rows: Range<usize>,
    y: &mut [f32],
) {
    let (k, ty) = (w.k(), w.ty());
    let bytes = |columns: usize| columns / ty.block_len() * ty.block_bytes();
    let whole = k / LANES * LANES;
    let in_place = T::IN_PLACE.contains(&S::INFO.ty);
    let block_k = T::ROW_BYTES / if in_place { ty.block_bytes() } else { size_of::<f32>() };
    let m_packed = m.next_multiple_of(T::PACKED);
    let (most_rows, most_sums) = (rows.len().min(T::BLOCK_ROWS), rows.len().min(T::SUM_ROWS));
    let weights = room(&mut buffers.weights, most_rows * if in_place { 1 } else { block_k / LANES });
    let sums = room(&mut buffers.sums, if k > T::TAKE || whole < k { m_packed * most_sums } else { 0 });
    for first in rows.clone().step_by(T::SUM_ROWS) {
        let end = rows.end.min(first + T::SUM_ROWS);
        let mut column = 0;
        loop {
            // The last columns, fewer than a vector, are a block of their own.
            let columns = column..if column < whole { whole.min(column + block_k) } else { k };
            column = columns.end;
            let place = Place { k, m, columns: columns.clone(), stride: rows.len() };
            for row in (first..end).step_by(T::BLOCK_ROWS) {
                let n_rows = (end - row).min(T::BLOCK_ROWS);
                let (next_row, next_column) = match (row + n_rows, column) {
                    (next_row, _) if next_row < end => (next_row, columns.start),
                    (_, column) if column < k => (first, column),
                    (next_row, _) => (next_row, 0),
                };
                let start = w.data().as_ptr().wrapping_add(next_row * bytes(k) + bytes(next_column));
                let used = bytes((k - next_column).min(block_k));
                let ahead = Ahead::new(start, bytes(k), used, (w.n() - next_row).min(T::BLOCK_ROWS));
                let y = &mut y[row - rows.start..];
                let sums = if sums.is_empty() { &mut [] } else { &mut sums[(row - first) * m_packed..] };
                if in_place && column <= whole {
                    let start = w.row(row)[bytes(columns.start)..].as_ptr();
                    let block = Block { start, row_bytes: bytes(k), n_rows };
                    // SAFETY: every row has the columns `place.columns`, whole vectors.
                    unsafe { multiply::<S, T>(block, &place, x, sums, ahead, y) };
                } else {
                    let row_len = columns.len().div_ceil(LANES);
                    for (r, out) in weights.chunks_exact_mut(row_len).take(n_rows).enumerate() {
                        to_f32::<S>(w, row + r, columns.clone(), out);
                    }
                    let row_bytes = row_len * size_of::<Lanes>();
                    let block = Block { start: weights.as_ptr().cast(), row_bytes, n_rows };
                    // SAFETY: the rows were just written, padded to whole vectors.
                    unsafe { multiply::<F32, T>(block, &place, x, sums, ahead, y) };
                }
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
        out[0] = [0.0; LANES];
        ty.dequantize(&row[columns.start * ty.block_bytes()..], &mut out[0][..columns.len()]);
    } else {
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the features are enabled here, and these eight of the columns lie in the row.
            store(out, unsafe { S::load(row.as_ptr(), columns.start / LANES + i) });
        }
    }
}

/// The weights that come next. They are asked for a few cache lines at a time while a block is multiplied: 96 at once, once a token
/// tile, made everything else wait.
pub struct Ahead {
    next: *const u8,
    row_bytes: usize,
    lines_per_row: usize,
    /// Lines left in this row and all others.
    in_row: usize,
    left: usize,
}

impl Ahead {
    /// The first `used` bytes of `n_rows` rows, which lie `row_bytes` apart from `start` on.
    pub fn new(start: *const u8, row_bytes: usize, used: usize, n_rows: usize) -> Self {
        let lines_per_row = used.div_ceil(64);
        Self { next: start, row_bytes, lines_per_row, in_row: lines_per_row, left: lines_per_row * n_rows }
    }

    /// Lines left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Asks for the next `n` lines, if there are so many.
    #[inline]
    pub fn ask(&mut self, n: usize) {
        for _ in 0..n.min(self.left) {
            prefetch::<_MM_HINT_T1>(self.next);
            self.next = self.next.wrapping_add(64);
            self.in_row -= 1;
            self.left -= 1;
            if self.in_row == 0 {
                self.in_row = self.lines_per_row;
                self.next = self.next.wrapping_add(self.row_bytes).wrapping_sub(64 * self.lines_per_row);
            }
        }
    }
}

/// A block of weights, or some rows of it.
#[derive(Clone, Copy)]
pub struct Block {
    start: *const u8,
    /// From row to row.
    row_bytes: usize,
    pub n_rows: usize,
}

impl Block {
    /// Where its first `R` rows start.
    pub fn rows<const R: usize>(&self) -> [*const u8; R] {
        std::array::from_fn(|r| self.start.wrapping_add(r * self.row_bytes))
    }

    /// Rows `first .. first + n_rows`, from byte `offset` on.
    fn part(&self, first: usize, n_rows: usize, offset: usize) -> Self {
        Self { start: self.start.wrapping_add(first * self.row_bytes + offset), n_rows, ..*self }
    }
}

/// What a block is multiplied with, and where sums go.
struct Place {
    /// Values of a token.
    k: usize,
    /// Tokens.
    m: usize,
    /// The columns of the block.
    columns: Range<usize>,
    /// Outputs from token to token.
    stride: usize,
}

/// Adds a block times its columns of all tokens to `sums`, which after the last columns become outputs. `x` holds all columns as
/// [`fill`] lays them out.
///
/// # Safety
/// The CPU has what the tile needs, and each row of the block holds a vector of weights for every eight of its columns.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<S: Source, T: Tile>(
    block: Block,
    place: &Place,
    x: &[Lanes],
    sums: &mut [Lanes],
    mut ahead: Ahead,
    y: &mut [f32],
) {
    let row_len = place.k.div_ceil(LANES);
    let n_tiles = block.n_rows.div_ceil(T::ROWS);
    let n_turns = n_tiles * place.columns.len().div_ceil(T::TAKE) * place.m.div_ceil(T::TOKENS);
    let lines_per_turn = ahead.left.div_ceil(n_turns.max(1));
    for token in (0..place.m).step_by(T::TOKENS) {
        let n_tokens = (place.m - token).min(T::TOKENS);
        let n_packed = n_tokens.next_multiple_of(T::PACKED);
        let (x, y) = (&x[token * row_len..], &mut y[token * place.stride..]);
        for start in place.columns.clone().step_by(T::TAKE) {
            let columns = start..place.columns.end.min(start + T::TAKE);
            let (first, last) = (columns.start == 0, columns.end == place.k);
            let vectors = columns.start / LANES..columns.end.div_ceil(LANES);
            let offset = (columns.start - place.columns.start) / S::INFO.ty.block_len() * S::INFO.ty.block_bytes();
            // What comes next is asked for a few lines at a time, like the weights.
            let (x, next_x) =
                (&x[vectors.start * n_packed..vectors.end * n_packed], x[vectors.end * n_packed..].as_ptr());
            let lines_per_tile = (x.len() / 2).div_ceil(n_tiles);
            for i in 0..n_tiles {
                ahead.ask(lines_per_turn);
                if T::ASKS_FOR_INPUT {
                    for line in i * lines_per_tile..(i + 1) * lines_per_tile {
                        prefetch::<_MM_HINT_T1>(next_x.wrapping_add(2 * line).cast());
                    }
                }
                let (mut r, end) = (i * T::ROWS, block.n_rows.min((i + 1) * T::ROWS));
                while r < end {
                    let n_rows = if end - r == T::ROWS { T::ROWS } else { 1 };
                    let sums = match (first, last) {
                        (true, true) => &mut [],
                        _ => &mut sums[token * block.n_rows + r * n_packed..][..n_rows * n_packed],
                    };
                    let out = Out { n_tokens, first, last, sums, y: &mut y[r..], stride: place.stride };
                    // SAFETY: by this function's contract; the rows and tokens exist.
                    unsafe { T::multiply::<S>(block.part(r, n_rows, offset), x, out) };
                    r += n_rows;
                }
            }
        }
    }
}

/// Lays `n_tokens` tokens of `k` values out for a tile: vector by vector, `n_packed` tokens beside each other. What is missing is zeros.
#[target_feature(enable = "avx2")]
fn fill(out: &mut [Lanes], n_packed: usize, x: &[f32], k: usize, n_tokens: usize) {
    /// The number of tokens is a constant, as the loop is a copy and little else.
    #[target_feature(enable = "avx2")]
    fn fill<const N: usize>(out: &mut [Lanes], x: &[f32], k: usize, n_tokens: usize) {
        let out = out.as_chunks_mut::<N>().0;
        for t in 0..N {
            let token = if t < n_tokens { &x[t * k..][..k] } else { &[] };
            let (token, rest) = token.as_chunks();
            let (whole, last) = out.split_at_mut(token.len());
            for (out, x) in whole.iter_mut().zip(token) {
                out[t] = *x;
            }
            for out in last {
                out[t] = [0.0; LANES];
                out[t][..rest.len()].copy_from_slice(rest);
            }
        }
    }
    match n_packed {
        1 => fill::<1>(out, x, k, n_tokens),
        2 => fill::<2>(out, x, k, n_tokens),
        3 => fill::<3>(out, x, k, n_tokens),
        4 => fill::<4>(out, x, k, n_tokens),
        6 => fill::<6>(out, x, k, n_tokens),
        8 => fill::<8>(out, x, k, n_tokens),
        _ => unreachable!("no tile packs {n_packed} tokens"),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn load(values: &Lanes) -> __m256 {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn store(values: &mut Lanes, value: __m256) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), value) };
}

/// [`super::sum_lanes`] of each row, in the same order.
#[inline]
#[target_feature(enable = "avx2")]
pub fn sum_rows<const R: usize>(rows: [__m256; R]) -> [f32; R] {
    let mut out = [0.0; R];
    for first in (0..R).step_by(4) {
        let n = 4.min(R - first);
        let mut halves = [_mm_setzero_ps(); 4];
        for r in 0..n {
            let row = rows[first + r];
            halves[r] = _mm_add_ps(_mm256_castps256_ps128(row), _mm256_extractf128_ps::<1>(row));
        }
        let [a, b, c, d] = halves;
        // Lanes 0 and 2, 1 and 3 of each half.
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let sums = _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
        let mut four = [0.0; 4];
        // SAFETY: the array holds the 16 bytes that are written.
        unsafe { _mm_storeu_ps(four.as_mut_ptr(), sums) };
        out[first..first + n].copy_from_slice(&four[..n]);
    }
    out
}
