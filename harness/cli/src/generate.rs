//! `ternbench generate`: continues a prompt and ends with a line of speeds.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use ternbench_kernels::Pool;
use ternbench_measure::Env;
use ternbench_model::chat::{ChatFormat, Message};
use ternbench_model::sampler::Sampler;
use ternbench_model::speculate::Speculator;
use ternbench_model::{Logits, Segment, Tokenizer};

use crate::open::{HeadArg, Loaded, ModelArgs};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench generate -m model.gguf -p 'The capital of France is' -n 32
  ternbench generate -m model.gguf --chat -p 'What is 2+2?' --temperature 0.7 --seed 3")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue
    #[arg(short, long)]
    prompt: String,
    /// Most tokens to generate
    #[arg(short, long, default_value_t = 128)]
    n_gen: usize,
    /// Treat the prompt as a user's message, in the model's chat format
    #[arg(long)]
    chat: bool,
    /// A system message, with --chat
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the so many likeliest tokens (0: all)
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draft up to so many tokens a pass from what the text said before; the tokens are the same (greedy only)
    #[arg(long, value_name = "N", default_value_t = 0)]
    speculate: usize,
    #[command(flatten)]
    head: HeadArg,
}

/// The tokenizer, and the tokens to continue.
fn prompt(args: &Args) -> Result<(Tokenizer, Vec<u32>)> {
    let tokenizer = args.model.tokenizer()?;
    let prompt = if args.chat {
        let mut messages: Vec<_> = args.system.iter().map(Message::system).collect();
        messages.push(Message::user(&args.prompt));
        let source = crate::open::source(&args.model.model, args.model.layout.into())?;
        ChatFormat::of(source.config().architecture, &tokenizer)?.encode(&tokenizer, &messages, true)?
    } else {
        tokenizer.encode_default(&args.prompt)?
    };
    if prompt.is_empty() {
        bail!("the prompt has no tokens: give -p some text");
    }
    Ok((tokenizer, prompt))
}

fn load(args: &Args, env: &Env) -> Result<(Loaded, Pool)> {
    let (loaded, pool) = args.model.load(env)?;
    let loaded = if args.temperature == 0.0 { loaded.with_head(args.head, &pool, None) } else { loaded };
    Ok((loaded, pool))
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let began = Instant::now();
    if !(args.temperature.is_finite() && args.temperature >= 0.0 && args.top_p > 0.0 && args.top_p <= 1.0) {
        bail!("--temperature must be 0 or more, --top-p above 0 and at most 1");
    }
    if args.speculate > 0 && args.temperature > 0.0 {
        bail!("--speculate verifies greedy tokens: leave --temperature at 0");
    }
    // Making a tokenizer takes one thread longer than loading packed weights takes the others.
    let (prompt, loaded) = std::thread::scope(|scope| {
        let prompt = scope.spawn(|| prompt(&args));
        let loaded = load(&args, env);
        (prompt.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
    });
    let (tokenizer, prompt) = prompt?;
    let (loaded, pool) = loaded?;
    let model = &loaded.model;
    let room = model.config().context.saturating_sub(prompt.len());
    if room == 0 {
        bail!("the prompt has {} tokens, the model's context is {}", prompt.len(), model.config().context);
    }
    let n_gen = args.n_gen.min(room);
    let mut engine = loaded.engine(&pool);
    let mut cache = engine.new_cache(prompt.len() + n_gen);
    let mut sampler = Sampler::new(args.temperature, args.top_k, args.top_p, args.seed);
    let mut speculator = Speculator::new(args.speculate);
    let mut text = prompt.clone();
    let mut next = |text: &[u32], most: usize| -> Result<Vec<u32>> {
        if args.temperature == 0.0 {
            let best = speculator.next(&mut engine, &mut cache, text, most)?;
            return Ok(best.iter().map(|&(token, _)| token).collect());
        }
        let pending = &text[cache.len()..];
        let segment = Segment { cache: &mut cache, tokens: pending, logits: Logits::Last };
        Ok(vec![sampler.sample(engine.forward(&mut [segment])?)])
    };
    let mut stream = tokenizer.decode_stream();
    let mut out = std::io::stdout().lock();

    let start = Instant::now();
    let mut tokens = next(&text, 1)?;
    let (prefill, first_token) = (start.elapsed(), began.elapsed());
    let start = Instant::now();
    let mut generated = 0;
    'tokens: loop {
        for &token in &tokens {
            if generated == n_gen || tokenizer.eos_ids().contains(&token) {
                break 'tokens;
            }
            generated += 1;
            text.push(token);
            write!(out, "{}", stream.push(token)?)?;
        }
        out.flush()?;
        if generated == n_gen {
            break;
        }
        tokens = next(&text, n_gen - generated)?;
    }
    writeln!(out, "{}", stream.finish()?)?;
    let decode = start.elapsed();
    let speed = |n: usize, time: std::time::Duration| n as f64 / time.as_secs_f64().max(1e-9);
    let drafts = speculator.count();
    let drafts = match drafts.drafted {
        0 => String::new(),
        drafted => format!(", {} of {drafted} drafted tokens accepted", drafts.accepted),
    };
    eprintln!(
        "[first token after {:.2} s; {} tokens prefilled at {:.1}/s, {} decoded at {:.1}/s{drafts}; {}, {}, {} threads]",
        first_token.as_secs_f64(),
        prompt.len(),
        speed(prompt.len(), prefill),
        generated,
        speed(generated.saturating_sub(1), decode),
        model.weights_name(),
        model.kernel_name(),
        pool.n_threads()
    );
    Ok(ExitCode::SUCCESS)
}
