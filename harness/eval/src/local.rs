//! Answers by a model of ternbench: texts to tokens and back around the batched engine.

use std::collections::{HashMap, VecDeque};

use ternbench_model::batch::{self, Event, ForwardPass, Limits, RequestId, Stats, TokenScore};
use ternbench_model::chat::{ChatFormat, Message};
use ternbench_model::config::Architecture;
use ternbench_model::sampler::Sampler;
use ternbench_model::{Batch, Engine, Tokenizer};

use crate::backend::{Answer, Backend, Question, Scores, Text};
use crate::error::EvalError;
use crate::generate::{self, Finish, Response};
use crate::score::{self, Pair};
use crate::stats::LogLoss;

/// Texts to tokens and back: a tokenizer, or a toy in tests.
pub trait TextCodec {
    /// Text to tokens, with what the model's tokenizer adds by default (Gemma `<bos>`, SmolLM2 nothing).
    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError>;

    /// A conversation to tokens, up to where the model's answer starts.
    fn encode_chat(&self, turns: &[Message]) -> Result<Vec<u32>, EvalError>;

    /// Tokens to text, special tokens left out.
    fn decode(&self, ids: &[u32]) -> Result<String, EvalError>;

    /// Tokens that end a generation.
    fn eos_ids(&self) -> &[u32];
}

/// A tokenizer with its model's family, which decides the chat format.
pub struct ModelText<'m> {
    tokenizer: &'m Tokenizer,
    architecture: Architecture,
}

impl TextCodec for ModelText<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        self.tokenizer.encode_default(text).map_err(EvalError::model)
    }

    fn encode_chat(&self, turns: &[Message]) -> Result<Vec<u32>, EvalError> {
        let format = ChatFormat::of(self.architecture, self.tokenizer).map_err(EvalError::model)?;
        format.encode(self.tokenizer, turns, true).map_err(EvalError::model)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, EvalError> {
        self.tokenizer.decode(ids).map_err(EvalError::model)
    }

    /// All ends that the tokenizer knows: where a model has several, an end of text is not taken for a part of the answer.
    fn eos_ids(&self) -> &[u32] {
        self.tokenizer.eos_ids()
    }
}

/// A model of ternbench as a [`Backend`].
pub struct LocalModel<M: ForwardPass, T> {
    batch: Batch<M>,
    text: T,
    open: HashMap<usize, Open>,
    /// The item and, for scores, the continuations that each request is about.
    requests: HashMap<RequestId, (usize, Vec<usize>)>,
    ready: VecDeque<(usize, Result<Answer, EvalError>)>,
    /// Tokens of statistics that were taken.
    tokens_before: u64,
}

fn n_tokens(stats: &Stats) -> u64 {
    stats.prefill_tokens + stats.decode_tokens + stats.shared_tokens
}

/// What is known so far.
enum Open {
    Choices { scores: Scores, missing: usize },
    Generate { response: Response, stop: Vec<String> },
    Window,
}

impl<'m> LocalModel<Engine<'m>, ModelText<'m>> {
    /// Evaluates on `engine`, so much at once as `limits` allow.
    pub fn new(engine: Engine<'m>, tokenizer: &'m Tokenizer, limits: Limits) -> Self {
        let architecture = engine.model().config().architecture;
        Self::with_text(Batch::new(engine, limits), ModelText { tokenizer, architecture })
    }
}

impl<M: ForwardPass, T: TextCodec> LocalModel<M, T> {
    /// Evaluates on `batch` with the tokens of `text`.
    pub fn with_text(batch: Batch<M>, text: T) -> Self {
        Self { batch, text, open: HashMap::new(), requests: HashMap::new(), ready: VecDeque::new(), tokens_before: 0 }
    }

    /// The batch, for its statistics.
    pub fn batch(&self) -> &Batch<M> {
        &self.batch
    }

    fn context(&self) -> usize {
        self.batch.model().context()
    }

    fn ask_choices(&mut self, index: usize, context: &Text, continuations: &[String]) -> Result<(), EvalError> {
        let Text::Plain(context) = context else {
            return Err(EvalError::Model("choices are scored after plain text, not after a conversation".to_owned()));
        };
        let pairs = continuations.iter().map(|continuation| score::encode_pair(&self.text, context, continuation));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let mut scores = Scores {
            loglikelihoods: vec![0.0; pairs.len()],
            n_tokens: pairs.iter().map(|pair| pair.continuation.len()).collect(),
            context_tokens: pairs.first().map_or(0, |pair| pair.context.len()),
            truncated_tokens: 0,
        };
        // One request for all continuations of the same context, which is all unless a context is too long.
        let mut requests: Vec<(batch::Score, Vec<usize>)> = Vec::new();
        for (which, pair) in pairs.into_iter().enumerate() {
            let (Pair { context, continuation }, truncated) = score::truncate(pair, self.context())?;
            scores.truncated_tokens = scores.truncated_tokens.max(truncated);
            match requests.iter_mut().find(|(request, _)| request.context == context) {
                Some((request, whichs)) => {
                    request.continuations.push(continuation);
                    whichs.push(which);
                }
                None => {
                    let request = batch::Score { context, continuations: vec![continuation], n_top: 0 };
                    requests.push((request, vec![which]));
                }
            }
        }
        self.open.insert(index, Open::Choices { scores, missing: requests.len() });
        for (request, which) in requests {
            let id = self.batch.score(request).map_err(EvalError::model)?;
            self.requests.insert(id, (index, which));
        }
        Ok(())
    }

    fn ask_generate(
        &mut self,
        index: usize,
        prompt: &Text,
        max_new_tokens: usize,
        stop: Vec<String>,
    ) -> Result<(), EvalError> {
        let max = self.context();
        if max_new_tokens >= max {
            let reason = format!("{max_new_tokens} new tokens leave no room for a prompt in a context of {max}");
            return Err(EvalError::Model(reason));
        }
        let mut ids = match prompt {
            Text::Plain(text) => self.text.encode(text)?,
            Text::Chat(turns) => self.text.encode_chat(turns)?,
        };
        let truncated_tokens = ids.len().saturating_sub(max - max_new_tokens);
        ids.drain(..truncated_tokens);
        let response = Response { prompt_tokens: ids.len(), truncated_tokens, ..Response::default() };
        let request = batch::Generate {
            prompt: ids,
            max_new_tokens,
            sampler: Sampler::greedy(),
            stop_ids: self.text.eos_ids().to_vec(),
            logprobs: None,
        };
        let id = self.batch.generate(request).map_err(EvalError::model)?;
        self.requests.insert(id, (index, Vec::new()));
        self.open.insert(index, Open::Generate { response, stop });
        Ok(())
    }

    fn ask_window(&mut self, index: usize, window: Vec<u32>) -> Result<(), EvalError> {
        let first = (window.len() / 2 + 1).min(window.len());
        let (context, continuation) = window.split_at(first);
        let request = batch::Score { context: context.to_vec(), continuations: vec![continuation.to_vec()], n_top: 0 };
        let id = self.batch.score(request).map_err(EvalError::model)?;
        self.requests.insert(id, (index, Vec::new()));
        self.open.insert(index, Open::Window);
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), (usize, EvalError)> {
        let (Event::Token { id, .. }
        | Event::Finished { id, .. }
        | Event::Scored { id, .. }
        | Event::Failed { id, .. }) = event;
        // A request that a stop string has ended may have more to say.
        let Some(&(index, _)) = self.requests.get(&id) else { return Ok(()) };
        match event {
            Event::Token { token, .. } => self.token(id, index, token).map_err(|error| (index, error))?,
            Event::Finished { finish, .. } => self.end(
                id,
                match finish {
                    batch::Finish::Stop => Finish::Eos,
                    batch::Finish::Length => Finish::Length,
                },
            ),
            Event::Scored { scores, .. } => self.scored(id, &scores),
            Event::Failed { reason, .. } => {
                self.requests.remove(&id);
                self.open.remove(&index);
                return Err((index, EvalError::Model(reason)));
            }
        }
        Ok(())
    }

    fn token(&mut self, id: RequestId, index: usize, token: u32) -> Result<(), EvalError> {
        let Some(Open::Generate { response, stop }) = self.open.get_mut(&index) else { return Ok(()) };
        response.ids.push(token);
        if self.text.eos_ids().contains(&token) {
            return Ok(());
        }
        response.text = self.text.decode(&response.ids)?;
        if generate::has_stop(&response.text, stop) {
            self.batch.cancel(id);
            self.end(id, Finish::Stop);
        }
        Ok(())
    }

    fn end(&mut self, id: RequestId, finish: Finish) {
        let Some((index, _)) = self.requests.remove(&id) else { return };
        if let Some(Open::Generate { mut response, stop }) = self.open.remove(&index) {
            response.text = generate::before_stop(&response.text, &stop).to_owned();
            response.finish = finish;
            self.ready.push_back((index, Ok(Answer::Response(response))));
        }
    }

    fn scored(&mut self, id: RequestId, token_scores: &[Vec<TokenScore>]) {
        let Some((index, which)) = self.requests.remove(&id) else { return };
        let answer = match self.open.get_mut(&index) {
            Some(Open::Choices { scores, missing }) => {
                for (&which, tokens) in which.iter().zip(token_scores) {
                    let sum: f64 = tokens.iter().map(|token| f64::from(token.log_prob)).sum();
                    scores.loglikelihoods[which] = sum as f32;
                }
                *missing -= 1;
                if *missing > 0 {
                    return;
                }
                Answer::Scores(std::mem::take(scores))
            }
            Some(Open::Window) => {
                let mut loss = LogLoss::default();
                token_scores.iter().flatten().for_each(|token| loss.add(token.log_prob));
                Answer::Loss(loss)
            }
            _ => return,
        };
        self.open.remove(&index);
        self.ready.push_back((index, Ok(answer)));
    }
}

impl<M: ForwardPass, T: TextCodec> Backend for LocalModel<M, T> {
    /// As many wait as are at work, so that a finished one is replaced at once and passes are filled.
    fn has_room(&self) -> bool {
        self.batch.n_waiting() + self.batch.n_running() < 2 * self.batch.limits().max_requests
    }

    fn ask(&mut self, index: usize, question: Question) -> Result<(), EvalError> {
        match question {
            Question::Choices { context, continuations } => self.ask_choices(index, &context, &continuations),
            Question::Generate { prompt, max_new_tokens, stop } => {
                self.ask_generate(index, &prompt, max_new_tokens, stop)
            }
            Question::Window(window) => self.ask_window(index, window),
        }
    }

    fn answer(&mut self, working: &mut dyn FnMut(u64)) -> Option<(usize, Result<Answer, EvalError>)> {
        while self.ready.is_empty() && !self.batch.is_idle() {
            match self.batch.step() {
                Ok(events) => {
                    for event in events {
                        if let Err((index, error)) = self.take(event) {
                            self.ready.push_back((index, Err(error)));
                        }
                    }
                    working(self.tokens_done());
                }
                Err(error) => {
                    let (&index, _) = self.open.iter().next()?;
                    return Some((index, Err(EvalError::model(error))));
                }
            }
        }
        self.ready.pop_front()
    }

    fn tokens_done(&self) -> u64 {
        self.tokens_before + n_tokens(&self.batch.stats())
    }

    fn take_notes(&mut self) -> Vec<String> {
        let stats = self.batch.take_stats();
        self.tokens_before += n_tokens(&stats);
        let speed = |tokens: u64, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        let mut notes = Vec::new();
        if stats.prefill_only_tokens > 0 {
            notes.push(format!("prefill {:.1} tokens/s", speed(stats.prefill_only_tokens, stats.prefill_time)));
        }
        if stats.decode_only_tokens > 0 {
            notes.push(format!("decode {:.1} tokens/s", speed(stats.decode_only_tokens, stats.decode_time)));
        }
        if !stats.mixed_time.is_zero() {
            let (prefill, decode) =
                (stats.prefill_tokens - stats.prefill_only_tokens, stats.decode_tokens - stats.decode_only_tokens);
            let speed = speed(prefill + decode, stats.mixed_time);
            notes.push(format!("both in one pass {speed:.1} tokens/s ({decode} of {} decoded)", prefill + decode));
        }
        let computed = stats.prefill_tokens + stats.decode_tokens;
        notes.push(format!("{computed} tokens computed in {} passes, {} shared", stats.passes, stats.shared_tokens));
        let bytes = stats.peak_blocks * self.batch.model().block_bytes();
        notes.push(format!("keys and values at most {:.2} GB", bytes as f64 / 1e9));
        notes
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        self.text.encode(text)
    }

    fn max_context(&self) -> usize {
        self.context()
    }
}
