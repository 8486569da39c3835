//! An OpenAI-compatible server over the batched engine, so that programs which know nothing of ternbench, lm-evaluation-harness
//! for one, can put questions to its kernels.
//!
//! A thread per connection reads requests ([`http`], [`body`]) and writes responses ([`completion`]); one more runs the model
//! ([`queue`]) for all of them at once. Nothing that a client can change in the results is ignored in silence: a field that is
//! not known, or asks for what cannot be done, is refused with its name.

pub mod body;
pub mod completion;
pub mod error;
pub mod http;
pub mod queue;
pub mod server;
pub mod text;

pub use error::ApiError;
pub use server::{Limits, Served, serve};
