//! `ternbench model verify`: whether two files hold the same model.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use ternbench_measure::Env;
use ternbench_model::weights::compare::{self, Comparison};
use ternbench_model::{Engine, Logits, ModelConfig, Segment, Transformer};

use super::Output;
use crate::console::bar;
use crate::open::{self, LayoutArg};

pub const EXAMPLES: &str = "\
Example:
  ternbench model verify bitnet-b1.58-2B-4T/ ggml-model-i2_s.gguf
Exit code 0: they agree; 1: they do not, and the worst tensors are listed.";

/// How many positions the logits are compared at.
const N_TOKENS: usize = 16;

/// The worst tensors that are listed.
const LISTED: usize = 10;

#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file or a folder
    a: String,
    /// Another one
    b: String,
    /// The largest difference of floats that still agrees, as a share of the tensor's largest value. Trits must be the same
    #[arg(long, default_value_t = 1e-5)]
    tolerance: f64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    layout: LayoutArg,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let a = open::source(&args.a, args.layout.into())?;
    let b = open::source(&args.b, args.layout.into())?;
    let shapes = compare::shapes(a.config(), b.config());
    if !shapes.is_empty() {
        report(&args, &shapes, &[], None)?;
        return Ok(ExitCode::FAILURE);
    }
    let bar = bar(a.config().n_layers as u64, "comparing");
    let tensors = compare::tensors(&*a, &*b, &|layers| bar.set_position(layers as u64))?;
    bar.finish_and_clear();
    let pool = open::pool(open::threads(None, env))?;
    let kernel = open::kernel(None, env)?;
    let mut both = Vec::new();
    for source in [&a, &b] {
        let model = Transformer::load(&**source, kernel, &pool, &|_| {})?;
        let mut engine = Engine::new(&model, &pool);
        let tokens = tokens(model.config());
        let mut cache = engine.new_cache(tokens.len());
        let segment = Segment { cache: &mut cache, tokens: &tokens, logits: Logits::From(0) };
        both.push(engine.forward(&mut [segment])?.to_vec());
    }
    let mut logits = compare::Error::default();
    both[0].iter().zip(&both[1]).for_each(|(&a, &b)| logits.add(a, b));
    let agree = tensors.iter().all(|tensor| tensor.agrees(args.tolerance)) && logits.share() <= args.tolerance;
    report(&args, &shapes, &tensors, Some(logits.share()))?;
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tokens spread over the vocabulary.
fn tokens(config: &ModelConfig) -> Vec<u32> {
    (0..N_TOKENS.min(config.context)).map(|i| (i * 7919 % config.vocab) as u32).collect()
}

fn report(args: &Args, shapes: &[String], tensors: &[Comparison], logits: Option<f64>) -> Result<()> {
    let mut differ: Vec<&Comparison> = tensors.iter().filter(|tensor| !tensor.agrees(args.tolerance)).collect();
    if args.output == Output::Json {
        let agree = shapes.is_empty() && differ.is_empty() && logits.is_some_and(|error| error <= args.tolerance);
        let value = json!({
            "agree": agree, "shapes": shapes, "tensors": tensors, "logits_error": logits, "tolerance": args.tolerance
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    for difference in shapes {
        println!("differs: {difference}");
    }
    differ.sort_by(|a, b| {
        (b.trits_differ, b.error).partial_cmp(&(a.trits_differ, a.error)).unwrap_or(a.tensor.cmp(&b.tensor))
    });
    for tensor in differ.iter().take(LISTED) {
        match tensor.trits_differ {
            Some(trits) if trits > 0 => println!("differs: {}: {trits} trits", tensor.tensor),
            Some(_) => println!("differs: {}: its scale by {:.1e}", tensor.tensor, tensor.error),
            None => println!("differs: {}: by {:.1e} of its largest value", tensor.tensor, tensor.error),
        }
    }
    if differ.len() > LISTED {
        println!("and {} tensors more", differ.len() - LISTED);
    }
    let Some(logits) = logits else { return Ok(()) };
    let ternary = tensors.iter().filter(|tensor| tensor.trits_differ.is_some()).count();
    let worst = tensors.iter().map(|tensor| tensor.error).fold(0.0, f64::max);
    println!(
        "{} of {} tensors agree ({ternary} ternary; largest difference of floats {worst:.1e}); logits within {logits:.1e}",
        tensors.len() - differ.len(),
        tensors.len()
    );
    Ok(())
}
