//! Llama 3's own tokenizer file: lines of base64 and rank, 128000 of them; 256 special tokens follow by convention.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::Vocab;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use super::{merges, one_line};
use crate::error::LoadError;

/// The special tokens behind the ranks (`gpu/tokenizer.py` of microsoft/BitNet, after Meta's `tokenizer.py`).
const N_SPECIAL: usize = 256;

fn special_tokens() -> Vec<String> {
    let reserved = |i: usize| format!("<|reserved_special_token_{i}|>");
    let mut tokens = vec!["<|begin_of_text|>".to_owned(), "<|end_of_text|>".to_owned()];
    tokens.extend((0..4).map(reserved));
    tokens.extend([
        "<|start_header_id|>".to_owned(),
        "<|end_header_id|>".to_owned(),
        reserved(4),
        "<|eot_id|>".to_owned(),
    ]);
    tokens.extend((5..).map(reserved).take(N_SPECIAL - tokens.len()));
    tokens
}

/// The tokenizer, what begins a text, and what ends one.
pub fn tokenizer(path: &Path) -> Result<(HfTokenizer, u32, Vec<u32>), LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::io(path, source))?;
    let bad = |reason: String| LoadError::file(path, one_line(reason));
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| bad("not a tiktoken file (a SentencePiece model? then tokenizer.json is needed)".to_owned()))?;

    let alphabet = byte_alphabet();
    let mut tokens: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let parsed = line.split_once(' ').and_then(|(token, rank)| Some((base64(token)?, rank.parse::<usize>().ok()?)));
        let (token, rank) = parsed.ok_or_else(|| bad(format!("line {} is not 'BASE64 RANK'", number + 1)))?;
        if rank != tokens.len() || token.is_empty() {
            return Err(bad(format!("line {}: rank {rank} where {} was expected", number + 1, tokens.len())));
        }
        tokens.push(token.iter().map(|&byte| alphabet[usize::from(byte)]).collect());
    }
    let n_ranks = tokens.len() as u32;
    let ids: HashMap<&str, u32> = tokens.iter().map(String::as_str).zip(0..).collect();
    if ids.len() != tokens.len() {
        return Err(bad("a token occurs twice".to_owned()));
    }
    let merges = merges::merges_of(tokens.iter().map(String::as_str), &ids);
    let mut vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let special = special_tokens();
    vocab.extend(special.iter().cloned().zip(n_ranks..));

    let mut inner = HfTokenizer::new(merges::byte_level_bpe(vocab, merges, true).map_err(bad)?);
    let words = merges::split(merges::LLAMA3_SPLIT).map_err(bad)?;
    inner.with_pre_tokenizer(Some(Sequence::new(vec![words, merges::byte_level()])));
    inner.with_decoder(Some(ByteLevel::default()));
    inner
        .add_special_tokens(special.into_iter().map(|token| AddedToken::from(token, true)))
        .map_err(|error| bad(error.to_string()))?;
    // In the order of `special_tokens`.
    Ok((inner, n_ranks, vec![n_ranks + 1, n_ranks + 9]))
}

/// GPT-2's mapping from bytes to printable characters, as `ByteLevel` has it: printable Latin-1 stands for itself, the other
/// bytes are, in order, the characters from U+0100 on.
pub(super) fn byte_alphabet() -> [char; 256] {
    let mut alphabet = ['\0'; 256];
    let mut next = 0x100;
    for (byte, place) in (0..=255u8).zip(&mut alphabet) {
        *place = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    alphabet
}

/// Standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if digits.len() % 4 == 1 || !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::new();
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}
