//! The server: connections, paths, and an orderly end.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ternbench_model::Tokenizer;
use ternbench_model::batch::{Batch, ForwardPass};
use ternbench_model::config::Architecture;

use crate::body::Body;
use crate::completion;
use crate::error::ApiError;
use crate::http::{Connection, Incoming, Request};
use crate::queue::{self, Queue};

/// What is served.
pub struct Served<'m> {
    /// Its tokenizer.
    pub tokenizer: &'m Tokenizer,
    /// Decides the chat format.
    pub architecture: Architecture,
    /// Logits per token.
    pub vocab: usize,
    /// Most tokens of a prompt and its completion.
    pub context: usize,
    /// The model's name in requests and responses.
    pub name: String,
    /// What identifies its weights.
    pub model_hash: String,
    /// The kernel that runs.
    pub kernel: String,
}

/// How much is taken from clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most prompts that wait, beyond those at work.
    pub max_waiting: usize,
    /// Most clients at once.
    pub max_connections: usize,
    /// How long requests at work may go on once the server is asked to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body: 4 << 20, max_waiting: 256, max_connections: 256, grace: Duration::from_secs(10) }
    }
}

/// How often the listener is asked for clients.
const ACCEPT_TICK: Duration = Duration::from_millis(5);

/// Serves until `stop` says so: from then on no request is taken, those at work may go on for [`Limits::grace`], and the rest
/// are told that the server is shutting down.
///
/// # Errors
/// When the listener fails.
pub fn serve<M: ForwardPass>(
    listener: &TcpListener,
    served: &Served<'_>,
    batch: &mut Batch<M>,
    limits: Limits,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let (queue, jobs) = queue::queue(batch.limits().max_requests.saturating_add(limits.max_waiting));
    let connections = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (queue, connections) = (&queue, &connections);
        let accepting = scope.spawn(move || {
            while !stop() {
                let Some(stream) = accept(listener)? else {
                    std::thread::sleep(ACCEPT_TICK);
                    continue;
                };
                if connections.load(Ordering::Relaxed) >= limits.max_connections {
                    refuse(stream, &ApiError::new(503, "too many connections: try again later"));
                    continue;
                }
                connections.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move || {
                    converse(stream, served, queue, limits, stop);
                    connections.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Ok(())
        });
        let since = std::cell::Cell::new(None);
        jobs.run(batch, &|| {
            if accepting.is_finished() && !stop() {
                return true;
            }
            if !stop() {
                return false;
            }
            let since = since.get().unwrap_or_else(|| {
                let now = Instant::now();
                since.set(Some(now));
                now
            });
            queue.n_open() == 0 || since.elapsed() > limits.grace
        });
        accepting.join().unwrap_or_else(|_| Err(io::Error::other("the listener's thread ended early")))
    })
}

/// The next client, if one waits.
fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        // One client's trouble, or a system short of descriptors for a moment.
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

fn refuse(stream: TcpStream, error: &ApiError) {
    if let Ok(mut connection) = Connection::new(stream) {
        // A client that is gone needs no refusal.
        let _ = connection.respond(error.status, &error.body());
    }
}

/// Answers a client's requests, one after the other.
fn converse(stream: TcpStream, served: &Served<'_>, queue: &Queue, limits: Limits, stop: &dyn Fn() -> bool) {
    let Ok(mut connection) = Connection::new(stream) else { return };
    loop {
        let written = match connection.read(limits.max_body, stop) {
            Incoming::End => return,
            Incoming::Bad(error) => connection.respond(error.status, &error.body()),
            Incoming::Request(request) => answer(served, queue, &mut connection, &request),
        };
        // Who does not take the response is gone.
        if written.is_err() {
            return;
        }
        if !connection.keeps_alive() {
            return connection.close();
        }
    }
}

fn answer(served: &Served<'_>, queue: &Queue, connection: &mut Connection, request: &Request) -> io::Result<()> {
    let path = request.path.as_str();
    let one = path.strip_prefix("/v1/models/");
    let body = match (request.method.as_str(), path) {
        ("GET", "/health") => Ok(json!({"status": "ok", "open": queue.n_open(), "cancelled": queue.n_cancelled()})),
        ("GET", "/v1/models") => Ok(json!({"object": "list", "data": [model(served)]})),
        ("GET", _) if one == Some(&served.name) => Ok(model(served)),
        ("POST", "/v1/completions" | "/v1/chat/completions") => {
            match Body::parse(&request.body, path == "/v1/chat/completions") {
                Ok(body) => return completion::answer(served, queue, connection, body),
                Err(error) => Err(error),
            }
        }
        (method, "/health" | "/v1/models" | "/v1/completions" | "/v1/chat/completions") => {
            Err(ApiError::new(405, format!("{method} is not for {path}")))
        }
        _ => Err(ApiError::new(404, format!("there is nothing at {path}"))),
    };
    match body {
        Ok(body) => connection.respond(200, &body),
        Err(error) => connection.respond(error.status, &error.body()),
    }
}

/// The model, with what a referee wants to know of it beyond OpenAI's fields.
fn model(served: &Served<'_>) -> Value {
    json!({"id": served.name, "object": "model", "created": 0, "owned_by": "ternbench",
        "max_model_len": served.context, "kernel": served.kernel, "model_hash": served.model_hash})
}
