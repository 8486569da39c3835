//! The energy model of the BitNet report: operations times picojoules of a 7 nm process, for one forward pass of 512 tokens.
//!
//! Counted are the linear layers (an F16 add and multiply each for baselines; an int8 add each for BitNet, plus one F16 multiply
//! per input and output element for the scales) and full, non-causal attention products in F16. With these rules the six published
//! numbers come out to three decimals. Left out are the lm head, the norms and all memory traffic: they are computed here as terms
//! of their own, so that a reader sees what the published ratio rests on.

use crate::catalogue::{Catalogue, PublishedModel};
use crate::table::{Kind, Table, Value, column};

/// Tokens of the forward pass.
pub const TOKENS: u64 = 512;
/// Picojoules of an F16 add and an F16 multiply.
pub const F16_MAC_PJ: f64 = 0.16 + 0.34;
/// Picojoules of an F16 multiply.
pub const F16_MUL_PJ: f64 = 0.34;
/// Picojoules of an int8 add.
pub const INT8_ADD_PJ: f64 = 0.007;

/// Picojoules of reading a byte from DRAM. Horowitz ("Computing's energy problem (and what we can do about it)", ISSCC 2014) gives
/// 1.3 to 2.6 nJ for 64 bits; the low end is taken, so the column is rather too small than too large.
pub const DRAM_BYTE_PJ: f64 = 1300.0 / 8.0;
/// Picojoules of an F16 add.
pub const F16_ADD_PJ: f64 = 0.16;

/// Joules of one forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Energy {
    /// Linear layers.
    pub linear_j: f64,
    /// Attention products.
    pub attention_j: f64,
    /// The lm head in F16, for every token: left out by the report.
    pub lm_head_j: f64,
    /// The norms in F16, an add and three multiplies per element (square, scale, gain): left out by the report.
    pub norms_j: f64,
    /// Reading every weight from DRAM once, linear layers at 2 bits (ternary, as I2_S stores them) or 16, the lm head at 16: left out
    /// by the report. One reading serves all tokens of the pass; when decoding, every token pays it.
    pub memory_j: f64,
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

    /// With everything that the report leaves out.
    pub fn with_all_terms_j(&self) -> f64 {
        self.with_lm_head_j() + self.norms_j + self.memory_j
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

/// Elements that the norms of one token pass over: before the attention and before the feed-forward layer in every block, and once
/// at the end; BitNet's also before the output and the down projection; Gemma's also behind both and on queries and keys.
fn norm_elements(model: &PublishedModel) -> u64 {
    let (q, kv) = (model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim);
    let more = match model.id.as_str() {
        id if id.starts_with("bitnet") => q + model.ffn,
        id if id.starts_with("gemma") => 2 * model.hidden + q + kv,
        _ => 0,
    };
    model.n_layers * (2 * model.hidden + more) + model.hidden
}

/// Bytes of the weights that one pass reads.
fn weight_bytes(model: &PublishedModel) -> u64 {
    let bits = if model.ternary { 2 } else { 16 };
    linear_params(model) * bits / 8 + model.vocab * model.hidden * 2
}

/// The model's energy by the report's formula, and the terms that it leaves out.
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
        norms_j: joules(TOKENS * norm_elements(model), F16_ADD_PJ + 3.0 * F16_MUL_PJ),
        memory_j: joules(weight_bytes(model), DRAM_BYTE_PJ),
    }
}

/// One row per published model: what the report counts, what it says, and what it leaves out.
pub fn table() -> Table {
    let columns = [
        column("model", "model", Kind::Text),
        column("linear_j", "linear", Kind::Joules),
        column("attention_j", "+ attention", Kind::Joules),
        column("sum_j", "= formula", Kind::Joules),
        column("published_j", "published", Kind::Joules),
        column("lm_head_j", "left out: lm head", Kind::Joules),
        column("norms_j", "left out: norms", Kind::Joules),
        column("memory_j", "left out: reading weights", Kind::Joules),
        column("all_j", "with all", Kind::Joules),
    ];
    Table::new(columns).with_rows(Catalogue::get().models.iter().map(|model| {
        let energy = energy(model);
        let joules = [
            energy.linear_j,
            energy.attention_j,
            energy.published_terms_j(),
            model.published.energy_j,
            energy.lm_head_j,
            energy.norms_j,
            energy.memory_j,
            energy.with_all_terms_j(),
        ];
        std::iter::once(model.title.as_str().into()).chain(joules.map(Value::from)).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_table_shows_what_is_left_out_beside_what_was_published() {
        let rows = table().cells();
        assert_eq!(rows.len(), 6);
        assert_eq!(rows[0][1..], ["0.008", "0.020", "0.028", "0.028", "0.084", "0.00027", "0.191", "0.304"]);
        assert!(rows.iter().all(|row| row[3] == row[4]), "{rows:?}");
    }

    #[test]
    fn the_terms_left_out_by_hand() {
        let models = &Catalogue::get().models;
        let (bitnet, llama) = (energy(&models[0]), energy(&models[1]));
        // 30 x (2 x 2560 + 2560 + 6912) + 2560 = 440,320 elements x 512 tokens x 1.18 pJ.
        assert!((bitnet.norms_j - 0.000_266).abs() < 1e-6, "{}", bitnet.norms_j);
        // 16 x 2 x 2048 + 2048 = 67,584 elements.
        assert!((llama.norms_j - 0.000_040_8).abs() < 1e-7, "{}", llama.norms_j);
        // 2,084,044,800 / 4 + 128,256 x 2560 x 2 = 1,177,681,920 bytes x 162.5 pJ.
        assert!((bitnet.memory_j - 0.191_373).abs() < 1e-6, "{}", bitnet.memory_j);
        // 973,078,528 x 2 + 128,256 x 2048 x 2 = 2,471,493,632 bytes.
        assert!((llama.memory_j - 0.401_618).abs() < 1e-6, "{}", llama.memory_j);
        assert_eq!(format!("{:.1}", llama.with_all_terms_j() / bitnet.with_all_terms_j()), "2.4");
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
