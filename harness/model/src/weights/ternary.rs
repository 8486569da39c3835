//! From the packed ternary encodings of weight files to trits. One function per encoding; each takes exactly the bytes of
//! one `n x k` matrix and gives `n * k` values in row-major order. Code 3 comes out as 2, which
//! [`TernaryMatrix::new`](ternbench_kernels::TernaryMatrix::new) refuses with its place.
//!
//! Sources: `quantize_i2_s` of microsoft/BitNet (`src/ggml-bitnet-mad.cpp`) for I2_S, `dequantize_row_tq1_0` and
//! `dequantize_row_tq2_0` of llama.cpp (`ggml/src/ggml-quants.c`) for the block types, `dequantize_row_iq1_bn` and
//! `dequantize_row_iq2_bn` of ik_llama.cpp (`ggml/src/iqk/iqk_quantize.cpp`) for its own, `unpack_weights` of transformers
//! (`integrations/bitnet.py`) for the uint8 checkpoints.

use half::f16;
use ternbench_kernels::trit::TritError;

use crate::weights::I2sLayout;

/// Bytes after the codes of an I2_S tensor: the f32 scale, and padding or copies of it.
pub const I2S_TAIL: usize = 32;

/// Weights per TQ1_0 and TQ2_0 block.
pub const TQ_BLOCK: usize = 256;
/// Bytes per TQ1_0 block: 48 of five trits, 4 of four trits, f16 scale.
pub const TQ1_0_BYTES: usize = 54;
/// Bytes per TQ2_0 block: 64 of four codes, f16 scale.
pub const TQ2_0_BYTES: usize = 66;

/// Weights per IQ1_BN and IQ2_BN block.
pub const BN_BLOCK: usize = 64;
/// Bytes per IQ1_BN block: 12 of five trits, 1 of four.
pub const IQ1_BN_BYTES: usize = 13;
/// Bytes per IQ2_BN block: four codes each.
pub const IQ2_BN_BYTES: usize = 16;

fn code(byte: u8, shift: u32) -> i8 {
    ((byte >> shift) & 3) as i8 - 1
}

/// Whether an `n x k` matrix can be stored as I2_S in this layout at all.
pub fn i2s_shape_error(n: usize, k: usize, layout: I2sLayout) -> Option<String> {
    let (what, value, unit) = match layout {
        I2sLayout::X86 => ("weights", n.checked_mul(k)?, 128),
        I2sLayout::Arm => ("weights", n.checked_mul(k)?, 64),
        I2sLayout::X86Interleaved => ("rows", n, 4),
    };
    (!value.is_multiple_of(unit))
        .then(|| format!("{value} {what} are no multiple of {unit}, which this I2_S layout needs (--i2s-layout)"))
}

/// I2_S codes without their tail: `n * k / 4` bytes, the first weight of a group in the two highest bits. The layouts of x86
/// (blocks of 128 weights in 32 bytes) and ARM (64 in 16) run on over row ends; the interleaved one packs four rows.
pub fn i2s(bytes: &[u8], k: usize, layout: I2sLayout) -> Vec<i8> {
    let mut trits = vec![0; bytes.len() * 4];
    // A block of `unit` bytes holds four runs of `unit` weights.
    let unit = match layout {
        I2sLayout::X86 => 32,
        I2sLayout::X86Interleaved => k.max(1),
        I2sLayout::Arm => 16,
    };
    for (block, out) in bytes.chunks_exact(unit).zip(trits.chunks_exact_mut(4 * unit)) {
        for (run, shift) in out.chunks_exact_mut(unit).zip([6, 4, 2, 0]) {
            run.iter_mut().zip(block).for_each(|(trit, &byte)| *trit = code(byte, shift));
        }
    }
    trits
}

/// The uint8 checkpoints of Hugging Face: `[n / 4, k]` bytes, bits `2i+1..2i` of row `r` belong to row `r + i * n / 4`.
pub fn hf_packed(bytes: &[u8]) -> Vec<i8> {
    [0, 2, 4, 6].into_iter().flat_map(|shift| bytes.iter().map(move |&byte| code(byte, shift))).collect()
}

/// TQ2_0: two runs of 32 bytes, each with four runs of 32 weights from the lowest bits up.
pub fn tq2_0(bytes: &[u8]) -> Result<(Vec<i8>, f32), String> {
    blocks(bytes, TQ2_0_BYTES, |codes, out| {
        for (codes, out) in codes.chunks_exact(32).zip(out.chunks_exact_mut(128)) {
            for (run, shift) in out.chunks_exact_mut(32).zip([0, 2, 4, 6]) {
                run.iter_mut().zip(codes).for_each(|(trit, &byte)| *trit = code(byte, shift));
            }
        }
    })
}

/// TQ1_0: bytes 0..32 hold five runs of 32 trits, 32..48 five runs of 16, 48..52 four runs of 4. A byte is
/// `ceil(value * 256 / 243)`; its digits come out from the most significant down, by multiplying by 3 and keeping the carry.
pub fn tq1_0(bytes: &[u8]) -> Result<(Vec<i8>, f32), String> {
    blocks(bytes, TQ1_0_BYTES, |codes, out| {
        let mut at = 0;
        for (bytes, digits) in [(&codes[..32], 5), (&codes[32..48], 5), (&codes[48..52], 4)] {
            for digit in 0..digits {
                let power = 3u8.pow(digit);
                for &byte in bytes {
                    let rest = byte.wrapping_mul(power);
                    out[at] = ((u16::from(rest) * 3) >> 8) as i8 - 1;
                    at += 1;
                }
            }
        }
    })
}

/// IQ2_BN: rows of an f32 scale and blocks of 16 bytes with four runs of 16 weights from the lowest bits up.
pub fn iq2_bn(bytes: &[u8], k: usize) -> Result<(Vec<i8>, f32), String> {
    let scale = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    scaled_rows(bytes, k, (4, scale), IQ2_BN_BYTES, |codes, out| {
        for (run, shift) in out.chunks_exact_mut(16).zip([0, 2, 4, 6]) {
            run.iter_mut().zip(codes).for_each(|(trit, &byte)| *trit = code(byte, shift));
        }
    })
}

/// IQ1_BN: rows of an f16 scale and blocks of 13 bytes. Every 16 weights are five from each of three bytes and one from the
/// last byte of the block; a byte is `ceil(value * 256 / 243)` as in TQ1_0, its digits come out from the lowest up.
pub fn iq1_bn(bytes: &[u8], k: usize) -> Result<(Vec<i8>, f32), String> {
    let scale = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let digit = |byte: u8, place: usize| {
        let rest = byte.wrapping_mul([81, 27, 9, 3, 1][place]);
        ((u16::from(rest) * 3) >> 8) as i8 - 1
    };
    scaled_rows(bytes, k, (2, scale), IQ1_BN_BYTES, |codes, out| {
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            for (i, out) in out[..15].iter_mut().enumerate() {
                *out = digit(codes[group * 3 + i / 5], i % 5);
            }
            out[15] = digit(codes[12], group);
        }
    })
}

/// Decodes rows that begin with a scale. All rows must agree on it, except those whose weights are all zero.
fn scaled_rows(
    bytes: &[u8],
    k: usize,
    (scale_bytes, read): (usize, impl Fn(&[u8]) -> f32),
    block_bytes: usize,
    decode: impl Fn(&[u8], &mut [i8]),
) -> Result<(Vec<i8>, f32), String> {
    let row_bytes = scale_bytes + k / BN_BLOCK * block_bytes;
    let mut trits = vec![0; bytes.len() / row_bytes * k];
    let mut scale: Option<f32> = None;
    for (row, (bytes, out)) in bytes.chunks_exact(row_bytes).zip(trits.chunks_exact_mut(k)).enumerate() {
        let (d, codes) = bytes.split_at(scale_bytes);
        for (block, out) in codes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(BN_BLOCK)) {
            decode(block, out);
        }
        let d = read(d);
        if !d.is_finite() {
            return Err(format!("the scale of row {row} is {d}, not a finite number"));
        }
        if out.iter().any(|&trit| trit != 0) && *scale.get_or_insert(d) != d {
            return Err(format!("row {row} has scale {d}, earlier rows another: not a ternary tensor with one scale"));
        }
    }
    Ok((trits, scale.unwrap_or(0.0)))
}

/// Decodes blocks that end in an f16 scale. A ternary tensor has one scale: all blocks must agree on it, except those whose
/// weights are all zero (their writers store 0).
fn blocks(bytes: &[u8], block_bytes: usize, decode: impl Fn(&[u8], &mut [i8])) -> Result<(Vec<i8>, f32), String> {
    let mut trits = vec![0; bytes.len() / block_bytes * TQ_BLOCK];
    let mut scale: Option<f16> = None;
    for (i, (block, out)) in bytes.chunks_exact(block_bytes).zip(trits.chunks_exact_mut(TQ_BLOCK)).enumerate() {
        let (codes, d) = block.split_at(block_bytes - 2);
        decode(codes, out);
        let d = f16::from_le_bytes([d[0], d[1]]);
        if !d.is_finite() {
            return Err(format!("the scale of block {i} is {d}, not a finite number"));
        }
        if out.iter().any(|&trit| trit != 0) {
            let first = *scale.get_or_insert(d);
            if first != d {
                return Err(format!(
                    "block {i} has scale {d}, earlier blocks {first}: not a ternary tensor with one scale (quantised from \
                     weights that are not ternary?)"
                ));
            }
        }
    }
    Ok((trits, scale.map_or(0.0, f16::to_f32)))
}

/// A [`TritError`] in the words of the encodings: the value 2 is code 3.
pub fn explain(error: TritError) -> String {
    match error {
        TritError::Value { row, column, .. } => {
            format!("the code at row {row}, column {column} is 3, which is no trit")
        }
        other => other.to_string(),
    }
}
