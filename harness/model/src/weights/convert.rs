//! From any model to a GGUF file or a safetensors folder, one matrix at a time.
//!
//! What is written depends on the source alone, so the same conversion gives the same bytes. Rows of q and k are put in the
//! order that the target's RoPE expects; norms, which a source hands out complete, are stored as the target's readers expect.

use std::path::{Path, PathBuf};

use ternbench_kernels::{DenseMatrix, DenseType, TernaryMatrix};

use super::encode::{self, StoredType};
use super::gguf::GgufFile;
use super::output::{self, PartialFile};
use super::{LinearName, LinearWeights, VectorName, WeightSource, gguf, safetensors};
use crate::config::{ModelConfig, RopeLayout};
use crate::error::LoadError;
use crate::tokenizer::Tokenizer;

/// Where the tokenizer of a written model comes from.
pub enum TokenizerFrom<'a> {
    /// A model or tokenizer file: a GGUF file, a folder, a `tokenizer.json` or a `tokenizer.model`.
    Path(PathBuf),
    /// Made, not read.
    Made(&'a Tokenizer),
    /// The written model has none.
    None,
}

/// What [`convert`] is to write.
pub struct Conversion<'a> {
    /// Storage type of the linear layers.
    pub ty: StoredType,
    /// Storage type of the embedding and the head; by default what goes with `ty`.
    pub embedding: Option<DenseType>,
    /// The tokenizer.
    pub tokenizer: TokenizerFrom<'a>,
    /// The file that the model came from, whose name and licence are carried over where it is GGUF.
    pub origin: Option<&'a Path>,
    /// Replace what is there.
    pub force: bool,
}

impl Conversion<'_> {
    /// Half floats beside trits and half floats, 8-bit blocks beside blocks.
    pub(super) fn embedding_type(&self) -> DenseType {
        let default = match self.ty {
            StoredType::Dense(ty @ (DenseType::F32 | DenseType::F16 | DenseType::BF16)) => ty,
            StoredType::Dense(_) => DenseType::Q8_0,
            _ => DenseType::F16,
        };
        self.embedding.unwrap_or(default)
    }

    /// The GGUF file that the model came from.
    pub(super) fn gguf_origin(&self) -> Option<GgufFile> {
        self.origin.filter(|path| path.is_file()).and_then(|path| GgufFile::open(path).ok())
    }
}

/// Writes `source` to `target`: a GGUF file where the name ends in `.gguf`, else a folder with `config.json` and
/// `model.safetensors`. `progress` is called with the number of tensors done and of all. Returns the bytes written.
///
/// Nothing is at `target` before everything is. An existing target is refused without `force`.
pub fn convert(
    source: &dyn WeightSource,
    target: &Path,
    conversion: &Conversion<'_>,
    progress: &dyn Fn(usize, usize),
) -> Result<u64, LoadError> {
    output::check_target(target, conversion.force)?;
    if target.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        gguf::write::write(source, target, conversion, progress)
    } else {
        safetensors::write::write(source, target, conversion, progress)
    }
}

/// A tensor of the written model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    Head,
    Linear(usize, LinearName),
    /// The scale of a packed matrix in a safetensors file.
    Scale(usize, LinearName),
    Vector(VectorName),
    /// Llama 3's frequency divisors in a GGUF file.
    RopeDivisors,
}

/// The row of a matrix stored with `from` that stands in row `row` of one stored with `to`.
fn rotary_row(row: usize, head_dim: usize, from: RopeLayout, to: RopeLayout) -> usize {
    let (head, at, half) = (row / head_dim * head_dim, row % head_dim, head_dim / 2);
    match (from, to) {
        (RopeLayout::HalfSplit, RopeLayout::Interleaved) => head + at % 2 * half + at / 2,
        (RopeLayout::Interleaved, RopeLayout::HalfSplit) => head + at % half * 2 + at / half,
        _ => row,
    }
}

/// Maps rows of a linear layer, where its rows rotate.
pub(super) fn row_order(config: &ModelConfig, which: LinearName, to: RopeLayout) -> impl Fn(usize) -> usize {
    let rotates = matches!(which, LinearName::Q | LinearName::K);
    let (from, head_dim) = (config.rope_layout, config.head_dim);
    move |row| if rotates { rotary_row(row, head_dim, from, to) } else { row }
}

/// A linear layer as trits, rows in the order of `layout`.
pub(super) fn trits(
    source: &dyn WeightSource,
    layer: usize,
    which: LinearName,
    layout: RopeLayout,
) -> Result<TernaryMatrix, String> {
    let matrix = match source.linear(layer, which).map_err(|error| error.to_string())? {
        LinearWeights::Ternary(matrix) => matrix,
        LinearWeights::Dense(matrix) => encode::trits_of(&matrix).ok_or_else(|| {
            format!("its {} weights are not ternary (0 and ± one value): choose a type of floats", matrix.ty().name())
        })?,
    };
    if source.config().rope_layout == layout || !matches!(which, LinearName::Q | LinearName::K) {
        return Ok(matrix);
    }
    let order = row_order(source.config(), which, layout);
    let trits = (0..matrix.n()).flat_map(|row| matrix.row(order(row))).copied().collect();
    TernaryMatrix::new(matrix.n(), matrix.k(), trits, matrix.scale()).map_err(|error| error.to_string())
}

/// Streams a float matrix as `ty`.
pub(super) fn write_dense(
    matrix: &DenseMatrix,
    ty: DenseType,
    order: impl Fn(usize) -> usize,
    out: &mut PartialFile,
    name: &str,
) -> Result<(), LoadError> {
    let mut row = vec![0.0; matrix.k()];
    let mut bytes = Vec::new();
    for at in 0..matrix.n() {
        let from = order(at);
        if matrix.ty() == ty {
            out.write(matrix.row(from))?;
            continue;
        }
        matrix.dequantize_row(from, &mut row);
        bytes.clear();
        encode::floats(ty, &row, &mut bytes)
            .map_err(|reason| LoadError::tensor(out.target(), name, format!("row {at}: {reason}")))?;
        out.write(&bytes)?;
    }
    Ok(())
}

/// Streams a linear layer as floats, rows in the order of `layout`.
pub(super) fn write_linear(
    source: &dyn WeightSource,
    (layer, which): (usize, LinearName),
    ty: DenseType,
    layout: RopeLayout,
    out: &mut PartialFile,
    name: &str,
) -> Result<(), LoadError> {
    let order = row_order(source.config(), which, layout);
    let matrix = match source.linear(layer, which)? {
        LinearWeights::Dense(matrix) => return write_dense(&matrix, ty, order, out, name),
        LinearWeights::Ternary(matrix) => matrix,
    };
    let mut row = vec![0.0; matrix.k()];
    let mut bytes = Vec::new();
    for at in 0..matrix.n() {
        row.iter_mut().zip(matrix.row(order(at))).for_each(|(w, &trit)| *w = f32::from(trit) * matrix.scale());
        bytes.clear();
        encode::floats(ty, &row, &mut bytes).map_err(|reason| LoadError::tensor(out.target(), name, reason))?;
        out.write(&bytes)?;
    }
    Ok(())
}

/// A norm or bias, in the order of `layout`.
pub(super) fn vector(source: &dyn WeightSource, name: VectorName, layout: RopeLayout) -> Result<Vec<f32>, LoadError> {
    let values = source.vector(name)?;
    match name {
        VectorName::Bias(_, which) => {
            let order = row_order(source.config(), which, layout);
            Ok((0..values.len()).map(|at| values[order(at)]).collect())
        }
        _ => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reordering_rows_there_and_back_changes_nothing() {
        use RopeLayout::{HalfSplit, Interleaved};
        // Half-split rows 0..8 of a head of 8: pair j is (j, j + 4).
        let there: Vec<usize> = (0..16).map(|row| rotary_row(row, 8, HalfSplit, Interleaved)).collect();
        assert_eq!(there[..8], [0, 4, 1, 5, 2, 6, 3, 7]);
        let back: Vec<usize> = (0..16).map(|row| there[rotary_row(row, 8, Interleaved, HalfSplit)]).collect();
        assert_eq!(back, (0..16).collect::<Vec<_>>());
    }
}
