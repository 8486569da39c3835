//! `ternbench serve`: an OpenAI-compatible server over the model.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use ternbench_measure::{Env, interrupt};
use ternbench_model::{Batch, Tokenizer};
use ternbench_serve::{Limits, Served};

use crate::eval::BatchArgs;
use crate::open::{HeadArg, ModelArgs};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  ternbench serve -m model.gguf --port 8080
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"The capital of France is\", \"max_tokens\": 8, \"temperature\": 0}'

Paths: /v1/completions, /v1/chat/completions, /v1/models, /health. No encryption and no keys: put a proxy before it where
others can reach it. Ctrl-C or SIGTERM ends it.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The address to listen on; 0.0.0.0 is every one of this machine
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes a free one, which the first line says
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The model's name for clients; its own when not given
    #[arg(long)]
    name: Option<String>,
    /// Tokenizer of a model that has none, such as synthetic weights: a GGUF file, a tokenizer file or a folder with one
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    batch: BatchArgs,
    /// Prompts that may wait; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_waiting)]
    queue: usize,
    /// Most bytes of a request, in MB
    #[arg(long, value_name = "MB", default_value_t = 4.0)]
    body_mb: f64,
    /// Seconds that requests at work may go on after Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 10)]
    grace: u64,
}

pub fn run(args: Args, env: &Env) -> Result<ExitCode> {
    let tokenizer = match &args.tokenizer {
        Some(path) => Tokenizer::for_model(path)?,
        None => args.model.tokenizer()?,
    };
    // Before the model is loaded: a port in use should not show after a minute.
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .with_context(|| format!("cannot listen on {address}: choose another --port or --host"))?;
    let (loaded, pool) = args.model.load(env)?;
    let loaded = loaded.with_head(HeadArg::default(), &pool, None);
    let config = loaded.model.config();
    let served = Served {
        tokenizer: &tokenizer,
        architecture: config.architecture,
        vocab: config.vocab,
        context: config.context,
        name: args.name.unwrap_or_else(|| loaded.info.model.clone()),
        model_hash: loaded.info.model_hash.clone(),
        kernel: loaded.code().kernel,
    };
    let limits = Limits {
        max_body: (args.body_mb.max(0.0) * 1e6) as usize,
        max_waiting: args.queue,
        grace: Duration::from_secs(args.grace),
        ..Limits::default()
    };
    let mut batch = Batch::new(loaded.engine(&pool), args.batch.limits());
    interrupt::listen_to_termination();
    println!("serving {} on http://{} ({})", served.name, listener.local_addr()?, served.kernel);
    ternbench_serve::serve(&listener, &served, &mut batch, limits, &interrupt::requested)?;
    Ok(ExitCode::SUCCESS)
}
