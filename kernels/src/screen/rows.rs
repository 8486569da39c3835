//! The quantised rows.
//!
//! ```text
//! group of 8 rows   = k / 32 tiles, one after the other, then four f32 per row: scale[8], residual[8], norm[8], byte_residual[8]
//! tile of 8 x 32    = 168 bytes: vectors[5][32], scales[8]        5.25 bits a weight
//! columns 4 q .. 4 q + 4 of the 8 rows are "quad" q: byte 4 row + column % 4 of a vector of 32
//! weight            = scale[row] · tile scale[row] · (code - 16)
//!
//! bits of a byte      7 6 5   4 3 2 1 0
//! vectors[0]          5 5 5   0 0 0 0 0       the quad whose code they are part of, its highest bits on the left; of
//! vectors[1]          6 6 6   1 1 1 1 1       quad 7 vectors[3] has bit 1, vectors[2] bit 0
//! vectors[2]          5 5 7   2 2 2 2 2
//! vectors[3]          6 6 7   3 3 3 3 3
//! vectors[4]          7 7 7   4 4 4 4 4
//! ```
//!
//! Five of eight codes are unpacked by one AND.
//! Rows as lanes make horizontal sums unnecessary, and the scale of a block is a whole number, so that it is applied by the
//! multiply-add that widens sums to 32 bits. Measured on rows and hidden states of real models, 4 bits leave up to half of the
//! rows to rescore and 6 bits save no more than they cost.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::{BLOCK, LARGEST, SHIFT};
use crate::bytes::{AlignedBytes, Bytes};
use crate::dense::DenseMatrix;

/// Rows of a group.
pub const GROUP_ROWS: usize = 8;
/// Bytes of a tile.
pub const TILE_BYTES: usize = CODE_BYTES + GROUP_ROWS;
/// Bytes of its codes; scales are behind.
pub const CODE_BYTES: usize = 5 * 32;
/// Floats behind the tiles of a group.
const FACTORS: usize = 4 * GROUP_ROWS;

/// Quantised rows.
pub struct Rows {
    n: usize,
    n_tiles: usize,
    data: Bytes,
}

/// The floats of a group.
pub struct Factors {
    /// `ŵ = scale · block scale · code`.
    pub scale: [f32; GROUP_ROWS],
    /// At least `|w - ŵ|`.
    pub residual: [f32; GROUP_ROWS],
    /// At least `|w|`, `|ŵ|` and `|w̃|`.
    pub norm: [f32; GROUP_ROWS],
    /// At least `|w - w̃|`, see [`byte`].
    pub byte_residual: [f32; GROUP_ROWS],
}

#[cfg(any(test, target_arch = "x86_64"))]
impl Factors {
    /// Those of rows as bytes: `w̃ = scale · byte`.
    #[inline(always)]
    pub fn of_bytes(self) -> Self {
        Self { scale: self.scale.map(|scale| scale * BYTE), residual: self.byte_residual, ..self }
    }
}

impl Rows {
    /// Quantises every row of `w`; `None` where one has a weight that is not finite or is too large.
    pub fn quantize(w: &DenseMatrix) -> Option<Self> {
        let n_tiles = w.k().div_ceil(BLOCK);
        let mut data = AlignedBytes::zeroed(Self::bytes_for(w.n(), w.k()));
        let legal = AtomicBool::new(true);
        let quantize_row = fastest();
        let group_bytes = group_bytes_for(n_tiles);
        data.par_chunks_exact_mut(group_bytes).enumerate().for_each_init(
            || vec![0f32; w.k().next_multiple_of(BLOCK)],
            |row, (group, bytes)| {
                let (tiles, factors) = bytes.split_at_mut(n_tiles * TILE_BYTES);
                let rows = group * GROUP_ROWS..((group + 1) * GROUP_ROWS).min(w.n());
                for (lane, n) in rows.enumerate() {
                    w.dequantize_row(n, &mut row[..w.k()]);
                    let Some(values) = quantize_row(row, lane, tiles) else {
                        legal.store(false, Ordering::Relaxed);
                        return;
                    };
                    for (i, value) in values.into_iter().enumerate() {
                        factors[4 * (i * GROUP_ROWS + lane)..][..4].copy_from_slice(&value.to_ne_bytes());
                    }
                }
            },
        );
        legal.into_inner().then(|| Self { n: w.n(), n_tiles, data: data.into() })
    }

    /// Takes rows of `w` that were quantised before; `None` where the bytes are not as many as they should be.
    pub fn from_packed(w: &DenseMatrix, data: Bytes) -> Option<Self> {
        let fits = data.len() == Self::bytes_for(w.n(), w.k());
        fits.then(|| Self { n: w.n(), n_tiles: w.k().div_ceil(BLOCK), data })
    }

    /// The quantised rows.
    pub fn packed(&self) -> &Bytes {
        &self.data
    }

    /// Bytes of `n` rows of `k` columns.
    pub fn bytes_for(n: usize, k: usize) -> usize {
        n.div_ceil(GROUP_ROWS) * group_bytes_for(k.div_ceil(BLOCK))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Groups of 8 rows.
    pub fn n_groups(&self) -> usize {
        self.n.div_ceil(GROUP_ROWS)
    }

    /// Bytes from one group to the next.
    pub fn group_bytes(&self) -> usize {
        group_bytes_for(self.n_tiles)
    }

    /// The tiles of a group, and its floats. Inlined where more CPU features are enabled.
    #[inline(always)]
    pub fn group(&self, group: usize) -> (&[[u8; TILE_BYTES]], Factors) {
        let len = self.group_bytes();
        let (tiles, factors) = self.data[group * len..][..len].split_at(self.n_tiles * TILE_BYTES);
        let [scale, residual, norm, byte_residual] = bytemuck::pod_read_unaligned(factors);
        (tiles.as_chunks().0, Factors { scale, residual, norm, byte_residual })
    }
}

/// Bytes of a group of so many tiles.
fn group_bytes_for(n_tiles: usize) -> usize {
    n_tiles * TILE_BYTES + 4 * FACTORS
}

/// See [`quantize_row`].
pub type QuantizeRow = fn(&[f32], usize, &mut [u8]) -> Option<[f32; 4]>;

fn fastest() -> QuantizeRow {
    #[cfg(target_arch = "x86_64")]
    if let Some(quantize_row) = super::avx2::quantize_row() {
        return quantize_row;
    }
    quantize_row
}

/// Writes one row (padded to whole blocks) into lane `lane` of its group's tiles, and returns its [`Factors`]. Inlined
/// where more CPU features are enabled: what they change is the speed.
#[inline(always)]
pub fn quantize_row(row: &[f32], lane: usize, tiles: &mut [u8]) -> Option<[f32; 4]> {
    /// A block's largest weight becomes 15.5 steps: half a step off like any other, rounded to -16 or cut to 15.
    const STEPS: f32 = 15.5;
    let largest_of = |block: &[f32]| block.iter().fold(0f32, |max, w| max.max(w.abs()));
    let (blocks, _) = row.as_chunks::<BLOCK>();
    let largest = largest_of(row);
    // NaN is never the larger one, but a sum it is in is NaN.
    if !(f64::from(largest) <= LARGEST && row.iter().map(|w| w * 0.0).sum::<f32>() == 0.0) {
        return None;
    }
    let scale = largest / (STEPS * 255.0);
    let per_scale = if scale > 0.0 && (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
    let (mut residual, mut byte_residual) = (0f64, 0f64);
    let (mut norm, mut quantized_norm, mut byte_norm) = (0f64, 0f64, 0f64);
    for (block, tile) in blocks.iter().zip(tiles.as_chunks_mut::<TILE_BYTES>().0) {
        let block_scale = rounded(largest_of(block) * per_scale / STEPS).min(255.0);
        let step = f64::from(scale) * f64::from(block_scale);
        let per_step = if block_scale > 0.0 { per_scale / block_scale } else { 0.0 };
        let mut codes = [0f32; BLOCK];
        let (mut r, mut b, mut a) = ([0f64; 4], [0f64; 4], [0f64; 4]);
        let (mut q, mut p) = ([0f32; 8], [0f32; 8]);
        for (code, w) in codes.iter_mut().zip(block) {
            *code = rounded((w * per_step).clamp(-16.0, 15.0));
        }
        let bytes = codes.map(|code| byte(code as i32, block_scale as i32) as f32);
        let of_fours = block.as_chunks::<4>().0.iter().zip(codes.as_chunks::<4>().0).zip(bytes.as_chunks::<4>().0);
        for ((block, codes), bytes) in of_fours {
            for i in 0..4 {
                // Exact products: 24 by 8 by 5 bits, 24 by 8.
                let rest = f64::from(block[i]) - step * f64::from(codes[i]);
                r[i] += rest * rest;
                let rest = f64::from(block[i]) - f64::from(scale * BYTE) * f64::from(bytes[i]);
                b[i] += rest * rest;
                a[i] += f64::from(block[i]) * f64::from(block[i]);
            }
        }
        for (codes, bytes) in codes.as_chunks::<8>().0.iter().zip(bytes.as_chunks::<8>().0) {
            for i in 0..8 {
                q[i] += codes[i] * codes[i];
                p[i] += bytes[i] * bytes[i];
            }
        }
        residual += r.iter().sum::<f64>();
        byte_residual += b.iter().sum::<f64>();
        norm += a.iter().sum::<f64>();
        quantized_norm += step * step * f64::from(q.iter().sum::<f32>());
        byte_norm += f64::from(scale * BYTE) * f64::from(scale * BYTE) * f64::from(p.iter().sum::<f32>());
        let codes = codes.map(|code| (code as i32 + 16) as u8);
        for (i, word) in pack(codes).into_iter().enumerate() {
            tile[32 * i + 4 * lane..][..4].copy_from_slice(&word.to_le_bytes());
        }
        tile[CODE_BYTES + lane] = block_scale as u8;
    }
    // Room for the roundings of the sums and of the conversion to f32; what is below f32's range becomes its smallest number.
    let up = |square: f64| {
        let least = if square > 0.0 { f32::MIN_POSITIVE } else { 0.0 };
        ((square.sqrt() * (1.0 + 2f64.powi(-20))) as f32).max(least)
    };
    Some([scale, up(residual), up(norm.max(quantized_norm).max(byte_norm)), up(byte_residual)])
}

/// What a unit of [`byte`] is of a row's scale.
pub const BYTE: f32 = 32.0;

/// `block scale · code` (without its 16) in units of [`BYTE`], halves rounded up, as `vpmulhrsw` does: between -127 and 120.
#[inline(always)]
pub fn byte(code: i32, block_scale: i32) -> i32 {
    (code * block_scale + 16) >> 5
}

/// What a row of a tile has in its vectors.
#[inline(always)]
fn pack(codes: [u8; BLOCK]) -> [u32; 5] {
    let bits = |quad: usize, mask: u32| u32::from_le_bytes(codes.as_chunks().0[quad]) & (0x0101_0101 * mask);
    [
        bits(0, 31) | bits(5, 28) << 3,
        bits(1, 31) | bits(6, 28) << 3,
        bits(2, 31) | bits(5, 3) << 6 | bits(7, 1) << 5,
        bits(3, 31) | bits(6, 3) << 6 | bits(7, 2) << 4,
        bits(4, 31) | bits(7, 28) << 3,
    ]
}

/// The code of a byte of a quad.
pub fn code(tile: &[u8; TILE_BYTES], quad: usize, byte: usize) -> u8 {
    let of = |vector: usize| tile[32 * vector + byte];
    match quad {
        5 | 6 => of(quad - 5) >> 3 & 28 | of(quad - 3) >> 6,
        7 => of(4) >> 3 & 28 | of(3) >> 4 & 2 | of(2) >> 5 & 1,
        _ => of(quad) & 31,
    }
}

/// To the nearest integer, for numbers below 2^22: without the instruction `round` is a call.
#[inline(always)]
pub fn rounded(x: f32) -> f32 {
    (x + SHIFT) - SHIFT
}
