//! How a measurement was made: what a reader needs to repeat or to doubt it.

use serde::{Deserialize, Serialize};

/// The protocol of a group of interleaved runs, as in `harness/METHODOLOGY.md`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Seed of the order within each round.
    pub seed: u64,
    /// Unmeasured runs of each contender before the first round.
    pub warmup: u32,
    /// Rounds asked for.
    pub repetitions: u32,
    /// Relative half-width that intervals had to reach before measuring stopped, where that was asked for.
    #[serde(default)]
    pub precision: Option<f64>,
    /// Time that the group was allowed.
    #[serde(default)]
    pub budget_s: Option<f64>,
    /// Why measuring ended: `repetitions`, `narrow`, `budget`, `interrupted`, `failed`.
    pub stopped: String,
    /// Whether each worker was bound to a core of its own.
    #[serde(default)]
    pub pinned: bool,
}

/// The other program that made a result: llama-bench of llama.cpp, bitnet.cpp or ik_llama.cpp.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opponent {
    /// Its name: `llama-bench`.
    pub program: String,
    /// Commit and number of its build, as it says itself.
    #[serde(default)]
    pub build: String,
    /// What it ran on, as it says itself: `CPU`, `BLAS`, `CUDA`.
    #[serde(default)]
    pub backends: String,
    /// Model type, as it says itself: `bitnet 2B I2_S - 2 bpw ternary`.
    #[serde(default)]
    pub model_type: String,
    /// `interleaved` with ternbench's own runs, or `imported` from a file.
    pub how: String,
}
