//! The register tile of AVX2: three rows x four tokens, which with weights and an activation fill the 16 registers.
//!
//! F16 is converted by the loads of the innermost loop, which cost it nothing on Zen 3 as long as nobody shares the core: then more
//! instructions for as many multiply-adds are more time.

use std::arch::asm;
use std::arch::x86_64::*;

use super::DenseType;
use super::avx2_fma::Source;
use super::blocked::{Block, Lanes, Out, Tile, load, store, sum_rows};

const ROWS: usize = 3;
const TOKENS: usize = 4;

/// The tile.
pub struct Avx2Tile;

impl Tile for Avx2Tile {
    const ROWS: usize = ROWS;
    const TOKENS: usize = TOKENS;
    const PACKED: usize = 1;
    const IN_PLACE: &[DenseType] = &[DenseType::F32, DenseType::F16];
    /// Its activations are then 16 KB of the L1 cache.
    const TAKE: usize = 1024;
    const ROW_BYTES: usize = 4096;
    /// A block is 192 KB, which fits in the L2 cache twice.
    const BLOCK_ROWS: usize = 48;
    const SUM_ROWS: usize = 48;
    const ASKS_FOR_INPUT: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn multiply<S: Source>(rows: Block, x: &[Lanes], out: Out<'_>) {
        // SAFETY: by the contract, which is the same.
        unsafe {
            match (rows.n_rows, out.n_tokens) {
                (ROWS, 1) => tile::<S, ROWS, 1>(rows.rows(), x.as_chunks().0, out),
                (ROWS, 2) => tile::<S, ROWS, 2>(rows.rows(), x.as_chunks().0, out),
                (ROWS, 3) => tile::<S, ROWS, 3>(rows.rows(), x.as_chunks().0, out),
                (ROWS, _) => tile::<S, ROWS, TOKENS>(rows.rows(), x.as_chunks().0, out),
                (_, 1) => tile::<S, 1, 1>(rows.rows(), x.as_chunks().0, out),
                (_, 2) => tile::<S, 1, 2>(rows.rows(), x.as_chunks().0, out),
                (_, 3) => tile::<S, 1, 3>(rows.rows(), x.as_chunks().0, out),
                (_, _) => tile::<S, 1, TOKENS>(rows.rows(), x.as_chunks().0, out),
            }
        }
    }
}

/// `R` rows and `T` tokens.
///
/// # Safety
/// As for [`Tile::multiply`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<S: Source, const R: usize, const T: usize>(rows: [*const u8; R], x: &[[Lanes; T]], out: Out<'_>) {
    // Checked once, not sum by sum: a tile takes some 400 cycles.
    let sums = out.sums.as_chunks_mut::<T>().0.first_chunk_mut::<R>();
    let mut lanes = [[_mm256_setzero_ps(); T]; R];
    if let (false, Some(sums)) = (out.first, &sums) {
        for r in 0..R {
            for t in 0..T {
                lanes[r][t] = load(&sums[r][t]);
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
            let x = load(&x[t]);
            for r in 0..R {
                lanes[r][t] = _mm256_fmadd_ps(w[r], x, lanes[r][t]);
            }
        }
    }
    if out.last {
        for t in 0..T {
            let mut column = [_mm256_setzero_ps(); R];
            for r in 0..R {
                column[r] = lanes[r][t];
            }
            out.y[t * out.stride..][..R].copy_from_slice(&sum_rows(column));
        }
    } else if let Some(sums) = sums {
        for r in 0..R {
            for t in 0..T {
                store(&mut sums[r][t], lanes[r][t]);
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
    if (R, T) != (ROWS, TOKENS) || n == 0 {
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
