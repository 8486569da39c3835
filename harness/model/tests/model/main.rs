//! The tests of this crate, in one program: each would be linked with all it depends on.

mod batch;
mod chat;
#[path = "../common/mod.rs"]
mod common;
mod convert;
mod forward;
mod golden;
mod head;
mod kv_cache;
mod oracle;
mod packed;
mod quants;
mod sanity;
mod speculate;
mod tokenizer;
mod weights;
