//! Byte pair encoding in terms of the `tokenizers` crate, from vocabularies that come without a list of merges.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// Llama 3's split into words (`tokenizer.json` of the model).
pub const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pre-tokenizer that makes every match of a regex a piece of its own, and every stretch between matches.
pub fn split(regex: &str) -> Result<PreTokenizerWrapper, String> {
    let split = Split::new(SplitPattern::Regex(regex.to_owned()), SplitDelimiterBehavior::Isolated, false);
    split.map(Into::into).map_err(|error| format!("splitting regex: {error}"))
}

/// The step from text to the byte alphabet, without a regex of its own.
pub fn byte_level() -> PreTokenizerWrapper {
    ByteLevel::new(false, true, false).into()
}

/// The merges behind a vocabulary in which every token but the smallest came from merging two others: for each token, in the
/// order of `by_rank` (first to merge first), all ways to put it together from two tokens. Transformers converts tiktoken and
/// SentencePiece vocabularies in the same way (`convert_slow_tokenizer.py`, `generate_merges`).
pub fn merges_of<'a>(by_rank: impl Iterator<Item = &'a str>, ids: &HashMap<&str, u32>) -> Merges {
    let mut merges = Vec::new();
    let mut ways = Vec::new();
    for token in by_rank {
        ways.clear();
        ways.extend(token.char_indices().skip(1).filter_map(|(at, _)| {
            let (left, right) = token.split_at(at);
            Some(((*ids.get(left)?, *ids.get(right)?), left, right))
        }));
        ways.sort_unstable_by_key(|&(ids, ..)| ids);
        merges.extend(ways.iter().map(|&(_, left, right)| (left.to_owned(), right.to_owned())));
    }
    merges
}

/// A byte-level model. Printable ASCII must be there. Rarer bytes may be missing (SmolLM2 lacks some control characters and
/// the bytes of a few scripts); like in transformers, text is then encoded without them.
pub fn byte_level_bpe(vocab: Vocab, merges: Merges, ignore_merges: bool) -> Result<BPE, String> {
    if let Some(byte) = ('!'..='~').find(|byte| !vocab.contains_key(byte.encode_utf8(&mut [0; 4]) as &str)) {
        return Err(format!("the vocabulary lacks the byte token '{byte}', so it cannot encode text"));
    }
    BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|error| format!("bad vocabulary: {error}"))
}
