//! Ternary and baseline language models: weight files, tokenizers, and one forward pass that runs on any kernel.

mod attention;
pub mod batch;
pub mod breakdown;
pub mod chat;
pub mod config;
pub mod engine;
pub mod error;
pub mod head;
pub mod kv_cache;
mod layer;
pub mod manifest;
pub mod packed;
mod panels;
pub mod rope;
pub mod sampler;
pub mod sanity;
pub mod segment;
mod slabs;
pub mod speculate;
pub mod tokenizer;
pub mod transformer;
pub mod weights;

pub use batch::Batch;
pub use config::ModelConfig;
pub use engine::Engine;
pub use error::LoadError;
pub use head::HeadUse;
pub use layer::Census;
pub use segment::{Logits, Segment};
pub use tokenizer::Tokenizer;
pub use transformer::Transformer;
