//! From trits and floats to the stored forms of weight files: the inverse of [`super::ternary`] and of
//! [`DenseType::dequantize`].
//!
//! Sources: `quantize_i2_s` of microsoft/BitNet (`src/ggml-bitnet-mad.cpp`), `quantize_row_*_ref` of llama.cpp
//! (`ggml/src/ggml-quants.c`), whose bytes the golden file of `scripts/make-goldens.py` holds.

use half::{bf16, f16};
use ternbench_kernels::{DenseMatrix, DenseType, TernaryMatrix};

use super::ternary::{I2S_TAIL, TQ_BLOCK, i2s_shape_error};
use crate::weights::I2sLayout;

/// What the linear layers of a written file are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Floats, or blocks of quantised floats.
    Dense(DenseType),
    /// Two bits a trit and one f32 scale per tensor: bitnet.cpp's I2_S in the official layout, or the uint8 of Hugging Face.
    I2S,
    /// llama.cpp's 1.6875 bits a trit; the scale is f16.
    Tq1_0,
    /// llama.cpp's 2.0625 bits a trit; the scale is f16.
    Tq2_0,
}

impl StoredType {
    /// The GGUF name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense(ty) => ty.name(),
            Self::I2S => "I2_S",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
        }
    }

    /// Whether only trits can be stored so.
    pub fn is_ternary(self) -> bool {
        !matches!(self, Self::Dense(_))
    }

    /// `general.file_type` of a GGUF file (`enum llama_ftype` of llama.cpp and of bitnet.cpp).
    pub fn file_type(self) -> u32 {
        match self {
            Self::Dense(DenseType::F32) => 0,
            Self::Dense(DenseType::F16) => 1,
            Self::Dense(DenseType::Q4_0) => 2,
            Self::Dense(DenseType::Q4_1) => 3,
            Self::Dense(DenseType::Q8_0) => 7,
            Self::Dense(DenseType::BF16) => 32,
            Self::Tq1_0 => 36,
            Self::Tq2_0 => 37,
            Self::I2S => 40,
        }
    }
}

/// The two bits of a trit.
fn code(trit: i8) -> u8 {
    (trit + 1) as u8
}

/// A whole matrix as I2_S in the official layout: blocks of 128 weights in 32 bytes, the first weight of a group in the two
/// highest bits, then eight copies of the scale.
pub fn i2s(matrix: &TernaryMatrix) -> Result<Vec<u8>, String> {
    if let Some(reason) = i2s_shape_error(matrix.n(), matrix.k(), I2sLayout::X86) {
        return Err(reason);
    }
    let mut out = Vec::with_capacity(matrix.trits().len() / 4 + I2S_TAIL);
    for block in matrix.trits().chunks_exact(128) {
        let byte =
            |p: usize| code(block[p]) << 6 | code(block[32 + p]) << 4 | code(block[64 + p]) << 2 | code(block[96 + p]);
        out.extend((0..32).map(byte));
    }
    out.extend(matrix.scale().to_le_bytes().repeat(I2S_TAIL / 4));
    Ok(out)
}

/// A whole matrix as the uint8 `[n / 4, k]` of Hugging Face: bits `2i+1..2i` of row `r` belong to row `r + i * n / 4`.
pub fn hf_packed(matrix: &TernaryMatrix) -> Result<Vec<u8>, String> {
    let n = matrix.n();
    if !n.is_multiple_of(4) {
        return Err(format!("{n} rows cannot be packed by four"));
    }
    let quarters = matrix.trits().chunks_exact(matrix.trits().len() / 4);
    let mut out = vec![0; matrix.trits().len() / 4];
    for (quarter, shift) in quarters.zip([0, 2, 4, 6]) {
        out.iter_mut().zip(quarter).for_each(|(byte, &trit)| *byte |= code(trit) << shift);
    }
    Ok(out)
}

/// A whole matrix in llama.cpp's ternary blocks. The scale becomes f16, and 0 in a block of zeros.
pub fn blocks(matrix: &TernaryMatrix, ty: StoredType) -> Result<Vec<u8>, String> {
    if !matrix.k().is_multiple_of(TQ_BLOCK) {
        return Err(format!("rows of {} weights do not fit blocks of {TQ_BLOCK}", matrix.k()));
    }
    let scale = f16::from_f32(matrix.scale());
    if !scale.is_finite() {
        return Err(format!("the scale {} does not fit F16", matrix.scale()));
    }
    let mut out = Vec::new();
    for block in matrix.trits().chunks_exact(TQ_BLOCK) {
        if ty == StoredType::Tq1_0 {
            tq1_0(block, &mut out)
        } else {
            tq2_0(block, &mut out)
        }
        let zero = block.iter().all(|&trit| trit == 0);
        out.extend(if zero { f16::ZERO } else { scale }.to_le_bytes());
    }
    Ok(out)
}

fn tq2_0(block: &[i8], out: &mut Vec<u8>) {
    for half in block.chunks_exact(128) {
        let byte =
            |p: usize| code(half[p]) | code(half[32 + p]) << 2 | code(half[64 + p]) << 4 | code(half[96 + p]) << 6;
        out.extend((0..32).map(byte));
    }
}

fn tq1_0(block: &[i8], out: &mut Vec<u8>) {
    for (start, run, digits) in [(0, 32, 5), (160, 16, 5), (240, 4, 4)] {
        for p in 0..run {
            let digit = |value: u16, d: usize| value * 3 + u16::from(code(block[start + d * run + p]));
            // Four trits stand in the four highest of five places.
            let value = (0..digits).fold(0, digit) * if digits == 4 { 3 } else { 1 };
            out.push((value * 256).div_ceil(243) as u8);
        }
    }
}

/// Appends `values` in the form of `ty`: whole blocks. Refuses what that form cannot hold.
pub fn floats(ty: DenseType, values: &[f32], out: &mut Vec<u8>) -> Result<(), String> {
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(format!("value {at} is {}, not a finite number", values[at]));
    }
    if ty.row_bytes(values.len()).is_none() {
        return Err(format!("rows of {} weights do not fit {} blocks of {}", values.len(), ty.name(), ty.block_len()));
    }
    let fits = |value: f16, what: f32| {
        if value.is_finite() { Ok(value.to_le_bytes()) } else { Err(format!("{what} does not fit F16")) }
    };
    match ty {
        DenseType::F32 => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
        DenseType::BF16 => values.iter().for_each(|&value| out.extend(bf16::from_f32(value).to_le_bytes())),
        DenseType::F16 => {
            for &value in values {
                out.extend(fits(f16::from_f32(value), value)?);
            }
        }
        DenseType::Q8_0 => {
            for block in values.chunks_exact(32) {
                let d = block.iter().fold(0f32, |max, value| max.max(value.abs())) / 127.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out.extend(fits(f16::from_f32(d), d)?);
                out.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
            }
        }
        DenseType::Q4_0 => {
            for block in values.chunks_exact(32) {
                // The value of largest magnitude, with its sign, becomes code 0: -8.
                let extreme = block.iter().fold(0f32, |max, &value| if value.abs() > max.abs() { value } else { max });
                let d = extreme / -8.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out.extend(fits(f16::from_f32(d), d)?);
                nibbles(block, out, |value| ((value * inverse + 8.5) as u8).min(15));
            }
        }
        DenseType::Q4_1 => {
            for block in values.chunks_exact(32) {
                let (min, max) = block.iter().fold((f32::MAX, f32::MIN), |(a, b), &value| (a.min(value), b.max(value)));
                let d = (max - min) / 15.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out.extend(fits(f16::from_f32(d), d)?);
                out.extend(fits(f16::from_f32(min), min)?);
                nibbles(block, out, |value| (((value - min) * inverse + 0.5) as u8).min(15));
            }
        }
    }
    Ok(())
}

/// Byte `i` holds code `i` in its low and code `i + 16` in its high nibble.
fn nibbles(block: &[f32], out: &mut Vec<u8>, code: impl Fn(f32) -> u8) {
    let (low, high) = block.split_at(16);
    out.extend(low.iter().zip(high).map(|(&low, &high)| code(low) | code(high) << 4));
}

/// The trits behind a float matrix whose every weight is 0 or ± one value, as llama.cpp's converter writes BitNet models in
/// F16; `None` when it is no such matrix.
pub fn trits_of(matrix: &DenseMatrix) -> Option<TernaryMatrix> {
    let mut scale = 0f32;
    let mut row = vec![0.0; matrix.k()];
    let mut trits = Vec::with_capacity(matrix.n() * matrix.k());
    for at in 0..matrix.n() {
        matrix.dequantize_row(at, &mut row);
        for &value in &row {
            if value != 0.0 && scale == 0.0 {
                scale = value.abs();
            }
            if value != 0.0 && value.abs() != scale {
                return None;
            }
            trits.push(if value == 0.0 { 0 } else { value.signum() as i8 });
        }
    }
    TernaryMatrix::new(matrix.n(), matrix.k(), trits, scale).ok()
}
