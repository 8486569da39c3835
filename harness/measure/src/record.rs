//! THE record: one JSON object per line of `records.jsonl`, raw samples and what they were taken of, nothing derived.
//!
//! Field names follow llama-bench where they mean the same (`n_threads`, `n_prompt`, `n_gen`, `n_depth`, `samples_ns`). The one
//! derived field, `samples_tokens_per_s`, is written for readers with other tools and computed anew when read here.
//! Fields that a reader does not know are ignored, fields with a default may be missing; anything else that changes meaning
//! raises [`SCHEMA`].

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::git::GitState;
use crate::host::Host;
use crate::limits::{Peaks, Work};

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

    /// The shape's name: given, or that of a synthetic model.
    pub fn shape(&self) -> Option<&str> {
        self.shape.as_deref().or_else(|| self.model.strip_prefix("synthetic:"))
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
    /// Best sample of the MAC probe with the same threads.
    pub macs_per_s: f64,
    /// Last-level cache.
    #[serde(default)]
    pub cache_bytes: u64,
}

impl From<Limits> for Peaks {
    fn from(limits: Limits) -> Self {
        let Limits { bandwidth_bytes_per_s, macs_per_s, cache_bytes } = limits;
        Self { bandwidth_bytes_per_s, macs_per_s, cache_bytes }
    }
}

/// Tokens per second of one model, kernel, thread count and workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// The code that ran.
    #[serde(flatten)]
    pub code: Code,
    /// Threads.
    pub n_threads: usize,
    /// As llama-bench says it: `pp128`, `tg128`, `tg128@d512`.
    pub workload: String,
    /// Tokens prefilled, 0 in decode.
    pub n_prompt: u64,
    /// Tokens decoded, 0 in prefill.
    pub n_gen: u64,
    /// Tokens already in the KV cache.
    #[serde(default)]
    pub n_depth: u64,
    /// What was interleaved with what: records with the same group are comparable sample by sample.
    pub group: String,
    /// The samples.
    #[serde(flatten)]
    pub samples: Samples,
    /// Bytes that must be read per token (weights shared by a batch count by their share).
    pub bytes_per_token: u64,
    /// `bytes_per_token` in parts: `linear`, `lm_head`, `kv`, `norms`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes_per_token_parts: BTreeMap<String, u64>,
    /// Multiply-adds per token.
    pub macs_per_token: u64,
    /// The probes.
    #[serde(default)]
    pub limits: Limits,
    /// Checksum of what was computed: the tokens decoded, or the last logits.
    pub output_checksum: String,
    /// Why the result does not count: impossible, wrong, or failed.
    #[serde(default)]
    pub refused: Option<String>,
}

impl Speed {
    /// What a token costs.
    pub fn work(&self) -> Work {
        Work { bytes_per_token: self.bytes_per_token, macs_per_token: self.macs_per_token }
    }

    /// Refuses the result if its fastest sample beats the measured peaks.
    pub fn check_limits(&mut self) {
        let fastest = self.samples.tokens_per_s().into_iter().max_by(f64::total_cmp);
        if let (None, Some(fastest)) = (&self.refused, fastest) {
            self.refused = crate::limits::refuse(fastest, self.work(), self.limits.into());
        }
    }
}

/// Loading a model, and what was counted meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// Kernel the weights were packed for.
    pub kernel: String,
    /// Threads.
    pub n_threads: usize,
    /// Time from the file (or the seed) to a model that can run, once per repetition. Includes packing.
    pub samples_ns: Vec<u64>,
    /// Bytes of the files.
    pub file_bytes: u64,
    /// Parameters of the linear layers.
    pub n_params_linear: u64,
    /// All parameters, a tied embedding once.
    pub n_params: u64,
    /// The linear weights by value, where they are ternary.
    #[serde(default)]
    pub trits: Option<TritCount>,
}

/// Weights of the linear layers by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TritCount {
    /// -1.
    pub minus: u64,
    /// 0.
    pub zero: u64,
    /// +1.
    pub plus: u64,
    /// Anything else.
    pub other: u64,
}

/// Memory of a loaded model after a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// Kernel the weights were packed for.
    pub kernel: String,
    /// Threads.
    pub n_threads: usize,
    /// What ran: `pp128+tg128`, say.
    pub workload: String,
    /// Weights as the file stores them (for synthetic ones, as it would).
    pub stored_bytes: u64,
    /// The embedding's part of `stored_bytes`.
    pub stored_embedding_bytes: u64,
    /// Files mapped.
    pub mapped_bytes: u64,
    /// Linear layers in the kernel's layout.
    pub packed_bytes: u64,
    /// Embedding and lm head in memory, once where they are tied.
    pub embedding_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Activations, tables and other working memory.
    pub scratch_bytes: u64,
    /// Parameters of the linear layers.
    pub n_params_linear: u64,
    /// Most that was resident while this model was loaded and ran, less `baseline_rss_bytes` where other things were resident.
    pub peak_rss_bytes: u64,
    /// Resident before the model was loaded.
    #[serde(default)]
    pub baseline_rss_bytes: u64,
    /// Whether the peak could be reset before loading; if not it may be that of an earlier model.
    pub peak_was_reset: bool,
}

/// One kernel on one shape, its three phases apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// The code.
    #[serde(flatten)]
    pub code: Code,
    /// Output rows.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Tokens.
    pub m: usize,
    /// Threads.
    pub n_threads: usize,
    /// `hot`: weights in cache. `cold`: weights come from memory.
    pub cache: String,
    /// What was interleaved with what.
    pub group: String,
    /// Times of `pack`.
    #[serde(default)]
    pub pack_ns: Vec<u64>,
    /// Times of `prepare`.
    #[serde(default)]
    pub prepare_ns: Vec<u64>,
    /// Times of `compute`.
    pub compute_ns: Vec<u64>,
    /// Round of each sample.
    #[serde(default)]
    pub samples_round: Vec<u32>,
    /// Bytes of the packed matrix.
    pub packed_bytes: u64,
    /// The probes.
    #[serde(default)]
    pub limits: Limits,
    /// Checksum of the sums.
    pub output_checksum: String,
    /// Why the result does not count.
    #[serde(default)]
    pub refused: Option<String>,
}

/// A peak of the hardware. Its value is the best sample: a limit is what is possible, not what is usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// [`Probe::BANDWIDTH`] or [`Probe::MACS`].
    pub name: String,
    /// Instructions of the inner loop: `64-byte loads`, `vpdpbusd zmm`.
    pub instructions: String,
    /// Threads.
    pub n_threads: usize,
    /// Bytes read or multiply-adds done in one sample, by all threads together.
    pub work_per_sample: u64,
    /// Time of each sample.
    pub samples_ns: Vec<u64>,
}

impl Probe {
    /// Name of the probe that reads memory.
    pub const BANDWIDTH: &str = "read_bandwidth";
    /// Name of the probe that multiplies and adds.
    pub const MACS: &str = "int8_macs";

    /// The best sample, in bytes or multiply-adds per second.
    pub fn peak_per_s(&self) -> Option<f64> {
        let best = self.samples_ns.iter().copied().filter(|&ns| ns > 0).min()?;
        Some(self.work_per_sample as f64 * 1e9 / best as f64)
    }
}

/// A kernel compared with the oracle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    /// The code.
    #[serde(flatten)]
    pub code: Code,
    /// The kernel's layout: `i2s`, `tl1`.
    pub layout: String,
    /// Shapes tried, `[n, k, m]`.
    pub shapes: Vec<[usize; 3]>,
    /// Matrices times inputs tried.
    pub cases: u64,
    /// Whether every sum was equal (or, for a bounded kernel, within its bound).
    pub ok: bool,
    /// The first sum that was wrong: shape, case, place, expected, got.
    #[serde(default)]
    pub first_mismatch: Option<String>,
    /// Why the kernel could not run here, if it could not; `ok` is false then.
    #[serde(default)]
    pub skipped: Option<String>,
}

/// Greedy tokens of a kernel against those of another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// The kernel whose tokens count as right.
    pub reference_kernel: String,
    /// The code compared with it.
    #[serde(flatten)]
    pub code: Code,
    /// The kernel's layout.
    pub layout: String,
    /// Prompts.
    pub n_prompts: u64,
    /// Tokens generated.
    pub n_tokens: u64,
    /// Tokens that differ. After the first difference in a generation all that follow count.
    pub n_differ: u64,
}

/// A task's score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// The code.
    #[serde(flatten)]
    pub code: Code,
    /// Task with its version: `piqa@1`.
    pub task: String,
    /// Examples shown before each item.
    pub n_fewshot: u32,
    /// Items scored, or tokens of a perplexity task.
    pub n: u64,
    /// Items in the whole set.
    pub n_total: u64,
    /// Correct items by metric: `acc`, `acc_norm`, `strict`, `flexible`.
    #[serde(default)]
    pub correct: BTreeMap<String, u64>,
    /// Sum of negative log-likelihoods (natural logarithm), for perplexity.
    #[serde(default)]
    pub nll_sum: Option<f64>,
    /// Sum of their squares, for its standard error.
    #[serde(default)]
    pub nll_square_sum: Option<f64>,
    /// Data the items came from.
    pub data: String,
    /// Time of the evaluation.
    pub wall_ns: u64,
    /// File with one line per item, beside the records.
    pub items_file: String,
}

/// A verdict as it was printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The claim's id, with its part after a slash.
    pub id: String,
    /// Verdict in words.
    pub verdict: String,
    /// Published value.
    pub published: String,
    /// Measured value.
    pub measured: String,
    /// Why.
    pub reason: String,
}
