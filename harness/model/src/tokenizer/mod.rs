//! Text to token ids and back, on the `tokenizers` crate, from whatever a model comes with: `tokenizer.json`, GGUF metadata or
//! Llama 3's tiktoken ranks.

pub(crate) mod export;
mod fragile;
mod generated;
mod gguf;
mod merges;
mod stream;
mod tiktoken;

use std::path::Path;
use std::sync::OnceLock;

use thiserror::Error;
use tokenizers::Tokenizer as HfTokenizer;

pub use self::stream::DecodeStream;
use crate::error::LoadError;
use crate::weights::gguf::GgufFile;
use crate::weights::safetensors::file::read_json;

/// Why a text could not be tokenized or ids not be decoded.
#[derive(Clone, Debug, Error)]
#[error("tokenizer: {0}")]
pub struct TokenizerError(String);

impl TokenizerError {
    fn new(error: impl ToString) -> Self {
        Self(one_line(error))
    }
}

fn one_line(error: impl ToString) -> String {
    error.to_string().replace(['\n', '\r'], " ")
}

/// What happens to text that looks like a special token, `<|eot_id|>` say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialText {
    /// It is text like any other: what a user typed cannot end the turn.
    AsText,
    /// It becomes the special token (Hugging Face's behaviour, and what rendered chat templates need).
    #[default]
    Parsed,
}

/// What a tokenizer puts around a text by default.
#[derive(Clone, Debug)]
enum Surround {
    /// Whatever the post-processor of `tokenizer.json` says.
    PostProcessor,
    /// These ids before and after.
    Ids { before: Option<u32>, after: Option<u32> },
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: HfTokenizer,
    /// The same with special tokens as text, made when first needed.
    as_text: OnceLock<HfTokenizer>,
    surround: Surround,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Everything that ends a generation, `eos` first.
    ends: Vec<u32>,
    chat_template: Option<String>,
    vocab_size: usize,
}

/// Tokens that end a turn or a text in one model family or another (llama.cpp looks for the same in `llama-vocab.cpp`).
const END_TOKENS: [&str; 8] =
    ["<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<|eom_id|>", "<|end|>", "</s>"];

/// What [`Tokenizer::build`] needs besides the tokenizer itself.
#[derive(Default)]
struct Extras {
    bos: Option<u32>,
    eos: Vec<u32>,
    chat_template: Option<String>,
}

impl Tokenizer {
    fn build(inner: HfTokenizer, surround: Surround, extras: Extras) -> Self {
        let mut ends = extras.eos;
        let added = inner.get_added_vocabulary();
        ends.extend(
            END_TOKENS
                .iter()
                .filter(|token| added.is_special_token(token))
                .filter_map(|token| inner.token_to_id(token)),
        );
        let mut seen = std::collections::HashSet::new();
        ends.retain(|&id| seen.insert(id));
        Self {
            vocab_size: inner.get_vocab_size(true),
            inner,
            as_text: OnceLock::new(),
            surround,
            bos: extras.bos,
            eos: ends.first().copied(),
            ends,
            chat_template: extras.chat_template,
        }
    }

    /// The tokenizer of a model: a GGUF file, a folder with `tokenizer.json` or `tokenizer.model`, or such a file itself.
    pub fn for_model(path: &Path) -> Result<Self, LoadError> {
        if !path.is_dir() {
            return match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => Self::from_file(path),
                Some("model") => Self::from_tiktoken(path),
                _ => Self::from_gguf(&GgufFile::open(path)?),
            };
        }
        let (json, ranks) = (path.join("tokenizer.json"), path.join("tokenizer.model"));
        if json.exists() {
            Self::from_file(&json)
        } else if ranks.exists() {
            Self::from_tiktoken(&ranks)
        } else {
            Err(LoadError::file(path, "holds neither tokenizer.json nor tokenizer.model"))
        }
    }

    /// From a `tokenizer.json`; the files beside it say what begins and ends a text and how a chat looks.
    pub fn from_file(path: &Path) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path).map_err(|source| LoadError::io(path, source))?;
        let bad = |error: &dyn std::fmt::Display| LoadError::file(path, format!("bad tokenizer: {}", one_line(error)));
        fragile::check(&bytes).map_err(|error| bad(&error))?;
        let mut inner = HfTokenizer::from_bytes(bytes).map_err(|error| bad(&error))?;
        inner.with_truncation(None).map_err(|error| bad(&error))?;
        inner.with_padding(None);
        let extras = folder_extras(path.parent().unwrap_or(Path::new(".")), &inner)?;
        Ok(Self::build(inner, Surround::PostProcessor, extras))
    }

    /// From the metadata of a GGUF file.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        gguf::tokenizer(file)
    }

    /// From Llama 3's `tokenizer.model`: one token per line, base64 and rank.
    pub fn from_tiktoken(path: &Path) -> Result<Self, LoadError> {
        let (inner, bos, mut eos) = tiktoken::tokenizer(path)?;
        let mut extras = folder_extras(path.parent().unwrap_or(Path::new(".")), &inner)?;
        eos.append(&mut extras.eos);
        let surround = Surround::Ids { before: Some(bos), after: None };
        Ok(Self::build(inner, surround, Extras { bos: Some(bos), eos, chat_template: extras.chat_template }))
    }

    /// The files of a Hugging Face folder that make this tokenizer, by name: `tokenizer.json` and what belongs beside it.
    pub fn to_hugging_face(&self) -> Result<Vec<(&'static str, String)>, TokenizerError> {
        export::hugging_face(self)
    }

    /// The ids of `text` alone, nothing put around it.
    pub fn encode(&self, text: &str, special: SpecialText) -> Result<Vec<u32>, TokenizerError> {
        let encoding = match special {
            SpecialText::Parsed => &self.inner,
            SpecialText::AsText => self.as_text.get_or_init(|| {
                let mut inner = self.inner.clone();
                inner.set_encode_special_tokens(true);
                inner
            }),
        };
        let encoding = encoding.encode_fast(text, false).map_err(TokenizerError::new)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` with what the model's tokenizer puts around it by default (SmolLM2 nothing, Gemma `<bos>`, Llama 3
    /// `<|begin_of_text|>`), special tokens parsed.
    pub fn encode_default(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.surround {
            Surround::PostProcessor => {
                let encoding = self.inner.encode_fast(text, true).map_err(TokenizerError::new)?;
                Ok(encoding.get_ids().to_vec())
            }
            Surround::Ids { before, after } => {
                let ids = self.encode(text, SpecialText::Parsed)?;
                Ok(before.into_iter().chain(ids).chain(after).collect())
            }
        }
    }

    /// [`Self::encode_default`] with the place in `text` where each token begins, in code points; 0 for what is put before the text,
    /// the text's length for what is put behind it.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, usize)>, TokenizerError> {
        let around = matches!(self.surround, Surround::PostProcessor);
        let encoding = self.inner.encode_char_offsets(text, around).map_err(TokenizerError::new)?;
        let mut tokens = Vec::with_capacity(encoding.len() + 2);
        let mut last = 0;
        for (&id, &(begin, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            // What is not of the text has the offsets (0, 0).
            let begin = if (begin, end) == (0, 0) { last } else { begin };
            last = last.max(end);
            tokens.push((id, begin));
        }
        if let Surround::Ids { before, after } = self.surround {
            let end = text.chars().count();
            tokens.splice(0..0, before.map(|id| (id, 0)));
            tokens.extend(after.map(|id| (id, end)));
        }
        Ok(tokens)
    }

    /// The text of `ids`, without special tokens. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(TokenizerError::new)
    }

    /// The text of `ids`, special tokens spelled out.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(TokenizerError::new)
    }

    /// Decodes ids as they come.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// What a text begins with, where the model has such a token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// What a text ends with.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Everything that ends a generation: end of text, end of turn; [`Self::eos_id`] first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How the vocabulary spells a token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The model's chat template (Jinja), to be rendered by [`crate::chat`].
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

/// What `tokenizer_config.json`, `generation_config.json`, `config.json` and `chat_template.jinja` of a folder say, as far as
/// they exist.
fn folder_extras(folder: &Path, inner: &HfTokenizer) -> Result<Extras, LoadError> {
    let optional = |name: &str| -> Result<serde_json::Value, LoadError> {
        let path = folder.join(name);
        if path.exists() { read_json(&path) } else { Ok(serde_json::Value::Null) }
    };
    let tokenizer_config = optional("tokenizer_config.json")?;
    let configs = [optional("generation_config.json")?, optional("config.json")?];

    // A token is given as its text or as an object with its text.
    let token = |key: &str| {
        let token = &tokenizer_config[key];
        inner.token_to_id(token.as_str().or(token["content"].as_str())?)
    };
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut extras = Extras { bos: token("bos_token"), ..Extras::default() };
    extras.eos.extend(token("eos_token"));
    for config in &configs {
        extras.bos = extras.bos.or(id(&config["bos_token_id"]));
        match &config["eos_token_id"] {
            serde_json::Value::Array(ids) => extras.eos.extend(ids.iter().filter_map(id)),
            single => extras.eos.extend(id(single)),
        }
    }
    extras.chat_template = match &tokenizer_config["chat_template"] {
        serde_json::Value::String(template) => Some(template.clone()),
        serde_json::Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    };
    let jinja = folder.join("chat_template.jinja");
    if jinja.exists() {
        extras.chat_template = Some(std::fs::read_to_string(&jinja).map_err(|source| LoadError::io(&jinja, source))?);
    }
    Ok(extras)
}
