//! Tokenizers from GGUF metadata (`tokenizer.ggml.*`).
//!
//! `gpt2` is byte-level BPE with a list of merges and a named way to split words (`pre`, of which llama.cpp's
//! `llama-vocab.cpp` knows the regexes); `llama` is SentencePiece BPE, whose merge order is in the scores.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use super::{Extras, Surround, Tokenizer, merges, one_line};
use crate::error::LoadError;
use crate::weights::gguf::GgufFile;
use crate::weights::map::shown;

/// Token types (`enum llama_token_type`).
pub(super) const NORMAL: f64 = 1.0;
const UNKNOWN: f64 = 2.0;
pub(super) const CONTROL: f64 = 3.0;
pub(super) const USER_DEFINED: f64 = 4.0;
pub(super) const UNUSED: f64 = 5.0;
pub(super) const BYTE: f64 = 6.0;

/// The vocabulary of Llama 3: some of its GGUF files lack `tokenizer.ggml.pre`.
const LLAMA3_VOCAB: usize = 128_256;

pub(super) const GPT2_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A named way to split words.
pub(super) struct Pre {
    pub(super) splits: &'static [&'static str],
    pub(super) ignore_merges: bool,
    add_bos: bool,
    pub(super) nfc: bool,
}

/// The ways that have a name here.
pub(super) const PRE_NAMES: [&str; 5] = ["llama-bpe", "smollm", "gpt-2", "qwen2", "default"];

pub(super) fn pre(name: &str) -> Option<Pre> {
    let plain = Pre { splits: &[GPT2_SPLIT], ignore_merges: false, add_bos: false, nfc: false };
    Some(match name {
        "llama-bpe" | "llama3" | "llama-v3" => {
            Pre { splits: &[merges::LLAMA3_SPLIT], ignore_merges: true, add_bos: true, ..plain }
        }
        // Each digit alone, then as GPT-2.
        "smollm" => Pre { splits: &[r"\p{N}", GPT2_SPLIT], ..plain },
        "gpt-2" | "gpt2" => plain,
        // NFC is in Qwen's tokenizer.json.
        "qwen2" => Pre { splits: &[QWEN2_SPLIT], nfc: true, ..plain },
        // What llama.cpp does with models that it does not know.
        "default" => Pre { splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"], ..plain },
        _ => return None,
    })
}

/// The tables that both kinds have.
struct Tables<'a> {
    file: &'a GgufFile,
    tokens: Vec<&'a str>,
    types: Vec<f64>,
}

impl<'a> Tables<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, LoadError> {
        let tokens = file.strings("tokenizer.ggml.tokens")?.ok_or_else(|| file.error("holds no tokenizer"))?;
        let types = match file.numbers("tokenizer.ggml.token_type")? {
            Some(types) if types.len() == tokens.len() => types,
            Some(types) => return Err(file.error(format!("{} token types for {} tokens", types.len(), tokens.len()))),
            None => vec![1.0; tokens.len()],
        };
        Ok(Self { file, tokens, types })
    }

    fn vocab(&self) -> Vocab {
        self.tokens.iter().map(|&token| token.to_owned()).zip(0..).collect()
    }

    /// Registers control tokens as special and user-defined ones as to be matched before anything else.
    fn add_tokens(&self, inner: &mut HfTokenizer, normalized: bool) -> Result<(), LoadError> {
        let of_type = |wanted: f64| {
            let pairs = self.tokens.iter().zip(&self.types);
            pairs.filter(move |&(_, &ty)| ty == wanted).map(|(&token, _)| token)
        };
        let special = of_type(CONTROL).map(|token| AddedToken::from(token, true));
        let user = of_type(USER_DEFINED).map(|token| AddedToken::from(token, false).normalized(normalized));
        let added = inner.add_special_tokens(special).and_then(|_| inner.add_tokens(user));
        added.map(|_| ()).map_err(|error| self.file.error(one_line(error)))
    }

    fn id(&self, key: &str) -> Result<Option<u32>, LoadError> {
        match self.file.u64(key)? {
            None => Ok(None),
            Some(id) if (id as usize) < self.tokens.len() => Ok(Some(id as u32)),
            Some(id) => {
                Err(self.file.error(format!("metadata '{key}' is {id}, there are {} tokens", self.tokens.len())))
            }
        }
    }
}

/// Builds the tokenizer of a GGUF file.
pub fn tokenizer(file: &GgufFile) -> Result<Tokenizer, LoadError> {
    let model =
        file.str("tokenizer.ggml.model")?.ok_or_else(|| file.error("holds no tokenizer ('tokenizer.ggml.model')"))?;
    let tables = Tables::read(file)?;
    let (inner, add_bos) = match model {
        "gpt2" => byte_level(&tables)?,
        "llama" => (sentencepiece(&tables)?, true),
        other => {
            let shown = shown(other);
            return Err(
                file.error(format!("tokenizer '{shown}' is not supported (gpt2 and llama are): use a tokenizer.json"))
            );
        }
    };
    let mut extras = Extras { bos: tables.id("tokenizer.ggml.bos_token_id")?, ..Extras::default() };
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        extras.eos.extend(tables.id(key)?);
    }
    extras.chat_template = file.str("tokenizer.chat_template")?.map(str::to_owned);
    let add_bos = file.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
    let add_eos = file.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let before = extras.bos.filter(|_| add_bos);
    let after = extras.eos.first().copied().filter(|_| add_eos);
    Ok(Tokenizer::build(inner, Surround::Ids { before, after }, extras))
}

fn byte_level(tables: &Tables<'_>) -> Result<(HfTokenizer, bool), LoadError> {
    let file = tables.file;
    let bad = |reason: String| file.error(one_line(reason));
    let name = match file.str("tokenizer.ggml.pre")? {
        Some(name) => name,
        None if tables.tokens.len() == LLAMA3_VOCAB => "llama-bpe",
        None => "default",
    };
    let pre = pre(name).ok_or_else(|| {
        let known = PRE_NAMES.join(", ");
        bad(format!("tokenizer.ggml.pre '{}' is not supported ({known} are): use a tokenizer.json", shown(name)))
    })?;

    let vocab = tables.vocab();
    let lines = file.strings("tokenizer.ggml.merges")?.ok_or_else(|| bad("the tokenizer has no merges".to_owned()))?;
    let longest = tables.tokens.iter().map(|token| token.len()).max().unwrap_or(0);
    let mut merges: Merges = Vec::with_capacity(lines.len());
    let unusable = |line: &str| bad(format!("the merge '{}' is not of known tokens", shown(line)));
    for line in &lines {
        // The builder looks all three tokens up, but takes it for granted that the result is no longer than the longest.
        let known = line.split_once(' ').filter(|(left, right)| left.len() + right.len() <= longest);
        let (left, right) = known.ok_or_else(|| unusable(line))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = merges::byte_level_bpe(vocab, merges, pre.ignore_merges).map_err(|error| {
        // Looked for only now: the builder does not say which merge it was.
        let vocab = tables.vocab();
        let known = |line: &str| {
            line.split_once(' ').is_some_and(|(left, right)| {
                [left, right].iter().all(|&part| vocab.contains_key(part))
                    && vocab.contains_key(&format!("{left}{right}"))
            })
        };
        lines.iter().find(|line| !known(line)).map_or_else(|| bad(error), |line| unusable(line))
    })?;
    let mut inner = HfTokenizer::new(model);
    if pre.nfc {
        inner.with_normalizer(Some(NFC)).map_err(|error| bad(error.to_string()))?;
    }
    let mut steps = pre.splits.iter().map(|regex| merges::split(regex)).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    steps.push(merges::byte_level());
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    tables.add_tokens(&mut inner, false)?;
    Ok((inner, pre.add_bos))
}

fn sentencepiece(tables: &Tables<'_>) -> Result<HfTokenizer, LoadError> {
    let file = tables.file;
    let bad = |error: &dyn std::fmt::Display| file.error(one_line(error));
    let scores = file.numbers("tokenizer.ggml.scores")?.ok_or_else(|| file.error("the tokenizer has no scores"))?;
    if scores.len() != tables.tokens.len() {
        return Err(file.error(format!("{} scores for {} tokens", scores.len(), tables.tokens.len())));
    }
    let mergeable = |&id: &usize| ![UNKNOWN, CONTROL, BYTE].contains(&tables.types[id]);
    let mut by_rank: Vec<usize> = (0..tables.tokens.len()).filter(mergeable).collect();
    by_rank.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let ids: HashMap<&str, u32> = by_rank.iter().map(|&id| (tables.tokens[id], id as u32)).collect();
    let merges = merges::merges_of(by_rank.iter().map(|&id| tables.tokens[id]), &ids);

    let unknown = tables
        .types
        .iter()
        .position(|&ty| ty == UNKNOWN)
        .or(tables.id("tokenizer.ggml.unknown_token_id")?.map(|id| id as usize));
    let mut builder = BPE::builder().vocab_and_merges(tables.vocab(), merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(tables.tokens[unknown].to_owned());
    }
    let mut inner = HfTokenizer::new(builder.build().map_err(|error| bad(&error))?);

    let spaces = Replace::new(" ", "▁").map_err(|error| bad(&error))?;
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(|error| bad(&error))?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    let prefix = file.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = Vec::new();
    if prefix {
        normalizers.push(Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(spaces.into());
    inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(|error| bad(&error))?;
    inner.with_decoder(Some(Decoders::new(decoders)));
    tables.add_tokens(&mut inner, !prefix)?;
    Ok(inner)
}
