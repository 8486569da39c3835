//! A greedy response, and where it ends.
//!
//! Source: lm-evaluation-harness 0.4.13, `models/huggingface.py` (`generate_until`) and `models/utils.py`
//! (`postprocess_generated_text`).

use serde::Serialize;

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Every token generated, the end token or those that made a stop string included.
    pub ids: Vec<u32>,
    /// The text before the stop.
    pub text: String,
    /// What ended it.
    pub finish: Finish,
    /// Tokens of the prompt, as given to the model.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that did not fit into the model's context, and were left out from its start.
    pub truncated_tokens: usize,
}

/// What ended a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model's end token.
    Eos,
    /// A stop string.
    Stop,
    /// The most tokens allowed.
    #[default]
    Length,
}

/// Whether one of the stop strings has appeared.
pub(crate) fn has_stop(text: &str, stop: &[String]) -> bool {
    stop.iter().any(|stop| !stop.is_empty() && text.contains(stop.as_str()))
}

/// The text before the first of the stop strings, cut at one after the other as lm-evaluation-harness does.
pub fn before_stop<'t>(text: &'t str, stop: &[String]) -> &'t str {
    stop.iter()
        .filter(|stop| !stop.is_empty())
        .fold(text, |text, stop| text.split(stop.as_str()).next().unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Answer, Backend, Question, Text};
    use crate::error::EvalError;
    use crate::testing::{EOS, HashLm};

    fn stops(stop: &[&str]) -> Vec<String> {
        stop.iter().map(|stop| (*stop).to_owned()).collect()
    }

    /// The response, and how many tokens went through the model for it.
    fn respond(model: HashLm, prompt: &str, max: usize, stop: &[&str]) -> Result<(Response, usize), EvalError> {
        let mut model = model.local(4);
        let prompt = Text::Plain(prompt.to_owned());
        model.ask(0, Question::Generate { prompt, max_new_tokens: max, stop: stops(stop) })?;
        let Some((0, Ok(Answer::Response(response)))) = model.answer(&mut |_| ()) else { panic!("no response") };
        assert!(model.answer(&mut |_| ()).is_none());
        Ok((response, model.batch().model().tokens_computed))
    }

    #[test]
    fn a_stop_string_ends_the_response_and_is_cut_off() {
        let model = HashLm::scripted(100, " 42.\n\nQuestion: more");
        let (response, computed) = respond(model, "six by seven?", 50, &["</s>", "Question:"]).unwrap();
        assert_eq!(response.text, " 42.\n\n");
        assert_eq!(response.ids, " 42.\n\nQuestion:".bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(response.finish, Finish::Stop);
        assert_eq!((response.prompt_tokens, response.truncated_tokens), (13, 0));
        assert_eq!(computed, 13 + response.ids.len() - 1);
    }

    #[test]
    fn the_end_token_ends_it_and_is_kept_in_the_ids() {
        let (response, _) = respond(HashLm::scripted(100, "7"), "?", 50, &[]).unwrap();
        assert_eq!((response.text.as_str(), response.finish), ("7", Finish::Eos));
        assert_eq!(response.ids, [u32::from(b'7'), EOS]);
        assert_eq!(respond(HashLm::scripted(100, ""), "?", 50, &[]).unwrap().0.text, "");
    }

    #[test]
    fn the_length_ends_it() {
        let (response, computed) = respond(HashLm::scripted(100, "123456789"), "?", 4, &["9"]).unwrap();
        assert_eq!((response.text.as_str(), response.finish), ("1234", Finish::Length));
        // A token that will not be read is not computed.
        assert_eq!(computed, 1 + 3);
        // A stop in the last token allowed is a stop.
        let (response, _) = respond(HashLm::scripted(100, "123456789"), "?", 4, &["4"]).unwrap();
        assert_eq!((response.text.as_str(), response.finish), ("123", Finish::Stop));
    }

    #[test]
    fn a_long_prompt_loses_its_start() {
        let (response, _) = respond(HashLm::scripted(20, "ok"), "0123456789abcdef", 8, &[]).unwrap();
        assert_eq!((response.prompt_tokens, response.truncated_tokens), (12, 4));
        assert_eq!(response.text, "ok");
        assert!(respond(HashLm::scripted(20, "ok"), "0", 20, &[]).is_err());
        assert!(respond(HashLm::scripted(20, "ok"), "", 8, &[]).is_err());
    }

    #[test]
    fn the_cut_is_made_at_each_stop_in_turn() {
        assert_eq!(before_stop("a</s>b Question: c", &stops(&["Question:", "</s>"])), "a");
        assert_eq!(before_stop("none", &stops(&["Question:", ""])), "none");
        // lm-evaluation-harness cuts at "b" first and then no longer finds "ab".
        assert_eq!(before_stop("xab", &stops(&["b", "ab"])), "xa");
    }
}
