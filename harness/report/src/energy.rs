//! The energy model of the BitNet report: operations times picojoules of a 7 nm process, for one forward pass of 512 tokens.
//!
//! Counted are the linear layers (an F16 add and multiply each for baselines; an int8 add each for BitNet, plus one F16 multiply
//! per input and output element for the scales) and full, non-causal attention products in F16. Left out are the lm head,
//! the norms and all memory traffic. With these rules the six published numbers come out to three decimals.

use crate::catalogue::PublishedModel;

/// Tokens of the forward pass.
pub const TOKENS: u64 = 512;
/// Picojoules of an F16 add and an F16 multiply.
pub const F16_MAC_PJ: f64 = 0.16 + 0.34;
/// Picojoules of an F16 multiply.
pub const F16_MUL_PJ: f64 = 0.34;
/// Picojoules of an int8 add.
pub const INT8_ADD_PJ: f64 = 0.007;

/// Joules of one forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Energy {
    /// Linear layers.
    pub linear_j: f64,
    /// Attention products.
    pub attention_j: f64,
    /// The lm head in F16, for every token: left out by the report.
    pub lm_head_j: f64,
}

impl Energy {
    /// What the report counts.
    pub fn published_terms_j(&self) -> f64 {
        self.linear_j + self.attention_j
    }

    /// With the lm head.
    pub fn with_lm_head_j(&self) -> f64 {
        self.published_terms_j() + self.lm_head_j
    }
}

/// Inputs and outputs of every linear layer of one transformer block: q, k, v, o, gate, up, down.
fn linear_layers(model: &PublishedModel) -> [(u64, u64); 7] {
    let (q, kv) = (model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim);
    let (hidden, ffn) = (model.hidden, model.ffn);
    [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, ffn), (hidden, ffn), (ffn, hidden)]
}

/// Parameters of the linear layers.
pub fn linear_params(model: &PublishedModel) -> u64 {
    model.n_layers * linear_layers(model).iter().map(|(inputs, outputs)| inputs * outputs).sum::<u64>()
}

/// The model's energy by the report's formula.
pub fn energy(model: &PublishedModel) -> Energy {
    let joules = |operations: u64, picojoules: f64| operations as f64 * picojoules * 1e-12;
    let macs = TOKENS * linear_params(model);
    let linear_j = if model.ternary {
        let elements: u64 = linear_layers(model).iter().map(|(inputs, outputs)| inputs + outputs).sum();
        joules(macs, INT8_ADD_PJ) + joules(TOKENS * model.n_layers * elements, F16_MUL_PJ)
    } else {
        joules(macs, F16_MAC_PJ)
    };
    let attention_macs = 2 * TOKENS * TOKENS * model.n_heads * model.head_dim * model.n_layers;
    Energy {
        linear_j,
        attention_j: joules(attention_macs, F16_MAC_PJ),
        lm_head_j: joules(TOKENS * model.vocab * model.hidden, F16_MAC_PJ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn all_six_published_energies_to_three_decimals() {
        for model in &Catalogue::get().models {
            let computed = energy(model).published_terms_j();
            assert_eq!(format!("{computed:.3}"), format!("{:.3}", model.published.energy_j), "{}", model.title);
        }
    }

    #[test]
    fn every_term_to_four_decimals() {
        let expected = [
            (0.0077, 0.0201, 0.0840),
            (0.2491, 0.0086, 0.0672),
            (0.1786, 0.0070, 0.0773),
            (0.3354, 0.0113, 0.0597),
            (0.4123, 0.0129, 0.0258),
            (0.6251, 0.0242, 0.0724),
        ];
        for (model, (linear, attention, lm_head)) in Catalogue::get().models.iter().zip(expected) {
            let energy = energy(model);
            let terms = [(energy.linear_j, linear), (energy.attention_j, attention), (energy.lm_head_j, lm_head)];
            for (computed, expected) in terms {
                assert!((computed - expected).abs() < 0.000_06, "{}: {computed} {expected}", model.title);
            }
        }
    }

    #[test]
    fn with_the_lm_head_the_gap_to_llama_shrinks_from_nine_to_three() {
        let models = &Catalogue::get().models;
        let (bitnet, llama) = (energy(&models[0]), energy(&models[1]));
        assert_eq!(format!("{:.1}", llama.published_terms_j() / bitnet.published_terms_j()), "9.3");
        assert_eq!(format!("{:.1}", llama.with_lm_head_j() / bitnet.with_lm_head_j()), "2.9");
        assert_eq!(linear_params(&models[0]), 2_084_044_800);
    }
}
