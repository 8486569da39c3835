//! The published claims and models: `claims.toml`, built into the program.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

/// Everything in `claims.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// The model under test first, then its baselines.
    #[serde(rename = "model")]
    pub models: Vec<PublishedModel>,
    /// Titles of the sources by letter.
    pub sources: BTreeMap<String, String>,
    /// The claims, in the ledger's order.
    #[serde(rename = "claim")]
    pub claims: Vec<Claim>,
}

/// A model of the report's Table 1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedModel {
    /// Name in `datasets/models`.
    pub id: String,
    /// Name in tables and plots.
    pub title: String,
    /// Whether its linear layers are ternary.
    #[serde(default)]
    pub ternary: bool,
    /// Layers.
    pub n_layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the feed-forward layer.
    pub ffn: u64,
    /// Query heads.
    pub n_heads: u64,
    /// Key and value heads.
    pub n_kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// What the report says of it.
    pub published: Published,
}

/// Published numbers of one model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Memory without embeddings.
    pub memory_gb: f64,
    /// Decode latency per token.
    pub latency_ms: f64,
    /// Energy of the formula.
    pub energy_j: f64,
    /// PIQA, percent.
    pub piqa: f64,
    /// GSM8K, percent.
    pub gsm8k: f64,
}

/// One row of the ledger: what was claimed and by which rule it is judged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Id, as in the project's list of claims.
    pub id: String,
    /// Which part of the claim, where it has several.
    #[serde(default)]
    pub part: Option<String>,
    /// The claim.
    pub text: String,
    /// Letters of the sources.
    pub sources: Vec<String>,
    /// Under what conditions it was published.
    #[serde(default)]
    pub conditions: String,
    /// The published value.
    pub published: String,
    /// How it is judged.
    pub rule: Rule,
    /// What measures it.
    pub command: String,
    /// Where or how the command has to be run.
    #[serde(default)]
    pub note: Option<String>,
}

impl Claim {
    /// The id with its part.
    pub fn full_id(&self) -> String {
        match &self.part {
            Some(part) => format!("{} ({part})", self.id),
            None => self.id.clone(),
        }
    }
}

/// The rules. What each means is in METHODOLOGY.md; what each does is in [`crate::claims`].
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "named after the keys in claims.toml, which say what they are")]
pub enum Rule {
    WeightsTernary,
    Params { low: f64, high: f64 },
    Accuracy { task: String, metric: String, against: Vec<String> },
    FasterThanBaselines { low: f64 },
    LatencyRatios,
    AbsoluteLatency { cpu: String, n_threads: usize, ms: f64 },
    LessMemory,
    PackedBytes { gb: f64 },
    EnergyFormula,
    EnergyMeasured,
    SameShapeF16 { arch: String, low: f64, high: f64 },
    UpToF16 { layout: String, ratio: f64 },
    UpToKernel { layout: String, over: String, ratio: f64 },
    Lossless { layout: String },
    Perplexity { task: String, value: f64, error: f64 },
    RunsWithoutBitnetCpp,
    RunsOnArm,
    NotBuilt { why: String },
}

impl Catalogue {
    /// The catalogue that is built in.
    pub fn get() -> &'static Self {
        static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
        CATALOGUE.get_or_init(|| {
            toml::from_str(include_str!("../claims.toml"))
                .expect("claims.toml is part of the program, and a test reads it")
        })
    }

    /// The model under test.
    pub fn subject(&self) -> &PublishedModel {
        &self.models[0]
    }

    /// The models that it is compared with.
    pub fn baselines(&self) -> &[PublishedModel] {
        &self.models[1..]
    }

    /// The title of a model, or its own name where it is not in the catalogue.
    pub fn title<'a>(&'a self, id: &'a str) -> &'a str {
        self.models.iter().find(|model| model.id == id).map_or(id, |model| &model.title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_complete() {
        let catalogue = Catalogue::get();
        assert!(catalogue.subject().ternary);
        assert_eq!(catalogue.baselines().len(), 5);
        let ids: std::collections::BTreeSet<&str> = catalogue.claims.iter().map(|claim| claim.id.as_str()).collect();
        assert_eq!(ids.len(), 16, "the project's list has 16 claims: {ids:?}");
        let full: std::collections::BTreeSet<String> = catalogue.claims.iter().map(Claim::full_id).collect();
        assert_eq!(full.len(), catalogue.claims.len());
        for claim in &catalogue.claims {
            assert!(claim.sources.iter().all(|source| catalogue.sources.contains_key(source)), "{}", claim.id);
        }
    }

    #[test]
    fn shapes_are_those_of_datasets_models() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
        for model in &Catalogue::get().models {
            let path = folder.join(format!("{}.toml", model.id));
            let text = std::fs::read_to_string(&path).expect("every model of the catalogue has a manifest");
            let manifest: toml::Table = text.parse().expect("TOML");
            let shape = |key: &str| manifest["shape"][key].as_integer().expect("an integer") as u64;
            let expected =
                [model.n_layers, model.hidden, model.ffn, model.n_heads, model.n_kv_heads, model.head_dim, model.vocab];
            let keys = ["n_layers", "hidden", "ffn", "n_heads", "n_kv_heads", "head_dim", "vocab"];
            assert_eq!(keys.map(shape), expected, "{}", model.id);
        }
    }
}
