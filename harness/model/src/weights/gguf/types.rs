//! The tensor type ids of GGUF.

use ternbench_kernels::DenseType;

use crate::weights::ternary::{BN_BLOCK, I2S_TAIL, IQ1_BN_BYTES, IQ2_BN_BYTES, TQ_BLOCK, TQ1_0_BYTES, TQ2_0_BYTES};

/// A tensor type: its id in the file, its name, weights per block, bytes per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// The id.
    pub id: u32,
    /// llama.cpp's name.
    pub name: &'static str,
    /// Weights per block.
    pub block_len: usize,
    /// Bytes per block.
    pub block_bytes: usize,
}

/// TQ1_0, ternary.
pub const TQ1_0: u32 = 34;
/// TQ2_0, ternary.
pub const TQ2_0: u32 = 35;
/// I2_S of bitnet.cpp, ternary.
pub const I2_S: u32 = 36;
/// IQ1_BN of ik_llama.cpp, ternary.
pub const IQ1_BN: u32 = 134;
/// IQ2_BN of ik_llama.cpp, ternary.
pub const IQ2_BN: u32 = 135;

/// Every type whose size is known (`enum ggml_type` of ggml.h), readable here or not.
const TYPES: &[GgmlType] = &[
    ty(0, "F32", 1, 4),
    ty(1, "F16", 1, 2),
    ty(2, "Q4_0", 32, 18),
    ty(3, "Q4_1", 32, 20),
    ty(6, "Q5_0", 32, 22),
    ty(7, "Q5_1", 32, 24),
    ty(8, "Q8_0", 32, 34),
    ty(9, "Q8_1", 32, 36),
    ty(10, "Q2_K", 256, 84),
    ty(11, "Q3_K", 256, 110),
    ty(12, "Q4_K", 256, 144),
    ty(13, "Q5_K", 256, 176),
    ty(14, "Q6_K", 256, 210),
    ty(15, "Q8_K", 256, 292),
    ty(16, "IQ2_XXS", 256, 66),
    ty(17, "IQ2_XS", 256, 74),
    ty(18, "IQ3_XXS", 256, 98),
    ty(19, "IQ1_S", 256, 50),
    ty(20, "IQ4_NL", 32, 18),
    ty(21, "IQ3_S", 256, 110),
    ty(22, "IQ2_S", 256, 82),
    ty(23, "IQ4_XS", 256, 136),
    ty(24, "I8", 1, 1),
    ty(25, "I16", 1, 2),
    ty(26, "I32", 1, 4),
    ty(27, "I64", 1, 8),
    ty(28, "F64", 1, 8),
    ty(29, "IQ1_M", 256, 56),
    ty(30, "BF16", 1, 2),
    ty(TQ1_0, "TQ1_0", TQ_BLOCK, TQ1_0_BYTES),
    ty(TQ2_0, "TQ2_0", TQ_BLOCK, TQ2_0_BYTES),
    // Four weights a byte, and a tail after the whole tensor.
    ty(I2_S, "I2_S", 4, 1),
    // And a scale before every row.
    ty(IQ1_BN, "IQ1_BN", BN_BLOCK, IQ1_BN_BYTES),
    ty(IQ2_BN, "IQ2_BN", BN_BLOCK, IQ2_BN_BYTES),
];

const fn ty(id: u32, name: &'static str, block_len: usize, block_bytes: usize) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes }
}

impl GgmlType {
    /// The type with this id, or why it cannot be read.
    pub fn from_id(id: u32) -> Result<Self, String> {
        if let Some(&known) = TYPES.iter().find(|ty| ty.id == id) {
            return Ok(known);
        }
        Err(match id {
            38 | 39 => format!(
                "type {id} is TL{} of bitnet.cpp, whose tile sizes are generated per model and not in the file: load the I2_S \
                 or safetensors file instead (38 and 39 mean other types elsewhere, none of them readable here)",
                id - 37
            ),
            _ => format!("unknown tensor type {id}"),
        })
    }

    /// The bytes of a tensor with these dimensions, fastest first; `None` when they do not fit the blocks, or on overflow.
    pub fn tensor_bytes(self, dims: &[usize]) -> Option<usize> {
        let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        if self.id == I2_S {
            return elements.is_multiple_of(4).then(|| (elements / 4).checked_add(I2S_TAIL))?;
        }
        let row = *dims.first()?;
        let blocks =
            row.is_multiple_of(self.block_len).then(|| (elements / self.block_len).checked_mul(self.block_bytes))??;
        blocks.checked_add((elements / row).checked_mul(self.row_scale_bytes())?)
    }

    /// Bytes of the scale before every row.
    pub fn row_scale_bytes(self) -> usize {
        match self.id {
            IQ1_BN => 2,
            IQ2_BN => 4,
            _ => 0,
        }
    }

    /// The same type among the dense ones that can be multiplied with.
    pub fn dense(self) -> Option<DenseType> {
        DenseType::ALL.iter().copied().find(|dense| dense.name() == self.name)
    }

    /// Whether it holds trits.
    pub fn is_ternary(self) -> bool {
        matches!(self.id, TQ1_0 | TQ2_0 | I2_S | IQ1_BN | IQ2_BN)
    }
}
