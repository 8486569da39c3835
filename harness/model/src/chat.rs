//! From a conversation to the tokens that a chat model expects: by the model's own Jinja template, or in the format of
//! BitNet b1.58 2B4T, which tokenizes headers and contents separately and so cannot be a template.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use thiserror::Error;

use crate::config::Architecture;
use crate::tokenizer::{SpecialText, Tokenizer, TokenizerError};

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".to_owned(), content: content.into() }
    }

    /// Instructions before the first turn.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".to_owned(), content: content.into() }
    }
}

/// How a conversation becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// The Jinja template that came with the tokenizer.
    Template,
    /// `System: …<|eot_id|>User: …<|eot_id|>Assistant: …`, see `ChatFormat` in `gpu/tokenizer.py` of microsoft/BitNet.
    Bitnet,
}

/// Why a conversation could not be put into tokens.
#[derive(Debug, Error)]
pub enum ChatError {
    /// The model has no template and is not 2B4T.
    #[error("chat: this model has no chat template: use a plain prompt")]
    NoTemplate,
    /// The template is wrong or refused the conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// Not a role of 2B4T.
    #[error("chat: role '{0}' is not one of system, user, assistant")]
    Role(String),
    /// The tokenizer lacks a token of the format.
    #[error("chat: the tokenizer has no token '{0}', which this chat format needs")]
    MissingToken(&'static str),
    /// A text could not be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl ChatFormat {
    /// The format of a model: 2B4T's own for BitNet with the Llama 3 tokenizer, else its template.
    pub fn of(architecture: Architecture, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        if architecture == Architecture::Bitnet && tokenizer.token_to_id("<|eot_id|>").is_some() {
            Ok(Self::Bitnet)
        } else if tokenizer.chat_template().is_some() {
            Ok(Self::Template)
        } else {
            Err(ChatError::NoTemplate)
        }
    }

    /// The ids of a conversation, begin-of-text included; with `generate`, up to where the model's answer starts.
    pub fn encode(self, tokenizer: &Tokenizer, messages: &[Message], generate: bool) -> Result<Vec<u32>, ChatError> {
        match self {
            Self::Bitnet => encode_bitnet(tokenizer, messages, generate),
            Self::Template => {
                let text = render(tokenizer, messages, generate, SystemTime::now())?;
                Ok(tokenizer.encode(&text, SpecialText::Parsed)?)
            }
        }
    }
}

/// 2B4T: header and content are tokenized apart, the content without the white space around it, special tokens in it as text.
fn encode_bitnet(tokenizer: &Tokenizer, messages: &[Message], generate: bool) -> Result<Vec<u32>, ChatError> {
    let special = |token| tokenizer.token_to_id(token).ok_or(ChatError::MissingToken(token));
    let (begin, end) = (special("<|begin_of_text|>")?, special("<|eot_id|>")?);
    let text = |text: &str| tokenizer.encode(text, SpecialText::AsText);
    let header = |role: &str| match role {
        "system" => Ok("System: "),
        "user" => Ok("User: "),
        "assistant" => Ok("Assistant: "),
        other => Err(ChatError::Role(other.escape_debug().to_string())),
    };
    let mut ids = vec![begin];
    for Message { role, content } in messages {
        ids.extend(text(header(role)?)?);
        ids.extend(text(content.trim())?);
        ids.push(end);
    }
    if generate {
        ids.extend(text(header("assistant")?)?);
    }
    Ok(ids)
}

/// The text of a conversation by the tokenizer's template, with the environment that transformers gives its templates
/// (`chat_template_utils.py`): trimmed blocks, Python's string methods, `raise_exception`, `strftime_now` (here in UTC).
pub fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    generate: bool,
    now: SystemTime,
) -> Result<String, ChatError> {
    let template = tokenizer.chat_template().ok_or(ChatError::NoTemplate)?;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
    let bad = |error: minijinja::Error| {
        let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
        ChatError::Template(format!("{}{line}", error.to_string().replace(['\n', '\r'], " ")))
    };
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(bad)?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_filter("tojson", |value: Value, options: Kwargs| python_json(&value, options.get("indent")?));
    let compiled = environment.template_from_str(template).map_err(bad)?;
    let rendered = compiled.render(context! {
        messages => Serde(messages),
        add_generation_prompt => generate,
        // None and not undefined: templates ask for both.
        tools => Value::from(()),
        documents => Value::from(()),
        bos_token => token(tokenizer.bos_id()),
        eos_token => token(tokenizer.eos_id()),
    });
    rendered.map_err(bad)
}

/// JSON as Python's `json.dumps` writes it: a space after every comma and colon, or `indent` spaces a level.
fn python_json(value: &Value, indent: Option<usize>) -> Result<String, minijinja::Error> {
    let mut out = Vec::new();
    let indent = indent.map(|width| " ".repeat(width));
    let written = match &indent {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `{"a": 1, "b": [1, 2]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The directives of `strftime` that chat templates use, in UTC; others stay as they are.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('H') => out += &format!("{:02}", seconds / 3600 % 24),
            Some('M') => out += &format!("{:02}", seconds / 60 % 60),
            Some('S') => out += &format!("{:02}", seconds % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime("%d %b %Y", at(0)), "01 Jan 1970");
        assert_eq!(strftime("%d %B %Y %H:%M:%S %% %q", at(1_721_995_199)), "26 July 2024 11:59:59 % %q");
        assert_eq!(strftime("%Y-%m-%d", at(1_709_164_800)), "2024-02-29");
        assert_eq!(strftime("%Y-%m-%d%", at(4_107_542_400)), "2100-03-01%");
    }
}
