//! Tokens and where they stand in the text, as `logprobs` reports them.

use ternbench_model::Tokenizer;
use ternbench_model::tokenizer::{DecodeStream, TokenizerError};

/// A prompt: its tokens, its text, and where in it each token begins (`text_offset`, in code points).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The tokens, those that the tokenizer puts around a text included.
    pub ids: Vec<u32>,
    /// Where each begins.
    pub offsets: Vec<usize>,
    /// The text.
    pub text: String,
}

impl Tokens {
    /// The tokens of `text`, with what the model's tokenizer adds by default.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn of_text(tokenizer: &Tokenizer, text: &str) -> Result<Self, TokenizerError> {
        let (ids, offsets) = tokenizer.encode_with_offsets(text)?.into_iter().unzip();
        Ok(Self { ids, offsets, text: text.to_owned() })
    }

    /// Tokens as they are, special ones without text.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn of_ids(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Self, TokenizerError> {
        let mut growing = Growing::new(tokenizer, 0);
        for &id in ids {
            growing.push(id)?;
        }
        growing.finish()?;
        Ok(Self { ids: growing.ids, offsets: growing.offsets, text: growing.text })
    }

    /// Code points of the text.
    pub fn n_chars(&self) -> usize {
        self.text.chars().count()
    }
}

/// A text that grows token by token. A character that several tokens make appears with the last of them.
pub struct Growing<'t> {
    stream: Option<DecodeStream<'t>>,
    n_chars: usize,
    /// The tokens so far.
    pub ids: Vec<u32>,
    /// Where each begins, in code points.
    pub offsets: Vec<usize>,
    /// The text so far.
    pub text: String,
}

impl<'t> Growing<'t> {
    /// An empty one whose text begins at `offset`.
    pub fn new(tokenizer: &'t Tokenizer, offset: usize) -> Self {
        let stream = Some(tokenizer.decode_stream());
        Self { stream, n_chars: offset, ids: Vec::new(), offsets: Vec::new(), text: String::new() }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn push(&mut self, id: u32) -> Result<(), TokenizerError> {
        self.ids.push(id);
        self.offsets.push(self.n_chars);
        let more = match &mut self.stream {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        self.extend(&more);
        Ok(())
    }

    /// Adds what is left of broken characters.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn finish(&mut self) -> Result<(), TokenizerError> {
        let more = self.stream.take().map(DecodeStream::finish).transpose()?.unwrap_or_default();
        self.extend(&more);
        Ok(())
    }

    /// Takes a token that ends the text and is no part of it.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn push_end(&mut self, id: u32) -> Result<(), TokenizerError> {
        self.finish()?;
        self.ids.push(id);
        self.offsets.push(self.n_chars);
        Ok(())
    }

    /// Cuts the text at a byte of it, and says where that is in code points.
    pub fn cut(&mut self, at: usize) -> usize {
        self.n_chars -= self.text[at..].chars().count();
        self.text.truncate(at);
        self.n_chars
    }

    fn extend(&mut self, more: &str) {
        self.n_chars += more.chars().count();
        self.text += more;
    }
}

/// Where in `text` the first of the stop strings begins, and which it is.
pub fn find_stop<'s>(text: &str, stop: &'s [String]) -> Option<(usize, &'s str)> {
    stop.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at, stop.as_str()))).min_by_key(|&(at, _)| at)
}

/// How many bytes of `text` can be shown when what follows might complete a stop string.
pub fn safe_len(text: &str, stop: &[String]) -> usize {
    let could_begin = |at: &usize| stop.iter().any(|stop| stop.starts_with(&text[*at..]));
    text.char_indices().map(|(at, _)| at).find(could_begin).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stop_ends_a_text_and_its_beginning_is_held_back() {
        let stop = ["Question:", "é\n"].map(str::to_owned);
        assert_eq!(find_stop("an é\nQuestion:", &stop), Some((3, "é\n")));
        assert_eq!(find_stop("Question", &stop), None);
        assert_eq!(safe_len("an Ques", &stop), 3);
        assert_eq!(safe_len("an Quest for é", &stop), 13);
        assert_eq!(safe_len("plain", &stop), 5);
        assert_eq!(safe_len("", &stop), 0);
    }
}
