//! Perplexity of a text, in llama.cpp's convention (`tools/perplexity/perplexity.cpp`): the text is cut into windows without
//! overlap, each begins with the model's start token where it has one (in place of the window's first token), and only the
//! second half of a window is scored, so that every scored token has at least half a window before it.

use crate::backend::Backend;

/// The windows of `text`; a rest that fills none is left out.
pub fn windows(model: &impl Backend, text: &str, window: usize) -> Result<Vec<Vec<u32>>, String> {
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

#[cfg(test)]
mod tests {
    use ternbench_model::Batch;
    use ternbench_model::batch::Limits;

    use super::*;
    use crate::backend::{Answer, Question};
    use crate::local::LocalModel;
    use crate::testing::{Bytes, HashLm};

    #[test]
    fn the_second_half_of_each_window_is_scored() {
        let mut model = HashLm::new(512).local(2);
        let windows = windows(&model, "0123456789abcdefXYZ", 8).unwrap();
        assert_eq!(windows, [b"01234567".map(u32::from), b"89abcdef".map(u32::from)]);
        model.ask(0, Question::Window(windows[0].clone())).unwrap();
        let Some((0, Ok(Answer::Loss(loss)))) = model.answer(&mut |_| ()) else { panic!("no loss") };
        // Rows 4, 5 and 6 predict tokens 5, 6 and 7; the last token is not computed.
        assert_eq!((loss.n, model.batch().model().tokens_computed), (3, 7));
        let mut expected = 0.0;
        for target in 5..8 {
            let logits = HashLm::logits_after(&windows[0][..target]);
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            expected += sum.ln() - f64::from(logits[windows[0][target] as usize]);
        }
        assert!((loss.sum - expected).abs() < 1e-5);
    }

    #[test]
    fn every_window_begins_with_the_start_token() {
        let batch = Batch::new(HashLm::new(512), Limits::default());
        let model = LocalModel::with_text(batch, Bytes { bos: Some(7) });
        let windows = windows(&model, "0123456789", 4).unwrap();
        // The text's own start token is the first of the first window.
        assert_eq!(windows, [[7, 48, 49, 50], [7, 52, 53, 54]]);
    }

    #[test]
    fn a_text_or_context_too_short_is_named() {
        let model = HashLm::new(16).local(1);
        assert!(windows(&model, "0123", 8).unwrap_err().starts_with("4 tokens do not fill a window of 8"));
        assert!(windows(&model, "0123", 17).unwrap_err().contains("context of 16"));
    }
}
