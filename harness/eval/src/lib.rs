//! PIQA, GSM8K and perplexity, item by item as lm-evaluation-harness scores them, so that the same model gets the same result
//! from both.
//!
//! A [`Task`] is data (`datasets/tasks/*.toml`). [`run()`] puts its items through a [`LanguageModel`], writes a JSON line per
//! item as soon as it is finished, and returns a [`Summary`].
//!
//! From file to score: [`dataset`] reads items, [`template`] and [`prompt`] make prompts of them with examples drawn as CPython
//! does ([`mt19937`]), [`score`], [`generate()`](generate::greedy) and [`perplexity`] ask the model, [`extract`] finds answers,
//! [`items`] records and [`stats`] sums up.

pub mod dataset;
pub mod error;
pub mod extract;
pub mod generate;
pub mod items;
pub mod lm;
pub mod mt19937;
pub mod perplexity;
pub mod prompt;
pub mod run;
pub mod score;
pub mod stats;
pub mod synthetic;
pub mod task;
pub mod template;
#[cfg(test)]
mod testing;

pub use error::EvalError;
pub use items::Provenance;
pub use lm::{EngineModel, LanguageModel};
pub use run::{Options, Progress, Summary, run};
pub use stats::Metric;
pub use task::Task;
