//! The kinds of record: what was measured.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Code, Limits, Model, Opponent, Protocol, Samples};
use crate::limits::Work;
use crate::stats::{self, Compared, Estimate};

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
    /// As llama-bench says it: `pp128`, `tg128`, `tg128@d512`; `tg32x8` are 8 sequences.
    pub workload: String,
    /// Tokens prefilled, 0 in decode.
    pub n_prompt: u64,
    /// Tokens decoded of every sequence, 0 in prefill.
    pub n_gen: u64,
    /// Sequences decoded together; 1 in records older than the choice.
    #[serde(default = "one")]
    pub n_parallel: u64,
    /// Tokens already in the KV cache of each.
    #[serde(default)]
    pub n_depth: u64,
    /// What was interleaved with what: records with the same group are comparable sample by sample.
    pub group: String,
    /// The samples.
    #[serde(flatten)]
    pub samples: Samples,
    /// Bytes that must be read per token (weights shared by a batch count by their share).
    pub bytes_per_token: u64,
    /// `bytes_per_token` in parts: `linear`, `lm_head`, `kv`, `norms` (norms and biases), `embedding` (one row).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes_per_token_parts: BTreeMap<String, u64>,
    /// Multiply-adds per token in the arithmetic of the linear layers.
    pub macs_per_token: u64,
    /// Multiply-adds of floats beside those: attention (scores and sums of values), and what a ternary model's head does in floats. 0 in
    /// older records, which left them out.
    #[serde(default)]
    pub fmas_per_token: u64,
    /// How the lm head was read.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// What the KV cache kept keys and values as; empty in records older than the choice, which kept f32.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kv: String,
    /// What became of drafted tokens, where decoding speculated.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub drafts: Option<Drafts>,
    /// The probes: the best that was seen of reading, and what was usual of multiply-adds beside this run, where `macs_per_s_before` tells.
    #[serde(default)]
    pub limits: Limits,
    /// Multiply-adds per second of the bare loop, just before each run, warm-up and twin among them. Empty in older records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub macs_per_s_before: Vec<f64>,
    /// Energy of each sample, in joules, above nothing: idle power is in it. Empty where it was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples_joules: Vec<f64>,
    /// The counters behind `samples_joules`, or why there are none: `not measured: no counter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<String>,
    /// Checksum of what was computed: every token decoded and the bits of the last logits (in decode, of the best of them).
    pub output_checksum: String,
    /// How it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The program that made the result, where it was not ternbench. Its kernel is then unknown, and so is its exactness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opponent: Option<Opponent>,
    /// Why the result does not count: impossible, wrong, or failed.
    #[serde(default)]
    pub refused: Option<String>,
}

/// How decoding read the lm head. Which way it was changes no bit of the results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// `full`, or `screened`: a 5-bit copy of all rows, and the rows that could win by it.
    pub head: String,
    /// The share of rows read again after the copy, on average over its passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_rescored_share: Option<f64>,
    /// The share of positions that read the whole head.
    #[serde(default)]
    pub head_whole_share: f64,
}

/// Speculation: tokens drafted from the text so far and verified several at a time. It changes no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drafts {
    /// Tokens drafted in all runs.
    pub drafted: u64,
    /// Those that greedy decoding gave as well.
    pub drafts_accepted: u64,
    /// Passes in all runs, those without a draft included.
    pub draft_passes: u64,
}

impl Speed {
    /// Whether it decoded one sequence, token by token, from a short prompt: what published decode speeds are of.
    pub fn is_plain_decode(&self) -> bool {
        self.n_gen > 0 && self.n_prompt == 0 && self.n_depth == 0 && self.n_parallel <= 1 && self.drafts.is_none()
    }

    /// Whether keys and values were kept in int8, coarser than anything that published speeds are of.
    pub fn has_int8_kv(&self) -> bool {
        self.kv == "int8"
    }

    /// What a token costs.
    pub fn work(&self) -> Work {
        Work {
            bytes_per_token: self.bytes_per_token,
            macs_per_token: self.macs_per_token,
            fmas_per_token: self.fmas_per_token,
        }
    }

    /// Holds the result against what the machine could multiply meanwhile.
    pub fn follow_clock(&mut self, macs_per_s_before: Vec<f64>) {
        if let Some(usual) = crate::stats::median(&macs_per_s_before) {
            self.limits = self.limits.at_clock(usual);
        }
        self.macs_per_s_before = macs_per_s_before;
    }

    /// Refuses the result if its fastest sample beats the measured peaks.
    pub fn check_limits(&mut self) {
        let fastest = self.samples.tokens_per_s().into_iter().max_by(f64::total_cmp);
        if let (None, Some(fastest)) = (&self.refused, fastest) {
            self.refused = crate::limits::refuse(fastest, self.work(), self.limits.into());
        }
    }
}

/// A contender measured against itself: the A/A run of a group. What it shows beyond 1.0 is noise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// The code that ran.
    #[serde(flatten)]
    pub code: Code,
    /// Threads.
    pub n_threads: usize,
    /// Workload.
    pub workload: String,
    /// The group whose rounds it shared.
    pub group: String,
    /// Times of the contender, one per complete round.
    pub first_ns: Vec<u64>,
    /// Times of its twin in the same rounds.
    pub second_ns: Vec<u64>,
    /// How it was measured.
    #[serde(default)]
    pub protocol: Option<Protocol>,
}

impl Noise {
    /// The ratio of the contender to its twin, which should cover 1.0. `None` without complete rounds.
    pub fn ratio(&self) -> Option<Estimate> {
        let pairs = self.first_ns.iter().zip(&self.second_ns).map(|(&a, &b)| (a as f64, b as f64)).collect();
        Compared::Paired(pairs).interval(stats::SEED)
    }

    /// The noise floor: how far the ratio's interval reaches from 1.0, as a share (0.012 is 1.2 %). A difference smaller
    /// than this was not told apart from none.
    pub fn floor(&self) -> Option<f64> {
        self.ratio().map(|ratio| (1.0 - ratio.low).abs().max((ratio.high - 1.0).abs()))
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
    /// Time to first token: from the file to the first token behind a prompt of `first_token_n_prompt`, loading included,
    /// once per sample of `samples_ns`. Empty where nothing was run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_token_ns: Vec<u64>,
    /// Tokens of that prompt.
    #[serde(default)]
    pub first_token_n_prompt: u64,
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

fn one() -> u64 {
    1
}

/// JSON has names for keys, and a record is read by way of its names: these are numbers.
fn numbered<'de, D: Deserializer<'de>, V: Deserialize<'de>>(deserializer: D) -> Result<BTreeMap<u64, V>, D::Error> {
    let named = BTreeMap::<String, V>::deserialize(deserializer)?;
    named.into_iter().map(|(key, value)| Ok((key.parse().map_err(D::Error::custom)?, value))).collect()
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
    /// Embedding and lm head in memory, once where they are tied, and the copy that the head is screened with.
    pub embedding_bytes: u64,
    /// The part of `embedding_bytes` that is this copy.
    #[serde(default)]
    pub head_screen_bytes: u64,
    /// The part of `packed_bytes` and `embedding_bytes` that is windows into the mapped files, not memory of its own.
    #[serde(default)]
    pub weights_mapped_bytes: u64,
    /// Norms and biases.
    #[serde(default)]
    pub vector_bytes: u64,
    /// KV cache, as much as was taken from the system for it.
    pub kv_bytes: u64,
    /// Activations, tables and other working memory.
    pub scratch_bytes: u64,
    /// Resident after the workload, less `baseline_rss_bytes`: what the parts must add up to. 0 where it was not read.
    #[serde(default)]
    pub resident_bytes: u64,
    /// The part of `resident_bytes` that is pages of mapped files, which the system could drop.
    #[serde(default)]
    pub resident_file_bytes: u64,
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

impl Memory {
    /// The parts that are resident, added up: what ternbench allocated and counted itself, and the file pages touched. To be
    /// held against `resident_bytes`, which the system counted.
    pub fn accounted_bytes(&self) -> u64 {
        let owned_weights = (self.packed_bytes + self.embedding_bytes).saturating_sub(self.weights_mapped_bytes);
        owned_weights + self.vector_bytes + self.kv_bytes + self.scratch_bytes + self.resident_file_bytes
    }

    /// The share of `resident_bytes` that no part explains; negative where the parts add up to more. `None` where
    /// `resident_bytes` was not read.
    pub fn unaccounted_share(&self) -> Option<f64> {
        let resident = self.resident_bytes as f64;
        (resident > 0.0).then(|| (resident - self.accounted_bytes() as f64) / resident)
    }
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
    /// Of items whose solution has so many steps: how many are right by the first metric, and how many there are. Empty where nobody counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "numbered")]
    pub by_steps: BTreeMap<u64, [u64; 2]>,
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

/// A model held against its reference before anything of it is timed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// The code.
    #[serde(flatten)]
    pub code: Code,
    /// What was broken on purpose; nothing for a model that should pass.
    #[serde(default)]
    pub control: Option<String>,
    /// Prompts whose greedy tokens were compared.
    pub n_prompts: u64,
    /// Prompts after which a token differs.
    pub n_differ: u64,
    /// Tokens of the text whose perplexity was compared.
    pub n: u64,
    /// Sum of their negative log-likelihoods (natural logarithm).
    pub nll_sum: f64,
    /// The same sum of the reference.
    pub expected_nll_sum: f64,
    /// Why it is wrong, if it is.
    #[serde(default)]
    pub wrong: Option<String>,
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
