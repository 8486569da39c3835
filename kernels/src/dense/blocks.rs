//! The storage types: block length, block bytes, and how a block turns into f32.

use half::{bf16, f16};

/// How dense weights are stored. Names are GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenseType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 32 int8 with one f16 scale: `d·q`.
    Q8_0,
    /// 32 4-bit codes with one f16 scale: `d·(q - 8)`.
    Q4_0,
    /// 32 4-bit codes with f16 scale and minimum: `d·q + m`.
    Q4_1,
}

impl DenseType {
    /// Every type.
    pub const ALL: &[Self] = &[Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// The GGUF name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        }
    }

    /// Weights per block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// Stored bits per weight, scales included.
    pub fn bits_per_weight(self) -> f32 {
        self.block_bytes() as f32 * 8.0 / self.block_len() as f32
    }

    /// Bytes of a row of `k` weights; `None` when `k` is no multiple of the block length, or on overflow.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        k.is_multiple_of(self.block_len()).then(|| (k / self.block_len()).checked_mul(self.block_bytes()))?
    }

    /// Turns whole blocks into floats. `out` holds exactly the weights of `bytes`.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(self.row_bytes(out.len()), Some(bytes.len()));
        let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len()));
        match self {
            Self::F32 => blocks.for_each(|(b, out)| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Self::F16 => blocks.for_each(|(b, out)| out[0] = half(b)),
            Self::BF16 => blocks.for_each(|(b, out)| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Self::Q8_0 => blocks.for_each(|(b, out)| {
                let d = half(b);
                out.iter_mut().zip(&b[2..]).for_each(|(out, &q)| *out = d * f32::from(q as i8));
            }),
            Self::Q4_0 => blocks.for_each(|(b, out)| {
                let d = half(b);
                nibbles(&b[2..], out, |q| d * (f32::from(q) - 8.0));
            }),
            Self::Q4_1 => blocks.for_each(|(b, out)| {
                let (d, m) = (half(b), half(&b[2..]));
                nibbles(&b[4..], out, |q| d * f32::from(q) + m);
            }),
        }
    }
}

/// Byte `i` holds code `i` in its low and code `i + 16` in its high nibble.
fn nibbles(codes: &[u8], out: &mut [f32], weight: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &code) in low.iter_mut().zip(high).zip(codes) {
        (*low, *high) = (weight(code & 15), weight(code >> 4));
    }
}
