//! The bodies of requests, checked field by field: what is wrong is named, and what is not known is refused.

use serde_json::{Map, Value};
use ternbench_model::chat::Message;
use ternbench_model::sampler::Sampler;

use crate::error::ApiError;

/// Most alternatives per token.
const MAX_TOP: u64 = 20;
/// Most stop strings.
const MAX_STOPS: usize = 16;

/// A prompt as a client gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// A conversation.
    Chat(Vec<Message>),
}

/// A request for completions, of either kind.
#[derive(Clone, Debug)]
pub struct Body {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// The model's name, where the client gives one.
    pub model: Option<String>,
    /// Most tokens to generate; as many as there is room for when not given (chat only).
    pub max_tokens: Option<usize>,
    /// 0 is greedy.
    pub temperature: f32,
    /// The likeliest tokens that together have this probability.
    pub top_p: f32,
    /// So many likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Of the sampling; chosen by the server when not given.
    pub seed: Option<u64>,
    /// Texts that end a completion.
    pub stop: Vec<String>,
    /// Whether the prompt is part of the completion.
    pub echo: bool,
    /// Whether log-probabilities are asked for, and of how many alternatives.
    pub logprobs: Option<usize>,
    /// Whether the answer comes piece by piece.
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub include_usage: bool,
}

impl Body {
    /// Reads a body of `/v1/completions`, or of `/v1/chat/completions` with `chat`.
    ///
    /// # Errors
    /// 400 with the field's name.
    pub fn parse(bytes: &[u8], chat: bool) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::new(400, format!("the body is not JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(ApiError::new(400, "the body is not a JSON object"));
        };
        let mut fields = Fields(map);
        let prompts = if chat { vec![Prompt::Chat(fields.messages()?)] } else { fields.prompts()? };
        let mut max_tokens = fields.integer("max_tokens", 0, u64::from(u32::MAX))?;
        if chat {
            max_tokens = fields.integer("max_completion_tokens", 0, u64::from(u32::MAX))?.or(max_tokens);
        }
        let max_tokens = max_tokens.or((!chat).then_some(16)).map(|n| n as usize);
        let echo = !chat && fields.boolean("echo")?;
        let logprobs = if chat {
            let top = fields.integer("top_logprobs", 0, MAX_TOP)?;
            match (fields.boolean("logprobs")?, top) {
                (true, top) => Some(top.unwrap_or(0)),
                (false, Some(1..)) => return Err(ApiError::field("top_logprobs", "needs \"logprobs\": true")),
                (false, _) => None,
            }
        } else {
            fields.integer("logprobs", 0, MAX_TOP)?
        };
        let body = Self {
            prompts,
            model: fields.string("model")?,
            max_tokens,
            temperature: fields.number("temperature", 0.0, 100.0)?.unwrap_or(1.0) as f32,
            top_p: fields.number("top_p", f64::MIN_POSITIVE, 1.0)?.unwrap_or(1.0) as f32,
            top_k: fields.integer("top_k", 0, u64::from(u32::MAX))?.unwrap_or(0) as usize,
            seed: fields.seed()?,
            stop: fields.stop()?,
            echo,
            logprobs: logprobs.map(|n| n as usize),
            stream: fields.boolean("stream")?,
            include_usage: fields.include_usage()?,
        };
        fields.string("user")?;
        fields.neutral(chat)?;
        if body.max_tokens == Some(0) && !body.echo {
            return Err(ApiError::field("max_tokens", "0 is of use only with \"echo\": true"));
        }
        Ok(body)
    }

    /// The sampler of the prompt number `which`.
    pub fn sampler(&self, which: usize, fallback_seed: u64) -> Sampler {
        let seed = self.seed.unwrap_or(fallback_seed).wrapping_add(which as u64);
        Sampler::new(self.temperature, self.top_k, self.top_p, seed)
    }
}

/// The fields that have not been read yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field; null counts as not given.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn boolean(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    fn integer(&mut self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().filter(|n| (low..=high).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong(name, &format!("an integer from {low} to {high}"), &value)),
        }
    }

    fn number(&mut self, name: &str, low: f64, high: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|x| (low..=high).contains(x)) {
            Some(x) => Ok(Some(x)),
            None if low > 0.0 => Err(wrong(name, &format!("a number above 0, at most {high}"), &value)),
            None => Err(wrong(name, &format!("a number from {low} to {high}"), &value)),
        }
    }

    fn seed(&mut self) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take("seed") else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
        seed.map(Some).ok_or_else(|| wrong("seed", "an integer", &value))
    }

    fn stop(&mut self) -> Result<Vec<String>, ApiError> {
        let expected = format!("a string or an array of at most {MAX_STOPS} strings, none empty");
        let Some(value) = self.take("stop") else { return Ok(Vec::new()) };
        let stop = match &value {
            Value::String(stop) => Some(vec![stop.clone()]),
            Value::Array(stops) => stops.iter().map(|stop| stop.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let valid = stop.filter(|stop| stop.len() <= MAX_STOPS && stop.iter().all(|stop| !stop.is_empty()));
        valid.ok_or_else(|| wrong("stop", &expected, &value))
    }

    fn include_usage(&mut self) -> Result<bool, ApiError> {
        match self.take("stream_options") {
            None => Ok(false),
            Some(Value::Object(options)) => {
                let mut options = Fields(options);
                let include = options.boolean("include_usage")?;
                match options.0.keys().next() {
                    None => Ok(include),
                    Some(name) => Err(ApiError::field(format!("stream_options.{name}"), "is not known")),
                }
            }
            Some(other) => Err(wrong("stream_options", "an object", &other)),
        }
    }

    fn prompts(&mut self) -> Result<Vec<Prompt>, ApiError> {
        const EXPECTED: &str = "a string, an array of token ids, or an array of strings or of such arrays";
        let ids = |values: &[Value]| -> Option<Vec<u32>> {
            values.iter().map(|value| u32::try_from(value.as_u64()?).ok()).collect()
        };
        let Some(value) = self.take("prompt") else { return Err(ApiError::field("prompt", "is missing")) };
        let prompts = match &value {
            Value::String(text) => Some(vec![Prompt::Text(text.clone())]),
            Value::Array(values) if values.iter().all(Value::is_number) => {
                ids(values).map(|ids| vec![Prompt::Ids(ids)])
            }
            Value::Array(values) => {
                let one = |value: &Value| match value {
                    Value::String(text) => Some(Prompt::Text(text.clone())),
                    Value::Array(values) => ids(values).map(Prompt::Ids),
                    _ => None,
                };
                values.iter().map(one).collect()
            }
            _ => None,
        };
        prompts.ok_or_else(|| wrong("prompt", EXPECTED, &value))
    }

    fn messages(&mut self) -> Result<Vec<Message>, ApiError> {
        let Some(value) = self.take("messages") else { return Err(ApiError::field("messages", "is missing")) };
        let Some(messages) = value.as_array().filter(|messages| !messages.is_empty()) else {
            return Err(wrong("messages", "an array of at least one message", &value));
        };
        let mut out = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            let role = message["role"].as_str();
            let role = role.ok_or_else(|| wrong(&format!("messages[{i}].role"), "a string", &message["role"]))?;
            let content = match &message["content"] {
                Value::String(text) => Some(text.clone()),
                Value::Array(parts) => parts.iter().map(|part| part["text"].as_str()).collect(),
                _ => None,
            };
            let expected = "a string or an array of text parts";
            let content =
                content.ok_or_else(|| wrong(&format!("messages[{i}].content"), expected, &message["content"]))?;
            let known = |name: &&String| !["role", "content", "name"].contains(&name.as_str());
            if let Some(name) = message.as_object().and_then(|message| message.keys().find(known)) {
                return Err(ApiError::field(format!("messages[{i}].{name}"), "is not known here"));
            }
            out.push(Message { role: role.to_owned(), content });
        }
        Ok(out)
    }

    /// What is left may only ask for what happens anyway.
    fn neutral(mut self, chat: bool) -> Result<(), ApiError> {
        let mut neutral = vec![
            ("n", "1", Value::from(1)),
            ("presence_penalty", "0", Value::from(0)),
            ("frequency_penalty", "0", Value::from(0)),
            ("logit_bias", "{}", Value::Object(Map::new())),
        ];
        if chat {
            neutral.push(("response_format", "{\"type\": \"text\"}", serde_json::json!({"type": "text"})));
        } else {
            neutral.extend([("best_of", "1", Value::from(1)), ("suffix", "\"\"", Value::from(""))]);
        }
        for (name, shown, value) in neutral {
            let Some(given) = self.take(name) else { continue };
            let same = given == value || given.as_f64().is_some_and(|given| Some(given) == value.as_f64());
            if !same {
                return Err(ApiError::field(name, format!("only {shown} is supported, not {}", short(&given))));
            }
        }
        // A null asks for nothing.
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::field(name, "is not known here").with_code("unknown_field")),
        }
    }
}

fn wrong(name: &str, expected: &str, value: &Value) -> ApiError {
    ApiError::field(name, format!("expected {expected}, not {}", short(value)))
}

/// A value in an error message: on one line, its beginning.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { text.chars().take(40).collect::<String>() + "…" }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<Body, ApiError> {
        Body::parse(value.to_string().as_bytes(), value.get("messages").is_some())
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let prompts = |value: Value| parse(json!({"prompt": value})).unwrap().prompts;
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(prompts(json!("a")), [text("a")]);
        assert_eq!(prompts(json!([1, 2])), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(prompts(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(prompts(json!([[1], [2, 3]])), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
    }

    #[test]
    fn every_mistake_is_named() {
        let cases = [
            (json!({}), "prompt"),
            (json!({"prompt": {}}), "prompt"),
            (json!({"prompt": [1, -2]}), "prompt"),
            (json!({"prompt": ["a", 3]}), "prompt"),
            (json!({"prompt": "a", "max_tokens": -1}), "max_tokens"),
            (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
            (json!({"prompt": "a", "temperature": "hot"}), "temperature"),
            (json!({"prompt": "a", "top_p": 0}), "top_p"),
            (json!({"prompt": "a", "stop": [""]}), "stop"),
            (json!({"prompt": "a", "stop": [1]}), "stop"),
            (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
            (json!({"prompt": "a", "logprobs": true}), "logprobs"),
            (json!({"prompt": "a", "seed": 0.5}), "seed"),
            (json!({"prompt": "a", "stream": 1}), "stream"),
            (json!({"prompt": "a", "n": 2}), "n"),
            (json!({"prompt": "a", "presence_penalty": 0.5}), "presence_penalty"),
            (json!({"prompt": "a", "min_p": 0.1}), "min_p"),
            (json!({"prompt": "a", "stream_options": {"x": 1}}), "stream_options.x"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"content": "a"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}), "messages[0].tool_calls"),
            (json!({"messages": [{"role": "user", "content": "a"}], "echo": true}), "echo"),
            (json!({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}), "top_logprobs"),
        ];
        for (value, field) in cases {
            let error = parse(value.clone()).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(field)), "{value}: {error}");
            assert!(error.message.contains(field) && !error.message.contains('\n'));
        }
        assert!(Body::parse(b"{\"prompt\"", false).unwrap_err().message.starts_with("the body is not JSON"));
        assert!(Body::parse(b"[]", false).is_err());
    }

    #[test]
    fn what_changes_nothing_is_taken() {
        let body = parse(json!({"prompt": "a", "n": 1, "best_of": 1, "presence_penalty": 0.0, "logit_bias": null,
            "user": "u", "suffix": null, "anything": null, "stop": null, "seed": -1}));
        let body = body.unwrap();
        assert_eq!((body.max_tokens, body.temperature, body.seed), (Some(16), 1.0, Some(u64::MAX)));
        let body = parse(json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "logprobs": true, "top_logprobs": 2, "max_completion_tokens": 3}));
        let body = body.unwrap();
        assert_eq!((body.logprobs, body.max_tokens), (Some(2), Some(3)));
        assert_eq!(body.prompts, [Prompt::Chat(vec![Message::user("a")])]);
    }
}
