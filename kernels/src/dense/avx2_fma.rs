//! Every type on AVX2 + FMA + F16C: weights become f32 in registers, activations stay f32.
//!
//! Up to [`FUSED_TOKENS`] tokens, weights go from memory through a conversion straight into the multiply-adds, four rows at a
//! time: one pass over the rows at memory speed. From there on [`blocked`] uses each block of weights for all tokens. Both paths
//! keep eight running sums per output in the same order (see [`LANES`]), so they give the same bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2_tile::Avx2Tile;
use super::blocked::{Lanes, blocked, load, prepare, store};
use super::method::{Method, info};
use super::{Activations, DenseInfo, DenseMatrix, DenseType, FUSED_TOKENS, LANES, sum_lanes};
use crate::arch::x86_64::prefetch;
use crate::bytes::AlignedBytes;
use crate::isa::Avx2;
use crate::team::Team;

/// A storage type whose weights can be loaded eight at a time.
pub trait Source: Method {
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
            type Proof = Avx2;
            const INFO: DenseInfo = info::<Avx2>($name, DenseType::$ty, Activations::F32);

            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
                if m > FUSED_TOKENS {
                    prepare::<Avx2Tile>(team, x, m, k, out);
                }
            }

            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn multiply(w: &DenseMatrix, x: &[f32], tiles: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
                match m {
                    0..=FUSED_TOKENS => fused::<Self>(w, x, m, rows, y),
                    _ => blocked::<Self, Avx2Tile>(w, tiles, m, rows, y),
                }
            }

            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn multiply_rows(w: &DenseMatrix, x: &[f32], rows: &[u32], y: &mut [f32]) {
                scattered::<Self>(w, x, rows, y);
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

/// Rows that the fused path reads side by side. They stay in the L1 cache while weights are converted again for every pair of tokens:
/// three tokens at a time were slower (the conversion needs registers too), and so was the blocked path at 4 and 8.
pub const FUSED_ROWS: usize = 4;

/// Asks for what `R` streams that are read side by side will need `offset` bytes from their starts, at `rows`: from memory into the L2
/// cache 8 KB ahead, all streams together, and from there into the L1 cache 4 KB ahead, to the end of a row and into its next. On an
/// Emerald Rapids core of 17.1 GB/s, four streams of F16 then read 17.3, eight of Q8_0 16.6 and of Q4_0 16.4; with one request
/// 1 KB ahead 16.1, 16.0 and 15.5, without any 12. Twice as far, or many lines at once, was slower for eight streams.
#[inline]
pub fn ask_ahead<const R: usize>(rows: [*const u8; R], offset: usize) {
    for row in rows {
        prefetch::<_MM_HINT_T0>(row.wrapping_add(offset + 4096 / R));
        prefetch::<_MM_HINT_T1>(row.wrapping_add(offset + 8192 / R));
    }
}

/// The first row of each tile of the fused path, and the rows from there to its next; 0 for one row alone, of the last that no tile
/// has. The rows of a tile lie a quarter of the range apart, so each worker reads four long streams: one alone, or four that are
/// neighbours, stop at 17 GB/s on Zen 3 where four streams read 26.
pub fn fused_tiles(n_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let spacing = n_rows / FUSED_ROWS;
    (0..spacing).map(move |r| (r, spacing)).chain((spacing * FUSED_ROWS..n_rows).map(|r| (r, 0)))
}

/// [`super::DenseKernel::compute`] for up to [`FUSED_TOKENS`] tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn fused<S: Source>(w: &DenseMatrix, x: &[f32], m: usize, rows: Range<usize>, y: &mut [f32]) {
    let (k, n_rows) = (w.k(), rows.len());
    for (r, spacing) in fused_tiles(n_rows) {
        for token in (0..m).step_by(2) {
            let (x, y) = (&x[token * k..], &mut y[token * n_rows + r..]);
            match (spacing, m - token) {
                (0, 1) => fused_tile::<S, 1, 1>(w, x, rows.start + r, 0, n_rows, y),
                (0, _) => fused_tile::<S, 1, 2>(w, x, rows.start + r, 0, n_rows, y),
                (_, 1) => fused_tile::<S, FUSED_ROWS, 1>(w, x, rows.start + r, spacing, n_rows, y),
                (_, _) => fused_tile::<S, FUSED_ROWS, 2>(w, x, rows.start + r, spacing, n_rows, y),
            }
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
    let rows = std::array::from_fn(|r| first + r * spacing);
    let products = tile::<S, R, T>(w, x, rows, |rows, i| ask_ahead_of::<S, R>(rows, i));
    for r in 0..R {
        for t in 0..T {
            y[t * stride + r * spacing] = products[r][t];
        }
    }
}

/// Rows that lie anywhere, [`FUSED_ROWS`] at a time, while the next ones are asked for. One at a time, with one sum that every product
/// waits for, and memory asked for behind the row, took 0.9 µs for 5 KB on Emerald Rapids.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn scattered<S: Source>(w: &DenseMatrix, x: &[f32], rows: &[u32], y: &mut [f32]) {
    let (tiles, rest) = rows.as_chunks::<FUSED_ROWS>();
    let (y, y_rest) = y.as_chunks_mut::<FUSED_ROWS>();
    for (i, (tile_rows, y)) in tiles.iter().zip(y).enumerate() {
        let next: [_; FUSED_ROWS] = std::array::from_fn(|r| {
            w.row(*rows.get((i + 1) * FUSED_ROWS + r).unwrap_or(&tile_rows[r]) as usize).as_ptr()
        });
        let ask = |_: [*const u8; FUSED_ROWS], i: usize| {
            for next in next {
                for line in (0..bytes_of::<S>(4 * LANES)).step_by(64) {
                    prefetch::<_MM_HINT_T0>(next.wrapping_add(bytes_of::<S>(LANES * i) + line));
                }
            }
        };
        *y = tile::<S, FUSED_ROWS, 1>(w, x, tile_rows.map(|row| row as usize), ask).map(|[y]| y);
    }
    for (&row, y) in rest.iter().zip(y_rest) {
        [[*y]] = tile::<S, 1, 1>(w, x, [row as usize], |_, _| ());
    }
}

/// The products of `R` rows and `T` tokens over all of `k`. `ask` is called with the rows' starts before vectors `i .. i + 4`, to ask for
/// what comes later.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<S: Source, const R: usize, const T: usize>(
    w: &DenseMatrix,
    x: &[f32],
    rows: [usize; R],
    ask: impl Fn([*const u8; R], usize),
) -> [[f32; T]; R] {
    let k = w.k();
    let starts = rows.map(|row| w.row(row).as_ptr());
    let mut tokens: [&[f32]; T] = [&[]; T];
    for (t, token) in tokens.iter_mut().enumerate() {
        *token = &x[t * k..][..k];
    }
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    let whole = k / LANES;
    // Four vectors a turn, so that a block of 32 converts its scale once.
    for i in (0..whole / 4 * 4).step_by(4) {
        ask(starts, i);
        for j in i..i + 4 {
            // SAFETY: the features are enabled here, and rows and tokens have `k >= 8 j + 8` values.
            unsafe { add::<S, R, T>(starts, tokens, j, &mut sums) };
        }
    }
    for i in whole / 4 * 4..whole {
        // SAFETY: as above.
        unsafe { add::<S, R, T>(starts, tokens, i, &mut sums) };
    }
    let rest = k / LANES * LANES;
    let mut products = [[0.0; T]; R];
    for r in 0..R {
        for t in 0..T {
            let mut sum = sums[r][t];
            if rest < k {
                let mut x = [0.0; LANES];
                x[..k - rest].copy_from_slice(&tokens[t][rest..]);
                sum = _mm256_fmadd_ps(load(&rest_of(w, rows[r])), load(&x), sum);
            }
            products[r][t] = reduce(sum);
        }
    }
    products
}

/// Bytes of so many weights, whole blocks.
#[inline]
fn bytes_of<S: Source>(weights: usize) -> usize {
    weights / S::INFO.ty.block_len() * S::INFO.ty.block_bytes()
}

/// [`ask_ahead`] of vectors `i .. i + 4`, a block of 32.
#[inline]
pub fn ask_ahead_of<S: Source, const R: usize>(rows: [*const u8; R], i: usize) {
    for line in (0..bytes_of::<S>(4 * LANES)).step_by(64) {
        ask_ahead(rows, bytes_of::<S>(LANES * i) + line);
    }
}

/// Adds the products of vector `i`.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C, and rows and tokens have at least `8 i + 8` values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add<S: Source, const R: usize, const T: usize>(
    rows: [*const u8; R],
    tokens: [&[f32]; T],
    i: usize,
    sums: &mut [[__m256; T]; R],
) {
    let mut x = [_mm256_setzero_ps(); T];
    for t in 0..T {
        // SAFETY: by the contract.
        x[t] = unsafe { _mm256_loadu_ps(tokens[t].as_ptr().add(LANES * i)) };
    }
    for r in 0..R {
        // SAFETY: by the contract.
        let w = unsafe { S::load(rows[r], i) };
        for t in 0..T {
            sums[r][t] = _mm256_fmadd_ps(w, x[t], sums[r][t]);
        }
    }
}

/// The last weights of a row, fewer than eight, padded with zeros.
pub fn rest_of(w: &DenseMatrix, row: usize) -> Lanes {
    let rest = w.k() / LANES * LANES;
    let mut values = [0.0; LANES];
    w.ty().dequantize(&w.row(row)[rest * w.ty().block_bytes()..], &mut values[..w.k() - rest]);
    values
}

#[target_feature(enable = "avx2")]
fn reduce(sum: __m256) -> f32 {
    let mut lanes = [0.0; LANES];
    store(&mut lanes, sum);
    sum_lanes(lanes)
}
