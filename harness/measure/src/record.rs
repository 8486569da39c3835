//! THE record: one JSON object per line of `records.jsonl`, raw samples and what they were taken of, nothing derived.
//!
//! Field names follow llama-bench where they mean the same (`n_threads`, `n_prompt`, `n_gen`, `n_depth`, `samples_ns`). The one
//! derived field, `samples_tokens_per_s`, is written for readers with other tools and computed anew when read here.
//! Fields that a reader does not know are ignored, fields with a default may be missing; anything else that changes meaning
//! raises [`SCHEMA`].

mod kinds;
mod protocol;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::git::GitState;
use crate::host::Host;
use crate::limits::Peaks;

pub use kinds::{
    Accuracy, Agreement, Claim, Drafts, Gate, Head, Kernel, Load, Memory, Noise, Probe, Speed, TritCount, Verify,
};
pub use protocol::{Opponent, Protocol};

/// Version of this schema.
pub const SCHEMA: u32 = 1;

/// One line: who measured what, when and where, and the measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The measurement, with its `kind`.
    #[serde(flatten)]
    pub body: Body,
    /// Name of the run's folder.
    pub run_id: String,
    /// When the record was written: RFC 3339, UTC.
    pub time: String,
    /// Version of ternbench.
    pub ternbench_version: String,
    /// Commit of ternbench, or `unknown`.
    pub git_commit: String,
    /// Whether tracked files were changed on top of it.
    pub git_dirty: bool,
    /// `release` or `debug`.
    pub build_profile: String,
    /// The machine, as in `host.json`.
    pub host_id: String,
    /// The machine's CPU model: absolute speeds hold only there.
    pub cpu: String,
    /// Architecture the program was built for: `x86_64`, `aarch64`.
    pub arch: String,
}

/// What every record of a run shares; makes records of measurements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunContext {
    /// Name of the run's folder.
    pub run_id: String,
    /// Version of ternbench.
    pub ternbench_version: String,
    /// Commit of ternbench.
    pub git: GitState,
    /// [`Host::host_id`].
    pub host_id: String,
    /// [`Host::cpu`].
    pub cpu: String,
    /// [`Host::arch`].
    pub arch: String,
}

impl RunContext {
    /// The context of a run on this host, at the commit that is checked out now.
    pub fn new(run_id: impl Into<String>, host: &Host) -> Self {
        Self {
            run_id: run_id.into(),
            ternbench_version: env!("CARGO_PKG_VERSION").into(),
            git: crate::git::state(),
            host_id: host.host_id.clone(),
            cpu: host.cpu.clone(),
            arch: host.arch.clone(),
        }
    }

    /// A record of a measurement, made now.
    pub fn record(&self, body: impl Into<Body>) -> Record {
        Record {
            schema: SCHEMA,
            body: body.into(),
            run_id: self.run_id.clone(),
            time: crate::clock::now_rfc3339(),
            ternbench_version: self.ternbench_version.clone(),
            git_commit: self.git.commit.clone(),
            git_dirty: self.git.dirty,
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            host_id: self.host_id.clone(),
            cpu: self.cpu.clone(),
            arch: self.arch.clone(),
        }
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// The measurement itself. `kind` says which.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        #[expect(clippy::large_enum_variant, reason = "a run has hundreds of records, not millions")]
        pub enum Body { $($(#[$doc])* $name($name),)* }

        $(impl From<$name> for Body {
            fn from(body: $name) -> Self {
                Self::$name(body)
            }
        })*
    };
}

bodies! {
    /// A peak of the hardware.
    Probe;
    /// A kernel compared with the oracle.
    Verify;
    /// Tokens per second.
    Speed;
    /// A contender measured against itself.
    Noise;
    /// Loading a model.
    Load;
    /// Memory of a loaded model.
    Memory;
    /// One kernel on one matrix shape.
    Kernel;
    /// Greedy tokens of two kernels compared.
    Agreement;
    /// A task's score.
    Accuracy;
    /// A model against its reference.
    Gate;
    /// A verdict, as the run printed it. Reports judge anew.
    Claim;
}

/// A model and what it was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// As given on the command line: a file name without its folder, or `synthetic:NAME`.
    pub model: String,
    /// SHA-256 of the file or, for synthetic weights, a hash of shape and seed.
    pub model_hash: String,
    /// `bitnet`, `llama`, `gemma3`, `qwen2`, `minicpm`.
    pub architecture: String,
    /// The model of `datasets/models` that has this shape, where there is one: `bitnet-2b4t`, `llama-3.2-1b`.
    #[serde(default)]
    pub shape: Option<String>,
    /// What the linear layers hold: `ternary`, `f16`, `bf16`, `f32`, `q8_0`, `q4_0`.
    pub weights: String,
}

impl Model {
    /// Whether the weights are made up: right for speed and memory, meaningless for accuracy.
    pub fn is_synthetic(&self) -> bool {
        self.model.starts_with("synthetic:")
    }

    /// The shape's name: given, or that of a synthetic model (`bitnet-2b4t` for `synthetic:bitnet-2b4t@f16`).
    pub fn shape(&self) -> Option<&str> {
        let synthetic = || self.model.strip_prefix("synthetic:").and_then(|name| name.split('@').next());
        self.shape.as_deref().or_else(synthetic)
    }
}

/// The code that ran: part of the "proof of kernel".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// Kernel of the linear layers: a name of the registry, or of a dense path (`avx512-f16-fma`).
    pub kernel: String,
    /// Instruction set that ran.
    pub isa: String,
    /// Whether the kernel is bit-exact (`Exactness::Exact`).
    #[serde(default = "yes")]
    pub exact: bool,
}

fn yes() -> bool {
    true
}

/// Raw samples of one contender. Written with `samples_tokens_per_s` beside them, which is never read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Samples {
    /// Tokens that one sample made.
    #[serde(rename = "tokens_per_sample")]
    pub tokens: u64,
    /// Total time of each repetition.
    #[serde(rename = "samples_ns")]
    pub ns: Vec<u64>,
    /// Round of each sample: samples of one `group` and round, in different records, are pairs.
    #[serde(rename = "samples_round", default)]
    pub rounds: Vec<u32>,
    /// Place of each sample within its round.
    #[serde(rename = "samples_position", default)]
    pub positions: Vec<u32>,
}

impl Samples {
    /// Tokens per second of every sample.
    pub fn tokens_per_s(&self) -> Vec<f64> {
        self.ns.iter().map(|&ns| self.tokens as f64 * 1e9 / ns as f64).collect()
    }
}

impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("tokens_per_sample", &self.tokens)?;
        map.serialize_entry("samples_ns", &self.ns)?;
        map.serialize_entry("samples_round", &self.rounds)?;
        map.serialize_entry("samples_position", &self.positions)?;
        map.serialize_entry("samples_tokens_per_s", &self.tokens_per_s())?;
        map.end()
    }
}

/// The probes that a speed is held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Best sample of the bandwidth probe with the same threads.
    pub bandwidth_bytes_per_s: f64,
    /// The MAC probe with the same threads: its best sample, or what was usual [beside the run](Self::at_clock).
    pub macs_per_s: f64,
    /// The probe of f32 fused multiply-adds with the same threads; 0 in records that left attention out of the limit.
    #[serde(default)]
    pub f32_fmas_per_s: f64,
    /// Last-level cache.
    #[serde(default)]
    pub cache_bytes: u64,
}

impl Limits {
    /// With what the machine could multiply beside a run. Clocks change within seconds, by more than results differ; the peaks of floats
    /// change with those of the layers' arithmetic.
    pub fn at_clock(self, macs_per_s: f64) -> Self {
        let change = if self.macs_per_s > 0.0 { macs_per_s / self.macs_per_s } else { 1.0 };
        Self { macs_per_s, f32_fmas_per_s: self.f32_fmas_per_s * change, ..self }
    }
}

impl From<Limits> for Peaks {
    fn from(limits: Limits) -> Self {
        let Limits { bandwidth_bytes_per_s, macs_per_s, f32_fmas_per_s, cache_bytes } = limits;
        Self { bandwidth_bytes_per_s, macs_per_s, f32_fmas_per_s, cache_bytes }
    }
}
