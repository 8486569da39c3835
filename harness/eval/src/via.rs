//! Answers by any OpenAI-compatible completions server, so that other engines are scored by the same code.
//!
//! Log-likelihoods come from `echo` with `logprobs`: the tokens of context and continuation are told apart by `text_offset`, in
//! code points. A token that begins before the end of the context belongs to the context, which is what counting the context's
//! tokens gives, too, but for tokenizers that merge across the border in a way that changes their number.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use ternbench_model::Tokenizer;

use crate::backend::{Answer, Backend, Question, Scores, Text};
use crate::error::EvalError;
use crate::generate::{self, Finish, Response};
use crate::stats::LogLoss;
use crate::via_http::{Client, Url};

/// How often a request is tried that failed for reasons that may pass.
const MAX_TRIES: u32 = 6;
/// Requests at once, at most: each has a thread that waits for it.
pub const MAX_REQUESTS: usize = 1024;
/// Stop strings that OpenAI's interface takes; the rest is cut off here.
const MAX_STOPS: usize = 4;

/// An answer and how many tokens went into it, or why there is none.
type Answered = Result<(Answer, u64), EvalError>;

/// A server as a [`Backend`].
pub struct Via {
    about: About,
    tokenizer: Option<Tokenizer>,
    questions: Sender<(usize, Question)>,
    answers: Receiver<(usize, Answered)>,
    open: usize,
    max_open: usize,
    tokens: u64,
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The model's name.
    pub model: String,
    /// What identifies its weights, where the server says so (ternbench does).
    pub model_hash: Option<String>,
    /// The kernel that it says it runs (ternbench does).
    pub kernel: Option<String>,
    /// The longest sequence, where the server says so.
    pub context: Option<usize>,
}

impl Via {
    /// Asks the server at `url` (`http://host:port`) which models it has, and takes `model` or the first. `tokenizer` must be the
    /// model's; it is needed for perplexities alone, whose windows are made of tokens.
    ///
    /// # Errors
    /// When there is no such server or model.
    pub fn connect(
        url: &str,
        model: Option<&str>,
        tokenizer: Option<Tokenizer>,
        max_open: usize,
    ) -> Result<Self, EvalError> {
        let url = Url::parse(url).map_err(EvalError::Model)?;
        let about = About::ask(&mut Client::new(url.clone()), &url, model)?;
        let max_open = max_open.max(1);
        let (questions, waiting) = std::sync::mpsc::channel();
        let waiting: Arc<Mutex<Receiver<(usize, Question)>>> = Arc::new(Mutex::new(waiting));
        let (sender, answers) = std::sync::mpsc::channel();
        for _ in 0..max_open {
            let (waiting, sender) = (Arc::clone(&waiting), sender.clone());
            let mut asker = Asker { client: Client::new(url.clone()), url: url.clone(), model: about.model.clone() };
            std::thread::spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((index, question)) = next else { return };
                    if sender.send((index, asker.answer(question))).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { about, tokenizer, questions, answers, open: 0, max_open, tokens: 0 })
    }

    /// What the server says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }
}

impl About {
    fn ask(client: &mut Client, url: &Url, wanted: Option<&str>) -> Result<Self, EvalError> {
        let said = request(client, url, "models", None);
        let models = match (&said, wanted) {
            (Ok(value), _) => value["data"].as_array().cloned().unwrap_or_default(),
            // Not every server lists its models.
            (Err(_), Some(name)) => vec![json!({"id": name})],
            (Err(error), None) => return Err(EvalError::Model(error.to_string())),
        };
        let names = || models.iter().filter_map(|model| model["id"].as_str()).collect::<Vec<_>>().join(", ");
        let found =
            models.iter().find(|model| wanted.is_none_or(|wanted| model["id"] == wanted) && model["id"].is_string());
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match found {
            Some(model) => Ok(Self {
                model: text(&model["id"]).unwrap_or_default(),
                model_hash: text(&model["model_hash"]),
                kernel: text(&model["kernel"]),
                context: model["max_model_len"].as_u64().map(|n| n as usize),
            }),
            None => {
                let what = wanted.map_or("no model".to_owned(), |name| format!("no model '{name}'"));
                Err(EvalError::Model(format!("http://{}: {what} there, but [{}]", url.authority, names())))
            }
        }
    }
}

/// Sends a request until there is an answer, or no hope of one.
fn request(client: &mut Client, url: &Url, path: &str, body: Option<&Value>) -> Result<Value, EvalError> {
    let at = |reason: String| EvalError::model(format!("http://{}{}/{path}: {reason}", url.authority, url.path));
    let mut tries = 0;
    loop {
        tries += 1;
        let (reason, wait) = match client.send(path, body) {
            Ok(response) if response.status == 200 => {
                let parsed = serde_json::from_slice(&response.body);
                return parsed.map_err(|error| at(format!("the answer is not JSON: {error}")));
            }
            Ok(response) => {
                let value: Value = serde_json::from_slice(&response.body).unwrap_or_default();
                let said = value["error"]["message"].as_str().or(value["message"].as_str()).map(str::to_owned);
                let said = said.unwrap_or_else(|| String::from_utf8_lossy(&response.body).chars().take(200).collect());
                let reason = format!("status {}: {said}", response.status);
                if !matches!(response.status, 408 | 429 | 500..) {
                    return Err(at(reason));
                }
                (reason, response.retry_after)
            }
            Err(error) => (error.to_string(), None),
        };
        if tries == MAX_TRIES {
            return Err(at(format!("{reason} (tried {MAX_TRIES} times)")));
        }
        let backoff = Duration::from_millis(250 << (tries - 1));
        std::thread::sleep(wait.map_or(backoff, |seconds| Duration::from_secs(seconds.min(30))));
    }
}

/// Asks one thing at a time, on its own connection.
struct Asker {
    client: Client,
    url: Url,
    model: String,
}

impl Asker {
    /// The answer, and how many tokens went into it.
    fn answer(&mut self, question: Question) -> Result<(Answer, u64), EvalError> {
        match question {
            Question::Choices { context: Text::Chat(_), .. } => {
                Err(EvalError::Model("choices are scored after plain text, not after a conversation".to_owned()))
            }
            Question::Choices { context: Text::Plain(context), continuations } => {
                let mut scores = Scores::default();
                let mut tokens = 0;
                for continuation in &continuations {
                    let (score, n) = self.choice(&context, continuation)?;
                    scores.loglikelihoods.extend(score.loglikelihoods);
                    scores.n_tokens.extend(score.n_tokens);
                    scores.context_tokens = scores.context_tokens.max(score.context_tokens);
                    tokens += n;
                }
                Ok((Answer::Scores(scores), tokens))
            }
            Question::Generate { prompt, max_new_tokens, stop } => self.generate(&prompt, max_new_tokens, &stop),
            Question::Window(window) => {
                let first = (window.len() / 2 + 1).min(window.len());
                let echo = self.echo(json!(window))?;
                let mut loss = LogLoss::default();
                for i in first..window.len() {
                    loss.add(echo.log_prob(i)? as f32);
                }
                Ok((Answer::Loss(loss), window.len() as u64))
            }
        }
    }

    /// The log-likelihood of one continuation, as the only one of [`Scores`].
    fn choice(&mut self, context: &str, continuation: &str) -> Result<(Scores, u64), EvalError> {
        let whole = format!("{context}{continuation}");
        let (border, end) = (context.trim_end().chars().count(), whole.chars().count());
        let echo = self.echo(json!(whole))?;
        if !echo.text.starts_with(&whole) {
            return Err(self.lacks("it does not echo the prompt"));
        }
        let mut scores = Scores { n_tokens: vec![0], ..Scores::default() };
        let mut sum = 0.0;
        for (i, &offset) in echo.offsets.iter().enumerate() {
            if offset < border {
                scores.context_tokens += 1;
            } else if offset < end {
                sum += echo.log_prob(i)?;
                scores.n_tokens[0] += 1;
            }
        }
        if scores.n_tokens[0] == 0 || scores.context_tokens == 0 {
            return Err(EvalError::Model(format!("the tokens of {continuation:?} cannot be told from its context's")));
        }
        scores.loglikelihoods = vec![sum as f32];
        Ok((scores, echo.offsets.len() as u64))
    }

    fn lacks(&self, what: &str) -> EvalError {
        let server = &self.url.authority;
        EvalError::Model(format!("http://{server}: {what}: choices need /completions with \"echo\" and \"logprobs\""))
    }

    /// The prompt's log-probabilities. One token is generated, as many servers refuse to generate none.
    fn echo(&mut self, prompt: Value) -> Result<Echo, EvalError> {
        let body = json!({"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "echo": true});
        let value = request(&mut self.client, &self.url, "completions", Some(&body)).map_err(|error| match error {
            EvalError::Model(reason) if reason.contains("status 4") => {
                EvalError::Model(format!("{reason} (choices need \"echo\" and \"logprobs\")"))
            }
            other => other,
        })?;
        let choice = &value["choices"][0];
        let logprobs = &choice["logprobs"];
        let Some(log_probs) = logprobs["token_logprobs"].as_array() else {
            return Err(self.lacks("it gives no token_logprobs"));
        };
        let offsets = logprobs["text_offset"].as_array().map(|all| all.iter().filter_map(Value::as_u64));
        let offsets: Vec<usize> = offsets.map(|all| all.map(|at| at as usize).collect()).unwrap_or_default();
        if offsets.len() != log_probs.len() {
            return Err(self.lacks("it gives no text_offset for each token"));
        }
        let log_probs = log_probs.iter().map(Value::as_f64).collect();
        Ok(Echo { text: choice["text"].as_str().unwrap_or_default().to_owned(), offsets, log_probs })
    }

    fn generate(&mut self, prompt: &Text, max: usize, stop: &[String]) -> Result<(Answer, u64), EvalError> {
        let mut body = json!({"model": self.model, "max_tokens": max, "temperature": 0});
        if !stop.is_empty() {
            body["stop"] = json!(&stop[..stop.len().min(MAX_STOPS)]);
        }
        let path = match prompt {
            Text::Plain(text) => {
                body["prompt"] = json!(text);
                "completions"
            }
            Text::Chat(turns) => {
                body["messages"] = json!(turns);
                "chat/completions"
            }
        };
        let value = request(&mut self.client, &self.url, path, Some(&body))?;
        let choice = &value["choices"][0];
        let Some(text) = choice["text"].as_str().or(choice["message"]["content"].as_str()) else {
            return Err(EvalError::Model(format!("http://{}: the answer has no text", self.url.authority)));
        };
        // Only some servers tell the tokens, and a stop string from the end of the text.
        let ids = choice["token_ids"].as_array().map(|ids| ids.iter().filter_map(Value::as_u64));
        let ids: Vec<u32> = ids.map(|ids| ids.map(|id| id as u32).collect()).unwrap_or_default();
        let stopped = choice["stop_reason"].is_string() || generate::has_stop(text, stop);
        let finish = match choice["finish_reason"].as_str() {
            _ if stopped => Finish::Stop,
            Some("length") => Finish::Length,
            _ => Finish::Eos,
        };
        let usage = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
        let response = Response {
            ids,
            text: generate::before_stop(text, stop).to_owned(),
            finish,
            prompt_tokens: usage("prompt_tokens") as usize,
            truncated_tokens: 0,
        };
        Ok((Answer::Response(response), usage("prompt_tokens") + usage("completion_tokens")))
    }
}

/// An echoed prompt.
struct Echo {
    text: String,
    offsets: Vec<usize>,
    log_probs: Vec<Option<f64>>,
}

impl Echo {
    fn log_prob(&self, i: usize) -> Result<f64, EvalError> {
        let log_prob = self.log_probs.get(i).copied().flatten();
        log_prob.ok_or_else(|| EvalError::Model(format!("the server gives no log-probability of token {i}")))
    }
}

impl Backend for Via {
    fn has_room(&self) -> bool {
        self.open < self.max_open
    }

    fn ask(&mut self, index: usize, question: Question) -> Result<(), EvalError> {
        self.open += 1;
        self.questions
            .send((index, question))
            .map_err(|_| EvalError::Model("nobody asks the server any more".to_owned()))
    }

    fn answer(&mut self, working: &mut dyn FnMut(u64)) -> Option<(usize, Result<Answer, EvalError>)> {
        if self.open == 0 {
            return None;
        }
        let (index, answer) = loop {
            match self.answers.recv_timeout(Duration::from_secs(1)) {
                Ok(answered) => break answered,
                Err(RecvTimeoutError::Timeout) => working(self.tokens),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        };
        self.open -= 1;
        let answer = answer.map(|(answer, tokens)| {
            self.tokens += tokens;
            answer
        });
        Some((index, answer))
    }

    fn tokens_done(&self) -> u64 {
        self.tokens
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.encode_default(text).map_err(EvalError::model),
            None => Err(EvalError::Model(
                "windows are made of tokens: name the model's tokenizer with --tokenizer".to_owned(),
            )),
        }
    }

    fn max_context(&self) -> usize {
        self.about.context.unwrap_or(usize::MAX)
    }
}
