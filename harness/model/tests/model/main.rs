//! The tests of this crate in one program, so that they are linked once; `bad_files` has an allocator of its own.

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
