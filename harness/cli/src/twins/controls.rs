//! Engines that are wrong on purpose. Each makes one mistake that was really made somewhere, runs without complaint, and must be
//! caught by the gate before anything of it is timed.

use std::ops::Range;

use anyhow::{Result, bail};
use ternbench_kernels::activation::QuantizedActivations;
use ternbench_kernels::bytes::AlignedBytes;
use ternbench_kernels::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared};
use ternbench_kernels::{DenseMatrix, Pool, Team, TernaryKernel, TernaryMatrix};
use ternbench_model::ModelConfig;
use ternbench_model::config::Activation;
use ternbench_model::error::LoadError;
use ternbench_model::weights::{I2sLayout, LinearName, LinearWeights, OpenOptions, VectorName, WeightSource};

use super::{Twin, file};
use crate::open::Loaded;

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The FP16 twin's weights rounded to trits after training.
    Rounded,
    /// SiLU where relu² belongs.
    Silu,
    /// The norms before the output and down projections left out.
    NoSubNorms,
    /// I2_S read in the layout of another architecture.
    WrongLayout,
    /// Sums kept in 16 bits.
    Int16,
}

impl Control {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rounded, Self::Silu, Self::NoSubNorms, Self::WrongLayout, Self::Int16];

    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rounded => "rounded to trits after training",
            Self::Silu => "SiLU instead of relu²",
            Self::NoSubNorms => "sub-norms left out",
            Self::WrongLayout => "I2_S in the ARM layout",
            Self::Int16 => "sums in 16 bits",
        }
    }

    /// The twin that it claims to be.
    pub fn twin(self) -> Twin {
        if self == Self::Rounded { Twin::Fp16 } else { Twin::Ternary }
    }

    /// Loads the wrong engine; `kernel` runs its ternary layers, where they are not what is wrong.
    pub fn load(self, kernel: &'static dyn TernaryKernel, pool: &Pool) -> Result<Loaded> {
        let i2s_layout = if self == Self::WrongLayout { I2sLayout::Arm } else { I2sLayout::X86 };
        let right = ternbench_model::weights::open(&file(self.twin()), OpenOptions { i2s_layout })?;
        let mut config = right.config().clone();
        match self {
            Self::Silu => config.activation = Activation::Silu,
            Self::NoSubNorms => config.sub_norms = false,
            Self::Rounded | Self::WrongLayout | Self::Int16 => {}
        }
        let wrong = Wrong { name: format!("{}, {}", right.name(), self.name()), right, config, control: self };
        let loaded =
            Loaded::new(&wrong, if self == Self::Int16 { &INT16 as &'static dyn TernaryKernel } else { kernel }, pool)?;
        if loaded.info.weights != "ternary" {
            bail!("{}: the twin's weights are {}, not trits", wrong.name, loaded.info.weights);
        }
        Ok(loaded)
    }
}

/// A model with a mistake in it.
struct Wrong {
    right: Box<dyn WeightSource>,
    config: ModelConfig,
    name: String,
    control: Control,
}

impl WeightSource for Wrong {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        self.right.embedding()
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        self.right.head()
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        match self.right.linear(layer, which)? {
            LinearWeights::Dense(matrix) if self.control == Control::Rounded => {
                let (n, k) = (matrix.n(), matrix.k());
                let mut weights = vec![0.0; n * k];
                weights.chunks_exact_mut(k).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
                let rounded = TernaryMatrix::from_absmean(n, k, &weights);
                rounded.map(LinearWeights::Ternary).map_err(|error| LoadError::file(&file(Twin::Fp16), error))
            }
            as_it_is => Ok(as_it_is),
        }
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        self.right.vector(name)
    }

    fn stored_bytes(&self) -> u64 {
        self.right.stored_bytes()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn hash(&self) -> Result<String, LoadError> {
        self.right.hash().map(|hash| format!("{hash}, {}", self.control.name()))
    }
}

/// Multiplies codes `w + 1` with activations `x + 128`, both unsigned as the byte instructions like them, and adds with
/// saturation in 16 bits. Right up to 64 columns, so a test on small matrices does not see it.
struct Int16Sums;

static INT16: Int16Sums = Int16Sums;

static INT16_INFO: KernelInfo = KernelInfo {
    name: "control-i8-int16",
    summary: "wrong on purpose: 16-bit sums saturate",
    features: &[],
    layout: "i8",
    bits_per_weight: 8.0,
    row_tile: 1,
    exactness: Exactness::Exact,
    source: "a negative control",
};

impl TernaryKernel for Int16Sums {
    fn info(&self) -> &'static KernelInfo {
        &INT16_INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        let mut data = AlignedBytes::zeroed(w.n() * w.k());
        data.as_i8_mut().copy_from_slice(w.trits());
        PackedMatrix { n: w.n(), k: w.k(), data: data.into() }
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(team, x, 1);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let n_rows = rows.len();
        for (row, weights) in w.data.as_i8()[rows.start * w.k..rows.end * w.k].chunks_exact(w.k).enumerate() {
            let weight_sum: i32 = weights.iter().map(|&w| i32::from(w)).sum();
            for token in 0..x.m {
                let products =
                    weights.iter().zip(x.row(token)).map(|(&w, &x)| (i16::from(w) + 1) * (i16::from(x) + 128));
                let sum = products.fold(0i16, i16::saturating_add);
                acc[token * n_rows + row] = i32::from(sum) - x.sums[token] - 128 * (weight_sum + w.k as i32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ternbench_kernels::oracle;

    use super::*;

    /// A control that were simply broken would prove nothing: this one is right as long as its sums fit.
    #[test]
    fn sixteen_bits_are_enough_for_narrow_matrices_only() {
        let equal = |k: usize| {
            let trits = (0..3 * k).map(|i| (i * 7 % 3) as i8 - 1).collect();
            let w = TernaryMatrix::new(3, k, trits, 1.0).unwrap();
            let inputs: Vec<f32> = (0..2 * k).map(|i| (i * 31 % 101) as f32 - 50.0).collect();
            let x = QuantizedActivations::quantize(&inputs, 2, k);
            let mut prepared = Prepared::default();
            INT16.prepare(&Team::alone(), &x, &mut prepared);
            let mut acc = vec![0; 6];
            INT16.compute(&INT16.pack(&w), &prepared, 0..3, &mut acc);
            acc == oracle::gemm(&w, &x)
        };
        assert!(equal(64) && !equal(512));
    }
}
