//! `ternbench generate`: continues a prompt and ends with a line of speeds.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use ternbench_measure::Env;
use ternbench_model::chat::{ChatFormat, Message};
use ternbench_model::sampler::Sampler;
use ternbench_model::{Engine, Logits, Segment};

use crate::open::{HeadArg, ModelArgs};

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
    #[command(flatten)]
    head: HeadArg,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0 && args.top_p > 0.0 && args.top_p <= 1.0) {
        bail!("--temperature must be 0 or more, --top-p above 0 and at most 1");
    }
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
    let (mut loaded, pool) = args.model.load(env)?;
    if args.temperature == 0.0 {
        loaded = loaded.with_head(args.head, &pool, None);
    }
    let model = &loaded.model;
    let room = model.config().context.saturating_sub(prompt.len());
    if room == 0 {
        bail!("the prompt has {} tokens, the model's context is {}", prompt.len(), model.config().context);
    }
    let n_gen = args.n_gen.min(room);
    let mut engine = Engine::new(model, &pool);
    let mut cache = engine.new_cache(prompt.len() + n_gen);
    let mut sampler = Sampler::new(args.temperature, args.top_k, args.top_p, args.seed);
    let mut next = |engine: &mut Engine<'_>, tokens: &[u32]| match args.temperature {
        0.0 => engine.next_token(&mut cache, tokens),
        _ => {
            let segment = Segment { cache: &mut cache, tokens, logits: Logits::Last };
            Ok(sampler.sample(engine.forward(&mut [segment])?))
        }
    };
    let mut stream = tokenizer.decode_stream();
    let mut out = std::io::stdout().lock();

    let start = Instant::now();
    let mut token = next(&mut engine, &prompt)?;
    let prefill = start.elapsed();
    let start = Instant::now();
    let mut generated = 0;
    while generated < n_gen && !tokenizer.eos_ids().contains(&token) {
        generated += 1;
        write!(out, "{}", stream.push(token)?)?;
        out.flush()?;
        if generated < n_gen {
            token = next(&mut engine, &[token])?;
        }
    }
    writeln!(out, "{}", stream.finish()?)?;
    let decode = start.elapsed();
    let speed = |n: usize, time: std::time::Duration| n as f64 / time.as_secs_f64().max(1e-9);
    eprintln!(
        "[{} tokens prefilled at {:.1}/s, {} decoded at {:.1}/s; {}, {}, {} threads]",
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
