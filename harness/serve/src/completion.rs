//! Completions: from a checked body to work for the model, and from what the model says to a response, whole or streamed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use ternbench_model::Tokenizer;
use ternbench_model::batch::{Event, Finish, Generate, Score, TokenScore};
use ternbench_model::chat::{ChatError, ChatFormat};
use ternbench_model::tokenizer::TokenizerError;

use crate::body::{Body, Prompt};
use crate::error::ApiError;
use crate::http::{Connection, TICK};
use crate::queue::{Answer, Place, Queue, Work};
use crate::server::Served;
use crate::text::{self, Growing, Tokens};

/// Names responses, and seeds those whose client gave no seed.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Answers one request for completions on `connection`.
///
/// # Errors
/// When the client is gone; its work is cancelled then.
pub fn answer(served: &Served<'_>, queue: &Queue, connection: &mut Connection, body: Body) -> io::Result<()> {
    let call = match Call::start(served, queue, body) {
        Ok(call) => call,
        Err(error) => return connection.respond(error.status, &error.body()),
    };
    if call.body.stream { call.stream(connection) } else { call.whole(connection) }
}

/// A request at work.
struct Call<'s> {
    served: &'s Served<'s>,
    body: Body,
    chat: bool,
    id: String,
    created: u64,
    choices: Vec<Choice<'s>>,
    answers: Receiver<(usize, Answer)>,
}

/// What becomes of a prompt.
struct Choice<'s> {
    prompt: Tokens,
    made: Growing<'s>,
    /// Of the prompt's tokens but the first; nothing until they are there.
    prompt_scores: Option<Vec<TokenScore>>,
    scores: Vec<TokenScore>,
    /// `stop` or `length`.
    finish: Option<&'static str>,
    stop_reason: Option<String>,
    /// The text's end, in code points, where a stop string has cut it.
    cut: Option<usize>,
    scoring: Option<Arc<Place>>,
    generating: Option<Arc<Place>>,
    echoed: bool,
    /// Bytes and tokens that a stream has shown.
    shown: (usize, usize),
}

/// Why a wait ended without an answer.
enum Lost {
    Client(io::Error),
    Error(ApiError),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self::Client(error)
    }
}

impl From<ApiError> for Lost {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

fn internal(error: &TokenizerError) -> ApiError {
    ApiError::new(500, error.to_string())
}

/// The tokens of a prompt.
fn tokens(served: &Served<'_>, prompt: &Prompt) -> Result<Tokens, ApiError> {
    let field = |reason: String| ApiError::field("prompt", reason);
    match prompt {
        Prompt::Text(text) => Tokens::of_text(served.tokenizer, text).map_err(|error| field(error.to_string())),
        Prompt::Ids(ids) => match ids.iter().find(|&&id| id as usize >= served.vocab) {
            Some(id) => Err(field(format!("token {id} is not in the vocabulary of {}", served.vocab))),
            None => Tokens::of_ids(served.tokenizer, ids).map_err(|error| field(error.to_string())),
        },
        Prompt::Chat(messages) => {
            let encoded = ChatFormat::of(served.architecture, served.tokenizer)
                .and_then(|format| format.encode(served.tokenizer, messages, true));
            let ids = encoded.map_err(|error: ChatError| ApiError::field("messages", error))?;
            Ok(Tokens { ids, ..Tokens::default() })
        }
    }
}

impl<'s> Call<'s> {
    /// Checks everything and sends the work to the model.
    fn start(served: &'s Served<'s>, queue: &Queue, body: Body) -> Result<Self, ApiError> {
        if let Some(model) = body.model.as_deref().filter(|model| *model != served.name) {
            let reason = format!("there is no '{model}' here, only '{}'", served.name);
            return Err(ApiError { status: 404, ..ApiError::field("model", reason).with_code("model_not_found") });
        }
        let chat = matches!(body.prompts.first(), Some(Prompt::Chat(_)));
        let param = if chat { "messages" } else { "prompt" };
        let scores = body.echo && body.logprobs.is_some();
        let generates = body.max_tokens != Some(0);
        let n_works = body.prompts.len() * (usize::from(scores) + usize::from(generates));
        if body.prompts.is_empty() {
            return Err(ApiError::field(param, "is empty"));
        }
        if n_works > queue.max_open() {
            let reason = format!("{} prompts are more than this server takes at once", body.prompts.len());
            return Err(ApiError::field(param, reason));
        }
        let mut prompts = Vec::new();
        for prompt in &body.prompts {
            let tokens = tokens(served, prompt)?;
            let (n, context) = (tokens.ids.len(), served.context);
            if n == 0 {
                return Err(ApiError::field(param, "has no tokens"));
            }
            let wanted = body.max_tokens.unwrap_or(1);
            if n + wanted > context {
                let reason =
                    format!("{n} tokens and {wanted} new ones do not fit into the model's context of {context}");
                return Err(ApiError::field(param, reason).with_code("context_length_exceeded"));
            }
            prompts.push(tokens);
        }
        let mut places = queue.places(n_works)?.into_iter();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let seed = now.as_nanos() as u64 ^ (number << 48);
        let (sender, answers) = std::sync::mpsc::channel();
        let mut choices = Vec::new();
        for (which, prompt) in prompts.into_iter().enumerate() {
            let base = if body.echo { prompt.n_chars() } else { 0 };
            let mut choice = Choice {
                made: Growing::new(served.tokenizer, base),
                prompt_scores: None,
                scores: Vec::new(),
                finish: (!generates).then_some("length"),
                stop_reason: None,
                cut: None,
                scoring: scores.then(|| places.next()).flatten(),
                generating: generates.then(|| places.next()).flatten(),
                echoed: !body.echo,
                shown: (0, 0),
                prompt,
            };
            let ids = &choice.prompt.ids;
            match &choice.scoring {
                Some(place) if ids.len() > 1 => {
                    let (context, rest) = (vec![ids[0]], ids[1..].to_vec());
                    let n_top = body.logprobs.unwrap_or(0);
                    let score = Score { context, continuations: vec![rest], n_top };
                    queue.send(Work::Score(score), which, place, &sender)?;
                }
                _ => choice.prompt_scores = Some(Vec::new()),
            }
            if let Some(place) = &choice.generating {
                let generate = Generate {
                    prompt: ids.clone(),
                    max_new_tokens: body.max_tokens.unwrap_or(served.context - ids.len()),
                    sampler: body.sampler(which, seed),
                    stop_ids: served.tokenizer.eos_ids().to_vec(),
                    logprobs: body.logprobs,
                };
                queue.send(Work::Generate(generate), which, place, &sender)?;
            }
            choices.push(choice);
        }
        let id = format!("{}-{:x}{number:04x}", if chat { "chatcmpl" } else { "cmpl" }, now.as_millis());
        Ok(Self { served, body, chat, id, created: now.as_secs(), choices, answers })
    }

    /// Waits for the next answer; which choice it changed.
    fn next(&mut self, connection: &Connection) -> Result<usize, Lost> {
        loop {
            match self.answers.recv_timeout(TICK) {
                Ok((which, answer)) => {
                    self.choices[which].take(answer, self.served.tokenizer, &self.body.stop)?;
                    return Ok(which);
                }
                Err(RecvTimeoutError::Timeout) if connection.is_gone() => {
                    return Err(Lost::Client(io::ErrorKind::ConnectionAborted.into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Lost::Error(ApiError::shutting_down())),
            }
        }
    }

    fn is_done(&self) -> bool {
        self.choices.iter().all(Choice::is_done)
    }

    fn whole(mut self, connection: &mut Connection) -> io::Result<()> {
        while !self.is_done() {
            match self.next(connection) {
                Ok(_) => {}
                Err(Lost::Client(error)) => return Err(error),
                Err(Lost::Error(error)) => return connection.respond(error.status, &error.body()),
            }
        }
        let choices: Vec<Value> = (0..self.choices.len()).map(|which| self.choice(which)).collect();
        let mut response = self.envelope(if self.chat { "chat.completion" } else { "text_completion" }, choices);
        response["usage"] = self.usage();
        connection.respond(200, &response)
    }

    fn stream(mut self, connection: &mut Connection) -> io::Result<()> {
        connection.begin_events()?;
        match self.events(connection) {
            Ok(()) => {}
            Err(Lost::Client(error)) => return Err(error),
            Err(Lost::Error(error)) => connection.event(&error.body().to_string())?,
        }
        connection.event("[DONE]")
    }

    fn events(&mut self, connection: &mut Connection) -> Result<(), Lost> {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        if self.chat {
            let delta = json!({"role": "assistant", "content": ""});
            let first = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null});
            connection.event(&self.envelope(object, vec![first]).to_string())?;
        }
        let mut ended = vec![false; self.choices.len()];
        // A choice that nothing is awaited for is shown at once.
        let mut changed: Vec<usize> = (0..self.choices.len()).collect();
        loop {
            for which in changed.drain(..) {
                if !ended[which]
                    && let Some(chunk) = self.chunk(which)
                {
                    ended[which] = self.choices[which].is_done();
                    connection.event(&self.envelope(object, vec![chunk]).to_string())?;
                }
            }
            if self.is_done() {
                break;
            }
            changed.push(self.next(connection)?);
        }
        if self.body.include_usage {
            let mut last = self.envelope(object, Vec::new());
            last["usage"] = self.usage();
            connection.event(&last.to_string())?;
        }
        Ok(())
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.served.name, "choices": choices})
    }

    fn usage(&self) -> Value {
        let prompt: usize = self.choices.iter().map(|choice| choice.prompt.ids.len()).sum();
        let made: usize = self.choices.iter().map(|choice| choice.made.ids.len()).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made})
    }

    /// A finished choice.
    fn choice(&self, which: usize) -> Value {
        let choice = &self.choices[which];
        let logprobs = self.logprobs(choice, self.body.echo, 0..choice.n_visible());
        let mut value = json!({"index": which, "logprobs": logprobs, "finish_reason": choice.finish,
            // As vLLM names them: which stop string it was, and all tokens generated.
            "stop_reason": choice.stop_reason, "token_ids": choice.made.ids});
        if self.chat {
            value["message"] = json!({"role": "assistant", "content": choice.made.text});
        } else {
            let echo = if self.body.echo { choice.prompt.text.as_str() } else { "" };
            value["text"] = json!(format!("{echo}{}", choice.made.text));
        }
        value
    }

    /// What a stream has not shown yet of a choice, where there is something.
    fn chunk(&mut self, which: usize) -> Option<Value> {
        let choice = &mut self.choices[which];
        if self.body.echo && self.body.logprobs.is_some() && choice.prompt_scores.is_none() {
            return None;
        }
        let echo = !std::mem::replace(&mut choice.echoed, true);
        let (from, first) = choice.shown;
        let done = choice.is_done();
        let made = &choice.made;
        let end = if done { made.text.len() } else { from + text::safe_len(&made.text[from..], &self.body.stop) };
        let end_char = made.text[..end].chars().count() + if self.body.echo { choice.prompt.n_chars() } else { 0 };
        let n_tokens = if done { choice.n_visible() } else { made.offsets.partition_point(|&at| at < end_char) };
        let mut shown = made.text[from..end].to_owned();
        if !echo && !done && shown.is_empty() {
            return None;
        }
        choice.shown = (end, n_tokens);
        if echo {
            shown.insert_str(0, &choice.prompt.text);
        }
        let choice = &self.choices[which];
        let finish = choice.finish.filter(|_| done);
        let logprobs = self.logprobs(choice, echo, first..n_tokens.max(first));
        let mut chunk = json!({"index": which, "logprobs": logprobs, "finish_reason": finish});
        if self.chat {
            chunk["delta"] = if shown.is_empty() { json!({}) } else { json!({"content": shown}) };
        } else {
            chunk["text"] = json!(shown);
        }
        Some(chunk)
    }

    /// The log-probabilities of the prompt's tokens, with `echo`, and of a range of those generated.
    fn logprobs(&self, choice: &Choice<'_>, echo: bool, range: std::ops::Range<usize>) -> Value {
        if self.body.logprobs.is_none() {
            return Value::Null;
        }
        let made = choice.made.ids[range.clone()].iter().zip(&choice.made.offsets[range.clone()]);
        let made = made.zip(choice.scores[range].iter().map(Some));
        let prompt = choice.prompt.ids.iter().zip(&choice.prompt.offsets);
        let first = std::iter::once(None);
        let scores = first.chain(choice.prompt_scores.iter().flatten().map(Some));
        let prompt = prompt.zip(scores).take(if echo { usize::MAX } else { 0 });
        let name = |id: u32| self.served.tokenizer.decode_with_special(&[id]).unwrap_or_default();
        if self.chat {
            let entry = |id: u32, log_prob: f32| {
                let name = name(id);
                json!({"token": name, "logprob": f64::from(log_prob), "bytes": name.as_bytes()})
            };
            let content = made.map(|((&id, _), score)| {
                let log_prob = score.map_or(0.0, |score| score.log_prob);
                let top = score.into_iter().flat_map(|score| &score.top).map(|&(id, log_prob)| entry(id, log_prob));
                let mut entry = entry(id, log_prob);
                entry["top_logprobs"] = top.collect();
                entry
            });
            return json!({"content": content.collect::<Vec<_>>()});
        }
        let (mut tokens, mut log_probs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for ((&id, &offset), score) in prompt.chain(made) {
            tokens.push(name(id));
            offsets.push(offset);
            log_probs.push(score.map(|score| f64::from(score.log_prob)));
            tops.push(score.map(|score| {
                // Different tokens can have the same text: the likelier one stays. The token itself is always there.
                let mut top = Map::new();
                for &(id, log_prob) in score.top.iter().chain([&(id, score.log_prob)]) {
                    top.entry(name(id)).or_insert_with(|| json!(f64::from(log_prob)));
                }
                top
            }));
        }
        json!({"tokens": tokens, "token_logprobs": log_probs, "top_logprobs": tops, "text_offset": offsets})
    }
}

impl Choice<'_> {
    fn is_done(&self) -> bool {
        self.finish.is_some() && self.prompt_scores.is_some()
    }

    /// Generated tokens that are reported: those of a stop string are not, an end token is.
    fn n_visible(&self) -> usize {
        self.cut.map_or(self.made.ids.len(), |cut| self.made.offsets.partition_point(|&at| at < cut))
    }

    fn take(&mut self, answer: Answer, tokenizer: &Tokenizer, stop: &[String]) -> Result<(), ApiError> {
        match answer {
            Answer::Refused(error) => return Err(ApiError::field("prompt", error)),
            Answer::Event(Event::Failed { reason, .. }) => return Err(ApiError::new(500, reason)),
            Answer::Event(Event::Scored { scores, .. }) => {
                self.prompt_scores = Some(scores.into_iter().next().unwrap_or_default());
                self.scoring = None;
            }
            // After a stop string more may be on its way.
            Answer::Event(_) if self.finish.is_some() => {}
            Answer::Event(Event::Token { token, score, .. }) => {
                self.scores.extend(score);
                if tokenizer.eos_ids().contains(&token) {
                    self.made.push_end(token).map_err(|error| internal(&error))?;
                } else {
                    self.made.push(token).map_err(|error| internal(&error))?;
                    self.stop_at(stop);
                }
            }
            Answer::Event(Event::Finished { finish, .. }) => {
                self.made.finish().map_err(|error| internal(&error))?;
                self.stop_at(stop);
                self.finish.get_or_insert(match finish {
                    Finish::Stop => "stop",
                    Finish::Length => "length",
                });
                self.generating = None;
            }
        }
        Ok(())
    }

    /// Ends the text at a stop string, and the generation with it.
    fn stop_at(&mut self, stop: &[String]) {
        if let Some((at, which)) = text::find_stop(&self.made.text, stop) {
            self.cut = Some(self.made.cut(at));
            self.stop_reason = Some(which.to_owned());
            self.finish = Some("stop");
            self.generating = None;
        }
    }
}
