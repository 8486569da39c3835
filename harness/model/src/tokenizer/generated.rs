//! A byte-level BPE vocabulary of any size, for synthetic models that other engines are to load. Its merges put letters
//! together, one after the other: real encodings, meaningless tokens.

use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use super::tiktoken::byte_alphabet;
use super::{Extras, Surround, Tokenizer, TokenizerError, merges};

/// Begin and end of text, end of turn: the last ids.
const SPECIAL: [&str; 3] = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"];

impl Tokenizer {
    /// A vocabulary of `size` tokens that splits words like Llama 3: 256 bytes, merges of letters in the order of their
    /// length, three special tokens at the end.
    pub fn generated(size: usize) -> Result<Self, TokenizerError> {
        let bytes = byte_alphabet();
        let n_merges = size.checked_sub(bytes.len() + SPECIAL.len()).ok_or_else(|| {
            TokenizerError::new(format!(
                "a generated vocabulary has at least {} tokens, {size} were asked for",
                bytes.len() + SPECIAL.len()
            ))
        })?;
        let space = bytes[usize::from(b' ')];
        let letters: Vec<String> = ('a'..='z').map(String::from).collect();
        let mut tokens: Vec<String> = bytes.iter().map(|byte| byte.to_string()).collect();
        let mut merged: Merges = Vec::new();
        let mut shorter: Vec<String> = letters.iter().cloned().chain([space.to_string()]).collect();
        while merged.len() < n_merges {
            let mut longer = Vec::new();
            for (left, right) in shorter.iter().flat_map(|left| letters.iter().map(move |right| (left, right))) {
                if merged.len() == n_merges {
                    break;
                }
                merged.push((left.clone(), right.clone()));
                longer.push(format!("{left}{right}"));
            }
            tokens.extend(longer.iter().cloned());
            shorter = longer;
        }
        tokens.extend(SPECIAL.map(str::to_owned));
        let vocab: Vocab = tokens.into_iter().zip(0..).collect();

        let mut inner = HfTokenizer::new(merges::byte_level_bpe(vocab, merged, true).map_err(TokenizerError::new)?);
        let words = merges::split(merges::LLAMA3_SPLIT).map_err(TokenizerError::new)?;
        inner.with_pre_tokenizer(Some(Sequence::new(vec![words, merges::byte_level()])));
        inner.with_decoder(Some(ByteLevel::default()));
        let special = SPECIAL.map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(special).map_err(TokenizerError::new)?;
        let [bos, eos, eot] = [3, 2, 1].map(|from_end| (size - from_end) as u32);
        let extras = Extras { bos: Some(bos), eos: vec![eos, eot], chat_template: None };
        Ok(Self::build(inner, Surround::Ids { before: Some(bos), after: None }, extras))
    }
}
