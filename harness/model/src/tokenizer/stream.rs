//! Decoding one token at a time.

use super::{Tokenizer, TokenizerError};

/// What stands for bytes that are not (yet) UTF-8.
const BROKEN: char = '\u{FFFD}';

/// The most bytes of a character, and so of tokens that it can be spread over.
const MAX_CHAR_BYTES: usize = 4;

/// Decodes tokens as they come and never emits half a character: text waits until its last character is whole.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens whose text is still needed: those before `read` as context, for decoders that look back.
    ids: Vec<u32>,
    read: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), read: 0 }
    }

    /// The text that `id` completes; often a word, empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.pending(self.ids.len())?;
        if !text.is_empty() && !text.ends_with(BROKEN) {
            self.advance(self.ids.len());
            return Ok(text);
        }
        // Bytes that will never be a character must not hold up the text for ever; only the last few tokens can be one.
        let settled = self.ids.len().saturating_sub(MAX_CHAR_BYTES - 1);
        if settled - self.read.min(settled) < 2 * MAX_CHAR_BYTES {
            return Ok(String::new());
        }
        let text = self.pending(settled)?;
        self.advance(settled);
        Ok(text)
    }

    /// The tokens from `read` to `end` become the context of the next ones.
    fn advance(&mut self, end: usize) {
        self.ids.drain(..self.read);
        self.read = end - self.read;
    }

    /// What is left at the end, incomplete characters as U+FFFD.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.pending(self.ids.len())
    }

    /// The text of the tokens from `read` to `end`.
    fn pending(&self, end: usize) -> Result<String, TokenizerError> {
        let all = self.tokenizer.decode(&self.ids[..end])?;
        let context = self.tokenizer.decode(&self.ids[..self.read])?;
        match all.strip_prefix(context.as_str()) {
            Some(text) => Ok(text.to_owned()),
            // A broken character can change how the bytes before it decode.
            None => self.tokenizer.decode(&self.ids[self.read..end]),
        }
    }
}
