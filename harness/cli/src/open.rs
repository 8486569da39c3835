//! From a command line's MODEL and KERNEL to a model that can run.

use std::num::ParseFloatError;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use ternbench_kernels::dense::Activations;
use ternbench_kernels::{Dispatch, Exactness, Pool, TernaryKernel, registry};
use ternbench_measure::{Env, memory, record};
use ternbench_model::kv_cache::KvType;
use ternbench_model::manifest::{Manifest, SyntheticType};
use ternbench_model::packed::{PackedSource, Place};
use ternbench_model::weights::synthetic::SyntheticModel;
use ternbench_model::weights::{self, I2sLayout, OpenOptions, WeightSource};
use ternbench_model::{Engine, LoadError, ModelConfig, Tokenizer, Transformer, sanity};

use crate::kernels::{layer_shapes, tuning};

/// Seed of synthetic weights: the same everywhere, so that checksums can be compared.
pub const SEED: u64 = 1;

/// Which model, kernel and threads: the options that most commands share.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelArgs {
    /// A GGUF file, a folder with config.json and safetensors, or synthetic:NAME (NAME in datasets/models; NAME@f16 for the same
    /// shape in half precision)
    #[arg(short, long, value_name = "MODEL")]
    pub model: String,
    /// Kernel of the ternary layers, or DECODE+PREFILL; `auto` takes the exact ones that are fastest here, from a short
    /// measurement kept per machine [env: TERNBENCH_KERNEL]
    #[arg(short, long)]
    pub kernel: Option<String>,
    /// Threads; all cores when not given [env: TERNBENCH_THREADS]
    #[arg(short, long)]
    pub threads: Option<usize>,
    /// What dense weights are multiplied by
    #[arg(long, value_enum, default_value_t)]
    pub activations: ActivationsArg,
    /// What the KV cache keeps keys and values as
    #[arg(long, value_enum, default_value_t)]
    pub kv: KvArg,
    /// Keep the packed weights in files beside the model, and start from them the next time
    #[arg(long)]
    pub packed: bool,
    #[command(flatten)]
    pub layout: LayoutArg,
}

/// `--kv`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvArg {
    /// Floats: the reference for accuracy
    #[default]
    F32,
    /// Half precision, as llama.cpp does: half of the bytes
    F16,
    /// Int8 with a unit for each position and head: a quarter of the bytes
    Int8,
}

impl KvArg {
    /// Those that a claim can be judged with: no published speed is of keys and values in int8.
    pub fn of_claims() -> impl TypedValueParser<Value = Self> {
        let values = [Self::F32, Self::F16].iter().filter_map(Self::to_possible_value);
        PossibleValuesParser::from(values.collect::<Vec<_>>()).try_map(|name| Self::from_str(&name, false))
    }
}

impl From<KvArg> for KvType {
    fn from(arg: KvArg) -> Self {
        match arg {
            KvArg::F32 => Self::F32,
            KvArg::F16 => Self::F16,
            KvArg::Int8 => Self::Int8,
        }
    }
}

/// `--activations`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationsArg {
    /// Floats: the reference for accuracy
    #[default]
    F32,
    /// Rounded where the CPU is faster so: to int8 by blocks of 32, and to bf16 for BF16, as llama.cpp does; for F16 to two bf16, with AMX.
    /// The fast way for batches
    #[value(alias = "int8")]
    Rounded,
}

impl From<ActivationsArg> for Activations {
    fn from(arg: ActivationsArg) -> Self {
        match arg {
            ActivationsArg::F32 => Self::F32,
            ActivationsArg::Rounded => Self::Rounded,
        }
    }
}

/// `--i2s-layout`.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct LayoutArg {
    /// Layout of I2_S tensors in a GGUF file; the file does not say, and a wrong one gives fluent nonsense
    #[arg(long, value_enum, default_value_t)]
    pub i2s_layout: I2sLayoutArg,
}

/// The names of the layouts.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default)]
pub enum I2sLayoutArg {
    /// Blocks of 128 weights: the official file
    #[default]
    X86,
    /// A byte holds a column of four rows
    X86Interleaved,
    /// Blocks of 64 weights
    Arm,
}

impl From<LayoutArg> for OpenOptions {
    fn from(arg: LayoutArg) -> Self {
        let i2s_layout = match arg.i2s_layout {
            I2sLayoutArg::X86 => I2sLayout::X86,
            I2sLayoutArg::X86Interleaved => I2sLayout::X86Interleaved,
            I2sLayoutArg::Arm => I2sLayout::Arm,
        };
        Self { i2s_layout }
    }
}

impl ModelArgs {
    /// Opens and loads the model on the pool it returns.
    pub fn load(&self, env: &Env) -> Result<(Loaded, Pool)> {
        let pool = pool(threads(self.threads, env))?;
        let source = source(&self.model, self.layout.into())?;
        let mut kernels = dispatch(self.kernel.as_deref(), source.config(), &pool, env)?;
        kernels.activations = self.activations.into();
        let start = Start::now();
        let place = if self.packed { or_warn(Place::beside(&*source)).flatten() } else { None };
        if self.packed && source.origin().is_none() {
            eprintln!("warning: {} has no file that anything could be kept beside", self.model);
        }
        let kept = place.as_ref().and_then(|place| or_warn(place.linears(&*source, &kernels, &pool)).flatten());
        let from: &dyn WeightSource = kept.as_ref().map_or(&*source, |kept| kept);
        let mut loaded = Loaded::since(start, from, kernels, &pool)?.with_kv(self.kv);
        if kept.is_some() {
            // The norms lie all over the file, and in huge pages each makes 2 MB of it resident.
            source.release();
        }
        loaded.linears_are_windows = kept.as_ref().is_some_and(PackedSource::is_mapped);
        // What was kept passed when it was packed.
        let is_checked = kept.is_some() || source.stored().iter().all(|tensor| tensor.ty != "I2_S");
        let is_sound = is_checked || !self.warn_of_noise(&loaded.model, &pool);
        if let (Some(place), None, true) = (&place, &kept, is_sound) {
            or_warn(place.keep_linears(&loaded.model, &loaded.info.model_hash));
        }
        loaded.place = place;
        Ok((loaded, pool))
    }

    /// I2_S files do not say how their bits lie: a model that reads English like noise was probably read wrongly. Whether it does.
    fn warn_of_noise(&self, model: &Transformer, pool: &Pool) -> bool {
        let Ok(tokenizer) = self.tokenizer() else { return false };
        match sanity::surprise(&mut Engine::new(model, pool), &tokenizer) {
            Ok(surprise) if surprise.is_noise() => eprintln!(
                "warning: {} reads English like noise ({:.1} nats a token, chance is {:.1}): another I2_S layout? \
                 `ternbench model inspect --check-layout` tries all",
                self.model, surprise.nats, surprise.chance
            ),
            _ => return false,
        }
        true
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer(&self.model)
    }
}

/// `--head`.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct HeadArg {
    /// How greedy decoding reads the lm head; the tokens are the same
    #[arg(long, value_enum, default_value_t)]
    pub head: Head,
}

/// How greedy decoding reads the lm head.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// Screened where that pays
    #[default]
    Auto,
    /// All of it
    Full,
    /// A 5-bit copy, and the rows of the head that could win by it
    Screened,
}

/// The manifest that has this shape, so that real files and synthetic weights of one model are known to be the same. Where two
/// have it (the twins), the one with such weights.
fn shape_name(config: &ModelConfig, is_ternary: bool) -> Option<String> {
    let folder = datasets().join("models");
    let dimensions = |c: &ModelConfig| [c.n_layers, c.hidden, c.ffn, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab];
    let manifests = Manifest::names(&folder).into_iter().filter_map(|name| Manifest::find(&folder, &name).ok());
    let fits = manifests
        .filter(|m| m.architecture == config.architecture && dimensions(&m.config()) == dimensions(config))
        .max_by_key(|m| (m.shape.weights == SyntheticType::Ternary) == is_ternary);
    fits.map(|manifest| manifest.name)
}

/// The kernel called `name`, or the environment's, or the best.
pub fn kernel(name: Option<&str>, env: &Env) -> Result<&'static dyn TernaryKernel> {
    Ok(registry::find(name.or(env.kernel.as_deref()).unwrap_or("auto"))?)
}

/// The kernels called `name` (`a`, or `a+b` for decode and prefill), or the environment's, or those measured to be the fastest on
/// the model's shapes.
pub fn dispatch(name: Option<&str>, config: &ModelConfig, pool: &Pool, env: &Env) -> Result<Dispatch> {
    match name.or(env.kernel.as_deref()).unwrap_or("auto") {
        "auto" => tuning::dispatch(&layer_shapes(config), pool, env),
        name => Ok(Dispatch::parse(name)?),
    }
}

/// The number asked for, or the environment's, or all cores.
pub fn threads(asked: Option<usize>, env: &Env) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    asked.or(env.threads).unwrap_or_else(cores).max(1)
}

/// Threads, at most: workers wait spinning, so that far more of them than cores do not get anywhere.
pub const MAX_THREADS: usize = 1024;

/// Whether there can be so many threads.
pub fn check_threads(n_threads: usize) -> Result<()> {
    ensure!((1..=MAX_THREADS).contains(&n_threads), "{n_threads} threads: there can be 1 to {MAX_THREADS}");
    Ok(())
}

/// A pool of `n_threads`.
pub fn pool(n_threads: usize) -> Result<Pool> {
    check_threads(n_threads)?;
    Pool::new(n_threads).with_context(|| format!("cannot start {n_threads} threads"))
}

/// A time in seconds, of an argument.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Binds every worker of `pool` to a core of its own.
pub fn pin(pool: &Pool) -> Result<()> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let n_threads = pool.n_threads();
    if cores.len() < n_threads {
        bail!("cannot bind {n_threads} threads to cores: the system offers {}", cores.len());
    }
    let bound = pool.rayon().broadcast(|worker| core_affinity::set_for_current(cores[worker.index()]));
    if bound.contains(&false) {
        bail!("the system does not let threads be bound to cores");
    }
    Ok(())
}

/// The repository's `datasets` folder: beside the current folder, or where the program was built.
pub fn datasets() -> PathBuf {
    let local = PathBuf::from("datasets");
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    if local.join("models").is_dir() { local } else { built() }
}

/// The manifest called `name`.
pub fn manifest(name: &str) -> Result<Manifest> {
    Ok(Manifest::find(&datasets().join("models"), name)?)
}

/// What the names of models begin with whose weights are made here.
pub const SYNTHETIC: &str = "synthetic:";

/// Opens MODEL.
pub fn source(model: &str, options: OpenOptions) -> Result<Box<dyn WeightSource>> {
    let Some(name) = model.strip_prefix(SYNTHETIC) else {
        return Ok(weights::open(Path::new(model), options)?);
    };
    let (name, ty) = match name.split_once('@') {
        None => (name, None),
        Some((name, "f16")) => (name, Some(SyntheticType::F16)),
        Some((name, "bf16")) => (name, Some(SyntheticType::Bf16)),
        Some((name, "ternary")) => (name, Some(SyntheticType::Ternary)),
        Some((_, ty)) => bail!("'{model}': synthetic weights are ternary, f16 or bf16, not {ty}"),
    };
    Ok(Box::new(SyntheticModel::new(&manifest(name)?, ty, SEED)))
}

/// The tokenizer of MODEL; synthetic models have none.
pub fn tokenizer(model: &str) -> Result<Tokenizer> {
    if model.starts_with(SYNTHETIC) {
        bail!("{model} has no tokenizer: its weights are noise; name a GGUF file or a folder");
    }
    Ok(Tokenizer::for_model(Path::new(model))?)
}

/// What is kept beside a model only saves time: trouble with it is no reason to stop.
fn or_warn<T>(result: Result<T, LoadError>) -> Option<T> {
    result.map_err(|error| eprintln!("warning: {error}")).ok()
}

/// A model in memory, with what loading it showed.
pub struct Loaded {
    /// The model.
    pub model: Transformer,
    /// What it is called in records.
    pub info: record::Model,
    /// What its caches keep keys and values as.
    pub kv: KvType,
    /// How loading went.
    pub load: record::Load,
    /// The process's memory before.
    pub before: memory::ProcessMemory,
    /// Whether the peak of the resident bytes started over.
    pub peak_was_reset: bool,
    /// Whether the packed linear layers are windows into a kept file.
    pub linears_are_windows: bool,
    /// Whether the copy that the head is screened with is one.
    pub screen_is_window: bool,
    /// Where packed forms of its weights are kept, if they are.
    place: Option<Place>,
}

/// The process as it was when loading a model began.
struct Start {
    at: Instant,
    memory: memory::ProcessMemory,
    peak_was_reset: bool,
}

impl Start {
    fn now() -> Self {
        ternbench_kernels::bytes::trim_heap();
        let memory = memory::read().unwrap_or_default();
        Self { memory, peak_was_reset: memory::reset_peak(), at: Instant::now() }
    }
}

impl Loaded {
    /// Loads `source` for `kernels` on `pool`.
    pub fn new(source: &dyn WeightSource, kernels: impl Into<Dispatch>, pool: &Pool) -> Result<Self> {
        Self::since(Start::now(), source, kernels, pool)
    }

    fn since(start: Start, source: &dyn WeightSource, kernels: impl Into<Dispatch>, pool: &Pool) -> Result<Self> {
        let config = source.config();
        let bar = crate::console::bar(config.n_layers as u64, &format!("loading {}", source.name()));
        let model = Transformer::load(source, kernels, pool, &|done| bar.set_position(done as u64))?;
        let load_ns = start.at.elapsed().as_nanos() as u64;
        bar.finish_and_clear();
        let census = model.census();
        let architecture = serde_json::to_value(config.architecture)?;
        let info = record::Model {
            model: source.name().to_owned(),
            model_hash: source.hash()?,
            architecture: architecture.as_str().unwrap_or_default().to_owned(),
            shape: shape_name(config, model.weights_name() == "ternary"),
            weights: model.weights_name().to_lowercase(),
        };
        let trits = (census.ternary_weights > 0).then(|| record::TritCount {
            minus: census.ternary_weights - census.zero_trits - census.plus_trits,
            zero: census.zero_trits,
            plus: census.plus_trits,
            other: 0,
        });
        let load = record::Load {
            model: info.clone(),
            kernel: model.kernel_name().to_owned(),
            n_threads: pool.n_threads(),
            samples_ns: vec![load_ns],
            file_bytes: source.stored_bytes(),
            n_params_linear: census.linear_weights,
            n_params: census.linear_weights + config.embedding_parameters(),
            trits,
            ..record::Load::default()
        };
        Ok(Self {
            model,
            info,
            kv: KvType::default(),
            load,
            before: start.memory,
            peak_was_reset: start.peak_was_reset,
            linears_are_windows: false,
            screen_is_window: false,
            place: None,
        })
    }

    /// Gives the model the copy that its head is screened with, if `head` says so, or takes it from `other`, a model of the same
    /// weights. Making it counts as loading.
    pub fn with_head(mut self, HeadArg { head }: HeadArg, pool: &Pool, other: Option<&Self>) -> Self {
        if head == Head::Screened || (head == Head::Auto && self.model.screen_pays()) {
            let start = Instant::now();
            let kept = self.place.as_ref().and_then(|place| or_warn(place.screen(pool)).flatten());
            self.screen_is_window = kept.as_ref().is_some_and(|&(_, is_mapped)| is_mapped);
            if !kept.is_some_and(|(copy, _)| self.model.screen_with(copy)) {
                self.screen_is_window = false;
                self.model.screen_head(pool, other.and_then(|other| other.model.screen()).cloned());
                if let (Some(place), Some(screen)) = (&self.place, self.model.screen()) {
                    or_warn(place.keep_screen(screen));
                }
            }
            let ns = start.elapsed().as_nanos() as u64;
            self.load.samples_ns.iter_mut().for_each(|load_ns| *load_ns += ns);
        }
        self
    }

    /// Lets [`Self::engine`] keep keys and values as `kv`.
    pub fn with_kv(self, kv: KvArg) -> Self {
        Self { kv: kv.into(), ..self }
    }

    /// An engine on `pool`, with the KV cache that was asked for.
    pub fn engine<'m>(&'m self, pool: &'m Pool) -> Engine<'m> {
        Engine::new(&self.model, pool).with_kv(self.kv)
    }

    /// Whether the linear layers are ternary.
    pub fn is_ternary(&self) -> bool {
        self.info.weights == "ternary"
    }

    /// The code that runs the linear layers.
    pub fn code(&self) -> record::Code {
        code(&self.model.kernel_name())
    }
}

/// A kernel's name, instruction set and exactness, as records hold them. `a+b` is exact if both are.
pub fn code(kernel: &str) -> record::Code {
    let info = |name: &str| registry::KERNELS.iter().map(|entry| entry.info).find(|info| info.name == name);
    let exact = |name: &str| info(name).is_none_or(|info| info.exactness == Exactness::Exact);
    record::Code {
        kernel: kernel.to_owned(),
        isa: kernel.split('-').next().unwrap_or(kernel).to_owned(),
        exact: kernel.split('+').all(exact),
    }
}
