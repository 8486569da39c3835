//! `ternbench model convert`: between GGUF and safetensors, and between storage types; `ternbench model synth`: a synthetic model
//! written the same way.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ternbench_kernels::DenseType;
use ternbench_model::Tokenizer;
use ternbench_model::manifest::SyntheticType;
use ternbench_model::weights::WeightSource;
use ternbench_model::weights::convert::{Conversion, TokenizerFrom, convert};
use ternbench_model::weights::encode::StoredType;
use ternbench_model::weights::gguf::GgufFile;
use ternbench_model::weights::synthetic::SyntheticModel;

use crate::console::{bar, bytes};
use crate::open::{self, LayoutArg};

pub const EXAMPLES: &str = "\
Examples:
  ternbench model convert bitnet-b1.58-2B-4T/ bitnet.i2_s.gguf --type i2_s
  ternbench model convert model.gguf folder/ --type f16
  ternbench model convert checkpoint/ out.gguf --type f16 --tokenizer tokenizer.model
Files appear whole or not at all, and the same conversion gives the same bytes.";

#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file, a folder with config.json and safetensors (sharded or not), or synthetic:NAME
    input: String,
    /// A file that ends in .gguf, or a folder for config.json, model.safetensors and the tokenizer
    output: PathBuf,
    /// Storage type of the linear layers
    #[arg(long = "type", value_enum)]
    ty: TypeArg,
    /// Storage type of the embedding and the head; by default F16 beside trits, Q8_0 beside blocks, else the same type
    #[arg(long, value_enum)]
    embedding_type: Option<TypeArg>,
    /// Take the tokenizer from this model, tokenizer.json or tokenizer.model; `none` leaves it out
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Replace OUTPUT if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    layout: LayoutArg,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum TypeArg {
    /// 32-bit float
    F32,
    /// Half precision
    F16,
    /// bfloat16
    Bf16,
    /// 32 8-bit codes with a scale
    #[value(name = "q8_0")]
    Q8_0,
    /// 32 4-bit codes with a scale
    #[value(name = "q4_0")]
    Q4_0,
    /// Trits, 2 bits, one f32 scale a tensor: bitnet.cpp's type in GGUF, packed uint8 in safetensors
    #[value(name = "i2_s")]
    I2S,
    /// Trits, 1.6875 bits, f16 scales
    #[value(name = "tq1_0")]
    Tq1_0,
    /// Trits, 2.0625 bits, f16 scales
    #[value(name = "tq2_0")]
    Tq2_0,
}

impl From<TypeArg> for StoredType {
    fn from(ty: TypeArg) -> Self {
        match ty {
            TypeArg::F32 => Self::Dense(DenseType::F32),
            TypeArg::F16 => Self::Dense(DenseType::F16),
            TypeArg::Bf16 => Self::Dense(DenseType::BF16),
            TypeArg::Q8_0 => Self::Dense(DenseType::Q8_0),
            TypeArg::Q4_0 => Self::Dense(DenseType::Q4_0),
            TypeArg::I2S => Self::I2S,
            TypeArg::Tq1_0 => Self::Tq1_0,
            TypeArg::Tq2_0 => Self::Tq2_0,
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let source = open::source(&args.input, args.layout.into())?;
    let embedding = match args.embedding_type.map(StoredType::from) {
        None => None,
        Some(StoredType::Dense(ty)) => Some(ty),
        Some(other) => anyhow::bail!("--embedding-type: {} is for trits, an embedding is floats", other.name()),
    };
    let tokenizer = match args.tokenizer {
        Some(path) if path == Path::new("none") => TokenizerFrom::None,
        Some(path) => TokenizerFrom::Path(path),
        None => own_tokenizer(&args.input),
    };
    let conversion = Conversion {
        ty: args.ty.into(),
        embedding,
        tokenizer,
        origin: Some(Path::new(&args.input)),
        force: args.force,
    };
    write(&*source, &args.output, &conversion)
}

/// Converts with a progress bar, and says what was written.
fn write(source: &dyn WeightSource, output: &Path, conversion: &Conversion<'_>) -> Result<()> {
    let bar = bar(0, &format!("writing {}", output.display()));
    let written = convert(source, output, conversion, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let tokenizer = match conversion.tokenizer {
        TokenizerFrom::None => "no tokenizer (--tokenizer names one)",
        _ => "with its tokenizer",
    };
    println!("{}: {}, {}, {tokenizer}", output.display(), bytes(written), conversion.ty.name());
    Ok(())
}

pub const SYNTH_EXAMPLES: &str = "\
Examples:
  ternbench model synth bitnet-2b4t bitnet.gguf          the shape of 2B4T, to time other engines with
  ternbench model synth llama-3.2-1b llama.gguf --type q8_0";

/// `ternbench model synth`: a model of noise in a file, with a generated tokenizer, that other engines can load.
#[derive(clap::Args)]
pub struct SynthArgs {
    /// A shape of datasets/models
    name: String,
    /// A file that ends in .gguf, or a folder
    output: PathBuf,
    /// Storage type of the linear layers; by default I2_S for ternary shapes, else the manifest's
    #[arg(long = "type", value_enum)]
    ty: Option<TypeArg>,
    /// Replace OUTPUT if it exists
    #[arg(long)]
    force: bool,
}

pub fn synth(args: SynthArgs) -> Result<()> {
    let manifest = open::manifest(&args.name)?;
    let source = SyntheticModel::new(&manifest, None, open::SEED);
    let natural = match manifest.shape.weights {
        SyntheticType::Ternary => StoredType::I2S,
        SyntheticType::F16 => StoredType::Dense(DenseType::F16),
        SyntheticType::Bf16 => StoredType::Dense(DenseType::BF16),
    };
    let tokenizer = Tokenizer::generated(manifest.shape.vocab)?;
    let conversion = Conversion {
        ty: args.ty.map_or(natural, StoredType::from),
        embedding: None,
        tokenizer: TokenizerFrom::Made(&tokenizer),
        origin: None,
        force: args.force,
    };
    write(&source, &args.output, &conversion)
}

/// The tokenizer that the input has itself.
fn own_tokenizer(input: &str) -> TokenizerFrom<'static> {
    let path = PathBuf::from(input);
    let has = |file: GgufFile| file.metadata().contains_key("tokenizer.ggml.model");
    let there = if path.is_file() {
        GgufFile::open(&path).is_ok_and(has)
    } else {
        ["tokenizer.json", "tokenizer.model"].iter().any(|name| path.join(name).is_file())
    };
    if there { TokenizerFrom::Path(path) } else { TokenizerFrom::None }
}
