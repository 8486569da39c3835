//! PIQA, GSM8K and perplexity, item by item as lm-evaluation-harness scores them, so that the same model gets the same result
//! from both.
//!
//! A [`Task`] is data (`datasets/tasks/*.toml`). [`run()`] puts its items to a [`Backend`], writes a JSON line per item as soon as
//! it is finished, and returns a [`Summary`].
//!
//! From file to score: [`dataset`] reads items, [`template`] and [`prompt`] make prompts of them with examples drawn as CPython
//! does ([`mt19937`]), [`work`] makes questions, [`local`] answers them with a model (many at once) and [`via`] through a server, [`score`], [`generate`] and
//! [`perplexity`] hold the rules, [`extract`] finds answers, [`items`] and [`store`] record, [`stats`] and [`summary`] sum up,
//! [`compare`] pairs two runs, [`page`] shows items to people.

pub mod backend;
pub mod compare;
pub mod dataset;
pub mod error;
pub mod extract;
pub mod generate;
pub mod items;
pub mod local;
pub mod mt19937;
pub mod page;
pub mod perplexity;
pub mod prompt;
pub mod run;
pub mod score;
pub mod stats;
pub mod store;
pub mod summary;
pub mod synthetic;
pub mod task;
pub mod template;
#[cfg(test)]
mod testing;
pub mod via;
mod via_http;
pub mod work;

pub use backend::Backend;
pub use error::EvalError;
pub use items::Provenance;
pub use local::LocalModel;
pub use run::{Options, Progress, check, merge, run};
pub use stats::Metric;
pub use store::Shard;
pub use summary::Summary;
pub use task::Task;
pub use via::Via;
