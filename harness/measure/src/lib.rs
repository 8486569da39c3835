//! Measuring: the interleaving runner, the clock, memory, the host, the limits, the statistics and the one record schema.
//!
//! This crate knows nothing of models or kernels: it times closures, describes the machine and keeps raw samples. What it
//! does and why is in `harness/METHODOLOGY.md`.

pub mod clock;
pub mod energy;
pub mod env;
pub mod git;
pub mod host;
pub mod interrupt;
pub mod limits;
pub mod memory;
pub mod plan;
pub mod record;
pub mod record_file;
pub mod rng;
pub mod run_dir;
pub mod runner;
pub mod stats;

pub use env::Env;
pub use host::Host;
pub use record::{Body, Record, RunContext};
pub use record_file::{Damaged, RecordFile, RecordWriter};
pub use run_dir::RunDir;
pub use runner::{Contender, Cost, Outcome, Plan, interleave};
