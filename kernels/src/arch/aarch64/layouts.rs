//! How the layouts turn into codes, a byte each.

use std::arch::aarch64::*;

use super::codes::{Decode, Step, TILE_ROWS, load, store};
use crate::kernel::PackedMatrix;
use crate::layout::blocks::{self, BLOCK};
use crate::layout::interleaved::{PLANE_BYTES, Shape};
use crate::layout::{b3, i2s, i8, t5, tq1, tq2};
use crate::trit::TernaryMatrix;

/// The planes of tile `tile` of 32 rows, as vectors of 4 rows.
fn planes(shape: Shape, w: &PackedMatrix, row: usize, tile: usize) -> &[Step] {
    let tiles = &w.data[shape.row_tile(w.k, row / TILE_ROWS)];
    let (vectors, _) = tiles[tile * shape.bytes()..][..shape.bytes()].as_chunks();
    vectors.as_chunks().0
}
const _: () = assert!(size_of::<Step>() == PLANE_BYTES);

/// Puts codes of one row, in their order, where the steps have them.
fn place(codes: &[u8], r: usize, steps: &mut [Step]) {
    for (step, codes) in steps.iter_mut().zip(codes.as_chunks::<4>().0) {
        step[r / 4].as_chunks_mut().0[r % 4] = *codes;
    }
}

/// The code of a zero trit.
const ZERO: u8 = 1;

/// Block `block` of each of 32 rows of llama.cpp's layouts, with zero trits for rows that the matrix does not have.
fn place_blocks<const BYTES: usize>(
    w: &PackedMatrix,
    row: usize,
    block: usize,
    steps: &mut [Step],
    decode: impl Fn(&[u8; BYTES], &mut [u8; BLOCK]),
) {
    for r in 0..TILE_ROWS {
        let mut codes = [ZERO; BLOCK];
        if row + r < w.n {
            decode(&blocks::row::<BYTES>(w, row + r)[block], &mut codes);
        }
        place(&codes, r, steps);
    }
}

/// The first base-3 digit of every fraction, and the fractions that are left (see [`crate::layout::b3`]).
#[inline]
#[target_feature(enable = "neon")]
fn first_digit(q: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    // A comparison gives -1 where it holds.
    let minus_digit = vaddq_u8(vcgtq_u8(q, vdupq_n_u8(85)), vcgtq_u8(q, vdupq_n_u8(170)));
    (vsubq_u8(vdupq_n_u8(0), minus_digit), vmulq_u8(q, vdupq_n_u8(3)))
}

/// A byte per weight.
pub struct I8;

impl Decode for I8 {
    const NAME: &'static str = "i8";
    const BITS_PER_WEIGHT: f32 = 8.0;
    const SOURCE: &'static str = "every int8 GEMM";
    const COLUMNS: usize = 16;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        i8::pack(w)
    }

    #[target_feature(enable = "neon")]
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]) {
        let first = tile * Self::COLUMNS;
        for r in 0..TILE_ROWS {
            let mut codes = [ZERO; 16];
            if row + r < w.n {
                let trits = &w.data[(row + r) * w.k..][..w.k][first..];
                if let Some(trits) = trits.first_chunk() {
                    store(&mut codes, vaddq_u8(load(trits), vdupq_n_u8(ZERO)));
                } else {
                    codes.iter_mut().zip(trits).for_each(|(code, trit)| *code = trit.wrapping_add(ZERO));
                }
            }
            place(&codes, r, steps);
        }
    }
}

/// Bit pairs: shifts and ANDs.
pub struct I2s;

impl Decode for I2s {
    const NAME: &'static str = "i2s";
    const BITS_PER_WEIGHT: f32 = 2.0;
    const SOURCE: &'static str = "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved";
    const COLUMNS: usize = i2s::SHAPE.columns;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    #[target_feature(enable = "neon")]
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]) {
        let ([plane], [a, b, c, d]) = (planes(i2s::SHAPE, w, row, tile), steps) else { return };
        let mask = vdupq_n_u8(3);
        for (v, bits) in plane.iter().enumerate() {
            let bits = load(bits);
            store(&mut a[v], vandq_u8(bits, mask));
            store(&mut b[v], vandq_u8(vshrq_n_u8::<2>(bits), mask));
            store(&mut c[v], vandq_u8(vshrq_n_u8::<4>(bits), mask));
            store(&mut d[v], vshrq_n_u8::<6>(bits));
        }
    }
}

/// Base-3 digits: comparisons and multiplications by 3.
pub struct B3;

impl Decode for B3 {
    const NAME: &'static str = "b3";
    const BITS_PER_WEIGHT: f32 = 1.6;
    const SOURCE: &'static str = "base-3 packing as in llama.cpp TQ1_0 (PR 8151) and lut_mm, rows interleaved";
    const COLUMNS: usize = b3::SHAPE.columns;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        b3::pack(w)
    }

    #[target_feature(enable = "neon")]
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]) {
        for plane in planes(b3::SHAPE, w, row, tile) {
            for (v, bytes) in plane.iter().enumerate() {
                let mut q = load(bytes);
                for step in steps.iter_mut() {
                    let (digit, rest) = first_digit(q);
                    store(&mut step[v], digit);
                    q = rest;
                }
            }
        }
    }
}

/// Three trits in five bits: `tbl` looks 32 entries up.
pub struct T5;

/// Digit `d` of every code.
static T5_DIGITS: [[[u8; 16]; 2]; 3] = {
    let mut digits = [[[ZERO; 16]; 2]; 3];
    let mut i = 0;
    while i < 27 * 3 {
        digits[i % 3][i / 3 / 16][i / 3 % 16] = (t5::trits_of((i / 3) as u8)[i % 3] + 1) as u8;
        i += 1;
    }
    digits
};

impl Decode for T5 {
    const NAME: &'static str = "t5";
    const BITS_PER_WEIGHT: f32 = 5.0 / 3.0;
    const SOURCE: &'static str = "own";
    const COLUMNS: usize = t5::SHAPE.columns;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        t5::pack(w)
    }

    #[target_feature(enable = "neon")]
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]) {
        let [low @ .., fifth] = planes(t5::SHAPE, w, row, tile) else { return };
        for (v, fifth) in fifth.iter().enumerate() {
            // The fifth bit of the next code stands at bit 0.
            let mut fifth = load(fifth);
            for (low, steps) in low.iter().zip(steps.as_chunks_mut::<6>().0) {
                let low = load(&low[v]);
                let nibbles = [vandq_u8(low, vdupq_n_u8(15)), vshrq_n_u8::<4>(low)];
                for (nibble, steps) in nibbles.into_iter().zip(steps.as_chunks_mut::<3>().0) {
                    let code = vorrq_u8(nibble, vshlq_n_u8::<4>(vandq_u8(fifth, vdupq_n_u8(1))));
                    fifth = vshrq_n_u8::<1>(fifth);
                    for (table, step) in T5_DIGITS.iter().zip(steps) {
                        let table = uint8x16x2_t(load(&table[0]), load(&table[1]));
                        store(&mut step[v], vqtbl2q_u8(table, code));
                    }
                }
            }
        }
    }
}

/// llama.cpp's base-3 digits.
pub struct Tq1;

impl Decode for Tq1 {
    const NAME: &'static str = "tq1";
    const BITS_PER_WEIGHT: f32 = 1.6875;
    const SOURCE: &'static str = "llama.cpp TQ1_0 (PR 8151)";
    const COLUMNS: usize = BLOCK;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        tq1::pack(w)
    }

    #[target_feature(enable = "neon")]
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]) {
        place_blocks::<{ tq1::BYTES }>(w, row, tile, steps, |block, codes| tq1_block(block, codes));
    }
}

#[target_feature(enable = "neon")]
fn tq1_block(block: &[u8; tq1::BYTES], codes: &mut [u8; BLOCK]) {
    let (codes, last_codes) = codes.split_at_mut(240);
    let codes = codes.as_chunks_mut().0;
    // Three vectors of five digits, which go to every second vector of the first 160 columns, and to the next 80 in order.
    for (bytes, [first, spacing]) in block.as_chunks().0.iter().zip([[0, 2], [1, 2], [10, 1]]) {
        let mut q = load(bytes);
        for d in 0..b3::DIGITS {
            let (digit, rest) = first_digit(q);
            store(&mut codes[first + spacing * d], digit);
            q = rest;
        }
    }
    // Four bytes of four digits.
    for (i, &byte) in block[48..52].iter().enumerate() {
        for (d, trit) in b3::DECODED[usize::from(byte)].iter().take(4).enumerate() {
            last_codes[4 * d + i] = (trit + 1) as u8;
        }
    }
}

/// llama.cpp's bit pairs.
pub struct Tq2;

impl Decode for Tq2 {
    const NAME: &'static str = "tq2";
    const BITS_PER_WEIGHT: f32 = 2.0625;
    const SOURCE: &'static str = "llama.cpp TQ2_0 (PR 8151)";
    const COLUMNS: usize = BLOCK;

    fn pack(w: &TernaryMatrix) -> PackedMatrix {
        tq2::pack(w)
    }

    #[target_feature(enable = "neon")]
    unsafe fn unpack(w: &PackedMatrix, row: usize, tile: usize, steps: &mut [Step]) {
        place_blocks::<{ tq2::BYTES }>(w, row, tile, steps, |block, codes| tq2_block(block, codes));
    }
}

#[target_feature(enable = "neon")]
fn tq2_block(block: &[u8; tq2::BYTES], codes: &mut [u8; BLOCK]) {
    let codes = codes.as_chunks_mut().0;
    for (i, bits) in block.as_chunks().0.iter().enumerate() {
        let mut bits = load(bits);
        for p in 0..4 {
            store(&mut codes[i / 2 * 8 + 2 * p + i % 2], vandq_u8(bits, vdupq_n_u8(3)));
            bits = vshrq_n_u8::<2>(bits);
        }
    }
}
