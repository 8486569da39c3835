//! Quantised types that no kernel multiplies with: they become f32 when a model is loaded. `ternbench model convert --type f16`
//! repacks such a file once and for all.
//!
//! Source: `dequantize_row_*` of llama.cpp (`ggml/src/ggml-quants.c`); the golden file of `scripts/make-goldens.py` holds what
//! the `gguf` Python package gives for the same bytes.

use half::f16;

use super::types::GgmlType;

/// Turns one block into floats.
type Block = fn(&[u8], &mut [f32]);

/// How blocks of `ty` turn into floats, for the types of this module.
pub fn block(ty: GgmlType) -> Option<Block> {
    Some(match ty.name {
        "Q5_0" => q5_0,
        "Q5_1" => q5_1,
        "Q4_K" => q4_k,
        "Q5_K" => q5_k,
        "Q6_K" => q6_k,
        _ => return None,
    })
}

/// The names of the types of this module.
pub const NAMES: [&str; 5] = ["Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"];

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 32 codes of 5 bits: four in the nibbles of `low` (code `i` and code `i + 16` in byte `i`), the fifth in the bits of `high`.
fn five_bits(high: &[u8], low: &[u8], out: &mut [f32], weight: impl Fn(u8) -> f32) {
    for (i, &nibbles) in low.iter().enumerate() {
        let fifth = |i: usize| (high[i / 8] >> (i % 8) & 1) << 4;
        out[i] = weight(nibbles & 15 | fifth(i));
        out[i + 16] = weight(nibbles >> 4 | fifth(i + 16));
    }
}

fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half(b, 0);
    five_bits(&b[2..6], &b[6..], out, |q| (f32::from(q) - 16.0) * d);
}

fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half(b, 0), half(b, 2));
    five_bits(&b[4..8], &b[8..], out, |q| f32::from(q) * d + m);
}

/// Scale and minimum of the `j`-th run of 32 weights: 6 bits each, eight of both in 12 bytes.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// Eight runs of 32 weights `d·scale·q - min`. Run `2i` is in the low, run `2i + 1` in the high nibbles of the same 32 bytes;
/// the fifth bit of run `j` is bit `j` of `high`, where there is one.
fn k_runs(b: &[u8], high: Option<&[u8]>, low: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half(b, 0), half(b, 2));
    for (j, run) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&b[4..16], j);
        let (scale, min) = (d * scale, d_min * min);
        let bytes = &low[j / 2 * 32..][..32];
        for (i, (out, &byte)) in run.iter_mut().zip(bytes).enumerate() {
            let fifth = high.map_or(0, |high| (high[i] >> j & 1) << 4);
            *out = scale * f32::from(byte >> (j % 2 * 4) & 15 | fifth) - min;
        }
    }
}

fn q4_k(b: &[u8], out: &mut [f32]) {
    k_runs(b, None, &b[16..], out);
}

fn q5_k(b: &[u8], out: &mut [f32]) {
    k_runs(b, Some(&b[16..48]), &b[48..], out);
}

/// Two halves of 128 weights: four runs of 32, each with four low bits in a nibble of `low` and two high bits in `high`. Every
/// 16 weights have an int8 scale.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half(b, 208);
    for (at, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&b[at * 64..][..64], &b[128 + at * 32..][..32], &b[192 + at * 8..][..8]);
        for (run, out) in out.chunks_exact_mut(32).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let nibble = low[run % 2 * 32 + i] >> (run / 2 * 4) & 15;
                let q = (nibble | (high[i] >> (run * 2) & 3) << 4) as i8 - 32;
                *out = d * f32::from(scales[run * 2 + i / 16] as i8) * f32::from(q);
            }
        }
    }
}
