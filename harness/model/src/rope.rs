//! Rotary position embedding (RoFormer, arXiv 2104.09864), in both pairings, with Llama 3's frequency scaling.

use ternbench_kernels::ops;

use crate::config::{ModelConfig, RopeLayout, RopeScaling};

/// The frequencies of one RoPE base: `theta^(-2j / head_dim)`, scaled where the model says so.
#[derive(Clone, Debug)]
pub struct Rope {
    layout: RopeLayout,
    inverse_frequencies: Vec<f32>,
}

impl Rope {
    /// The frequencies for base `theta`; a model with local layers has a second base for them.
    pub fn new(config: &ModelConfig, theta: f32, scaling: Option<RopeScaling>) -> Self {
        let width = config.head_dim as f32;
        let inverse_frequencies = (0..config.head_dim / 2)
            .map(|j| 1.0 / theta.powf(2.0 * j as f32 / width))
            .map(|frequency| scaling.map_or(frequency, |scaling| scale(frequency, scaling)))
            .collect();
        Self { layout: config.rope_layout, inverse_frequencies }
    }

    /// Appends the cosines and then the sines of `position` to a table, `head_dim / 2` of each.
    pub fn angles(&self, position: usize, table: &mut Vec<f32>) {
        let angles = self.inverse_frequencies.iter().map(|frequency| position as f32 * frequency);
        table.extend(angles.clone().map(f32::cos).chain(angles.map(f32::sin)));
    }

    /// Rotates one head by the angles of its position.
    pub fn rotate(&self, head: &mut [f32], angles: &[f32]) {
        let (cos, sin) = angles.split_at(angles.len() / 2);
        match self.layout {
            RopeLayout::HalfSplit => {
                let (low, high) = head.split_at_mut(cos.len());
                ops::rotate(low, high, cos, sin);
            }
            RopeLayout::Interleaved => {
                for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                    (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
                }
            }
        }
    }
}

/// Long wavelengths are divided by the factor, short ones stay, those between are blended.
fn scale(frequency: f32, scaling: RopeScaling) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    let turns = scaling.original_context as f32 / wavelength;
    let blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
    let blend = blend.clamp(0.0, 1.0);
    (1.0 - blend) * frequency / scaling.factor + blend * frequency
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Architecture;

    #[test]
    fn both_pairings_rotate_the_same_pairs_by_the_same_angles() {
        let mut config = ModelConfig::new(Architecture::Llama, 1, 8, 8, 1, 1, 8, 8);
        let half_split = Rope::new(&config, 100.0, None);
        config.rope_layout = RopeLayout::Interleaved;
        let interleaved = Rope::new(&config, 100.0, None);
        let mut angles = Vec::new();
        half_split.angles(3, &mut angles);
        let mut a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let mut b = [1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0];
        half_split.rotate(&mut a, &angles);
        interleaved.rotate(&mut b, &angles);
        assert_eq!([a[0], a[4], a[1], a[5], a[2], a[6], a[3], a[7]], b);
        let (sin, cos) = 3f32.sin_cos();
        assert_eq!(a[0], cos - 5.0 * sin);
    }

    #[test]
    fn llama3_scaling_keeps_fast_and_divides_slow_frequencies() {
        let scaling = RopeScaling { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        assert_eq!(scale(1.0, scaling), 1.0);
        assert_eq!(scale(1e-6, scaling), 1e-6 / 32.0);
        let middle = scale(2.0 * std::f32::consts::PI * 2.5 / 8192.0, scaling) / (2.0 * std::f32::consts::PI / 8192.0);
        assert!((middle - (0.5 * 2.5 / 32.0 + 0.5 * 2.5)).abs() < 1e-4);
    }
}
