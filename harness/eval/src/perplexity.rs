//! Perplexity of a text, in llama.cpp's convention (`tools/perplexity/perplexity.cpp`): the text is cut into windows without
//! overlap, each begins with the model's start token where it has one (in place of the window's first token), and only the
//! second half of a window is scored, so that every scored token has at least half a window before it.

use crate::error::EvalError;
use crate::lm::LanguageModel;
use crate::score;
use crate::stats::LogLoss;

/// The windows of `text`; a rest that fills none is left out.
pub fn windows<M: LanguageModel>(model: &M, text: &str, window: usize) -> Result<Vec<Vec<u32>>, String> {
    if window > model.max_context() {
        return Err(format!(
            "windows of {window} tokens do not fit into the model's context of {}",
            model.max_context()
        ));
    }
    let encode = |text: &str| model.encode(text).map_err(|error| error.to_string());
    let ids = encode(text)?;
    // What the tokenizer adds to nothing is what it puts before a text.
    let start = encode("")?.first().copied();
    let mut windows: Vec<Vec<u32>> = ids.chunks_exact(window).map(<[u32]>::to_vec).collect();
    if windows.is_empty() {
        return Err(format!("{} tokens do not fill a window of {window}: a longer text is needed", ids.len()));
    }
    if let Some(start) = start {
        windows.iter_mut().for_each(|window| window[0] = start);
    }
    Ok(windows)
}

/// The losses of the tokens behind the middle of `window`.
pub fn score_window<M: LanguageModel>(model: &mut M, window: &[u32]) -> Result<LogLoss, EvalError> {
    let first_row = window.len() / 2;
    let mut loss = LogLoss::default();
    let Some((_, input)) = window.split_last() else {
        return Ok(loss);
    };
    let mut cache = model.new_cache(input.len());
    score::advance(model, &mut cache, input, first_row, |row, logits| {
        loss.add(logits.log_prob(window[row + 1])?);
        Ok(())
    })?;
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::HashLm;

    #[test]
    fn the_second_half_of_each_window_is_scored() {
        let mut model = HashLm::new(512);
        let windows = windows(&model, "0123456789abcdefXYZ", 8).unwrap();
        assert_eq!(windows, [b"01234567".map(u32::from), b"89abcdef".map(u32::from)]);
        let loss = score_window(&mut model, &windows[0]).unwrap();
        // Rows 4, 5 and 6 predict tokens 5, 6 and 7; the last token is not computed.
        assert_eq!((loss.n, model.tokens_computed), (3, 7));
        let mut expected = 0.0;
        for target in 5..8 {
            let pair = score::Pair { context: windows[0][..target].to_vec(), continuation: vec![windows[0][target]] };
            expected -= f64::from(score::loglikelihoods(&mut model, &[pair]).unwrap().loglikelihoods[0]);
        }
        assert!((loss.sum - expected).abs() < 1e-6);
    }

    #[test]
    fn every_window_begins_with_the_start_token() {
        let mut model = HashLm::new(512);
        model.bos = Some(7);
        let windows = windows(&model, "0123456789", 4).unwrap();
        // The text's own start token is the first of the first window.
        assert_eq!(windows, [[7, 48, 49, 50], [7, 52, 53, 54]]);
    }

    #[test]
    fn a_text_or_context_too_short_is_named() {
        let model = HashLm::new(16);
        assert!(windows(&model, "0123", 8).unwrap_err().starts_with("4 tokens do not fill a window of 8"));
        assert!(windows(&model, "0123", 17).unwrap_err().contains("context of 16"));
    }
}
