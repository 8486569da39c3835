//! Weights from a seed, for speed and memory runs without any file: the shape of a manifest, random values, the same on every
//! machine. Each tensor is made when it is asked for, straight in its stored form, and each row from its own seed, so layers
//! can be made in parallel and no float copy of a model ever exists.
//!
//! The numbers are noise, but well-behaved noise: weights are scaled to keep activations near unit variance, so no denormals,
//! infinities or NaN make the arithmetic faster or slower than a trained model's.

use std::sync::OnceLock;

use half::{bf16, f16};
use rayon::prelude::*;
use ternbench_kernels::{AlignedBytes, DenseMatrix, DenseType, TernaryMatrix};

use super::{LinearName, LinearWeights, VectorName, WeightSource};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::manifest::{Manifest, SyntheticType};

/// Changes whenever the same seed would give other weights.
const RECIPE: &str = "synthetic-1";

/// A model made from a seed.
pub struct SyntheticModel {
    name: String,
    config: ModelConfig,
    weights: SyntheticType,
    seed: u64,
    /// Made once: a model that is loaded for several kernels has one embedding.
    embedding: OnceLock<DenseMatrix>,
}

impl SyntheticModel {
    /// The model of `manifest`, with linear layers of its own type or of `weights`.
    pub fn new(manifest: &Manifest, weights: Option<SyntheticType>, seed: u64) -> Self {
        let weights = weights.unwrap_or(manifest.shape.weights);
        let suffix = match weights {
            weights if weights == manifest.shape.weights => "",
            SyntheticType::Ternary => "@ternary",
            SyntheticType::F16 => "@f16",
            SyntheticType::Bf16 => "@bf16",
        };
        let name = format!("synthetic:{}{suffix}", manifest.name);
        Self { name, config: manifest.config(), weights, seed, embedding: OnceLock::new() }
    }

    fn rng(&self, tensor: u64, row: usize) -> Rng {
        Rng(self.seed ^ mix(tensor.wrapping_mul(0x1_0000_0000).wrapping_add(row as u64 + 1)))
    }

    /// Random floats of 16 bits: a random sign and mantissa under one exponent, which makes magnitudes uniform in
    /// `[2^e, 2^(e+1))`, root mean square 1.53 · 2^e. `bf16` has 7 mantissa bits, `f16` 10.
    fn dense(&self, tensor: u64, n: usize, k: usize, rms: f32) -> DenseMatrix {
        let base = (rms / 1.53).log2().floor().exp2();
        let (ty, random, fixed) = match self.weights {
            SyntheticType::Bf16 => (DenseType::BF16, 0x807f, bf16::from_f32(base).to_bits()),
            _ => (DenseType::F16, 0x83ff, f16::from_f32(base).to_bits()),
        };
        let repeat = |bits: u16| u64::from(bits) * 0x0001_0001_0001_0001;
        let (random, fixed) = (repeat(random), repeat(fixed));
        let mut data = AlignedBytes::zeroed(n * k * 2);
        data.par_chunks_exact_mut(k * 2).enumerate().for_each(|(row, bytes)| {
            let mut rng = self.rng(tensor, row);
            let mut words = bytes.chunks_exact_mut(8);
            for word in &mut words {
                word.copy_from_slice(&(rng.next() & random | fixed).to_le_bytes());
            }
            let rest = words.into_remainder();
            let last = (rng.next() & random | fixed).to_le_bytes();
            let len = rest.len();
            rest.copy_from_slice(&last[..len]);
        });
        DenseMatrix::new(n, k, ty, data.into()).expect("two bytes a weight, as allocated")
    }

    fn trits(&self, tensor: u64, n: usize, k: usize) -> TernaryMatrix {
        let mut trits = vec![0i8; n * k];
        for (row, trits) in trits.chunks_exact_mut(k).enumerate() {
            let mut rng = self.rng(tensor, row);
            for eight in trits.chunks_mut(8) {
                // Each byte, scaled to 0..3: 85, 86 and 85 of the 256 bytes give -1, 0 and +1.
                for (trit, byte) in eight.iter_mut().zip(rng.next().to_le_bytes()) {
                    *trit = ((u16::from(byte) * 3 + 1) >> 8) as i8 - 1;
                }
            }
        }
        // Two thirds of the weights are ±scale: this gives the matrix unit gain.
        let scale = (1.5 / k as f32).sqrt();
        TernaryMatrix::new(n, k, trits, scale).expect("bytes scaled to 0..3, less one, are trits")
    }
}

impl WeightSource for SyntheticModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        let rms = 1.0 / (self.config.embedding_scale * (self.config.hidden as f32).sqrt());
        let make = || self.dense(1, self.config.vocab, self.config.hidden, rms);
        Ok(self.embedding.get_or_init(make).clone())
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        let rms = 1.0 / (self.config.hidden as f32).sqrt();
        Ok((!self.config.tied).then(|| self.dense(2, self.config.vocab, self.config.hidden, rms)))
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        let (n, k) = self.config.linear_shape(which);
        let tensor = 100 * (layer as u64 + 1) + which as u64;
        Ok(match self.weights {
            SyntheticType::Ternary => LinearWeights::Ternary(self.trits(tensor, n, k)),
            _ => LinearWeights::Dense(self.dense(tensor, n, k, 1.0 / (k as f32).sqrt())),
        })
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        let (tensor, center) = match name {
            VectorName::OutputNorm => (3, 1.0),
            VectorName::AttnNorm(layer) => (100 * (layer as u64 + 1) + 10, 1.0),
            VectorName::AttnSubNorm(layer) => (100 * (layer as u64 + 1) + 11, 1.0),
            VectorName::PostAttnNorm(layer) => (100 * (layer as u64 + 1) + 12, 1.0),
            VectorName::FfnNorm(layer) => (100 * (layer as u64 + 1) + 13, 1.0),
            VectorName::FfnSubNorm(layer) => (100 * (layer as u64 + 1) + 14, 1.0),
            VectorName::PostFfnNorm(layer) => (100 * (layer as u64 + 1) + 15, 1.0),
            VectorName::QNorm(layer) => (100 * (layer as u64 + 1) + 16, 1.0),
            VectorName::KNorm(layer) => (100 * (layer as u64 + 1) + 17, 1.0),
            VectorName::Bias(layer, which) => (100 * (layer as u64 + 1) + 20 + which as u64, 0.0),
        };
        let mut rng = self.rng(tensor, 0);
        let noise = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        Ok((0..name.len(&self.config)).map(|_| center + 0.2 * noise(rng.next())).collect())
    }

    fn stored_bytes(&self) -> u64 {
        0
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn hash(&self) -> Result<String, LoadError> {
        use sha2::{Digest, Sha256};
        let recipe = format!("{RECIPE} {} seed {} {:?}", self.name, self.seed, self.config);
        Ok(Sha256::digest(recipe.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// SplitMix64 (Steele et al. 2014): any seed is a good one, so rows can be seeded one by one.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn model(name: &str, weights: Option<SyntheticType>, seed: u64) -> SyntheticModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
        SyntheticModel::new(&Manifest::find(&folder, name).unwrap(), weights, seed)
    }

    #[test]
    fn the_seed_decides_and_trits_are_even() {
        let tensor = |seed| match model("bitnet-tiny", None, seed).linear(1, LinearName::Down).unwrap() {
            LinearWeights::Ternary(matrix) => matrix,
            LinearWeights::Dense(_) => panic!("the manifest says ternary"),
        };
        assert_eq!(tensor(1), tensor(1));
        assert_ne!(tensor(1), tensor(2));
        for trit in -1..=1 {
            let share =
                tensor(1).trits().iter().filter(|&&t| t == trit).count() as f64 / tensor(1).trits().len() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{trit}: {share}");
        }
    }

    #[test]
    fn floats_have_the_variance_asked_for() {
        for weights in [SyntheticType::F16, SyntheticType::Bf16] {
            let matrix = model("llama-tiny", Some(weights), 1).embedding().unwrap();
            let mut row = vec![0.0; matrix.k()];
            matrix.dequantize_row(5, &mut row);
            let rms = (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32).sqrt();
            let wanted = 1.0 / (matrix.k() as f32).sqrt();
            assert!(rms > 0.5 * wanted && rms <= 1.05 * wanted, "{rms} {wanted}");
        }
    }
}
