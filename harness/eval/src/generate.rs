//! Greedy generation of one response.
//!
//! Source: lm-evaluation-harness 0.4.13, `models/huggingface.py` (`generate_until`) and `models/utils.py`
//! (`postprocess_generated_text`).

use serde::Serialize;

use crate::error::EvalError;
use crate::lm::{LanguageModel, Logits};

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model's end token.
    Eos,
    /// A stop string.
    Stop,
    /// The most tokens allowed.
    Length,
}

/// Answers `prompt` greedily, with at most `max_new_tokens` tokens, until a string of `stop` or an end token.
pub fn greedy<M: LanguageModel>(
    model: &mut M,
    prompt: &str,
    max_new_tokens: usize,
    stop: &[String],
) -> Result<Response, EvalError> {
    let max = model.max_context();
    if max_new_tokens >= max {
        let reason = format!("{max_new_tokens} new tokens leave no room for a prompt in a context of {max}");
        return Err(EvalError::Model(reason));
    }
    let mut prompt_ids = model.encode(prompt)?;
    let truncated_tokens = prompt_ids.len().saturating_sub(max - max_new_tokens);
    prompt_ids.drain(..truncated_tokens);
    if prompt_ids.is_empty() {
        return Err(EvalError::Model("the prompt has no tokens".to_owned()));
    }

    let mut cache = model.new_cache(prompt_ids.len() + max_new_tokens);
    let mut ids = Vec::new();
    let mut text = String::new();
    let mut finish = Finish::Length;
    let mut next = argmax(model.forward(&mut cache, &prompt_ids, Logits::Last)?)?;
    while ids.len() < max_new_tokens {
        ids.push(next);
        if model.eos_ids().contains(&next) {
            finish = Finish::Eos;
            break;
        }
        text = model.decode(&ids)?;
        if stop.iter().any(|stop| !stop.is_empty() && text.contains(stop.as_str())) {
            finish = Finish::Stop;
            break;
        }
        if ids.len() < max_new_tokens {
            next = argmax(model.forward(&mut cache, &[next], Logits::Last)?)?;
        }
    }
    let text = before_stop(&text, stop).to_owned();
    Ok(Response { ids, text, finish, prompt_tokens: prompt_ids.len(), truncated_tokens })
}

/// The text before the first of the stop strings, cut at one after the other as lm-evaluation-harness does.
pub fn before_stop<'t>(text: &'t str, stop: &[String]) -> &'t str {
    stop.iter()
        .filter(|stop| !stop.is_empty())
        .fold(text, |text, stop| text.split(stop.as_str()).next().unwrap_or(text))
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> Result<u32, EvalError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (i as u32, logit);
        }
    }
    if !best.1.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return Err(EvalError::Model("logits are not finite: the forward pass or the weights are broken".to_owned()));
    }
    Ok(best.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{EOS, ScriptedLm};

    fn stops(stop: &[&str]) -> Vec<String> {
        stop.iter().map(|stop| (*stop).to_owned()).collect()
    }

    #[test]
    fn a_stop_string_ends_the_response_and_is_cut_off() {
        let mut model = ScriptedLm::new(100, " 42.\n\nQuestion: more");
        let response = greedy(&mut model, "six by seven?", 50, &stops(&["</s>", "Question:"])).unwrap();
        assert_eq!(response.text, " 42.\n\n");
        assert_eq!(response.ids, " 42.\n\nQuestion:".bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(response.finish, Finish::Stop);
        assert_eq!((response.prompt_tokens, response.truncated_tokens), (13, 0));
    }

    #[test]
    fn the_end_token_ends_it_and_is_kept_in_the_ids() {
        let mut model = ScriptedLm::new(100, "7");
        let response = greedy(&mut model, "?", 50, &[]).unwrap();
        assert_eq!((response.text.as_str(), response.finish), ("7", Finish::Eos));
        assert_eq!(response.ids, [u32::from(b'7'), EOS]);
        let mut model = ScriptedLm::new(100, "");
        assert_eq!(greedy(&mut model, "?", 50, &[]).unwrap().text, "");
    }

    #[test]
    fn the_length_ends_it() {
        let mut model = ScriptedLm::new(100, "123456789");
        let response = greedy(&mut model, "?", 4, &stops(&["9"])).unwrap();
        assert_eq!((response.text.as_str(), response.finish), ("1234", Finish::Length));
        // A token that will not be read is not computed.
        assert_eq!(model.tokens_computed, 1 + 3);
    }

    #[test]
    fn a_long_prompt_loses_its_start() {
        let mut model = ScriptedLm::new(20, "ok");
        let response = greedy(&mut model, "0123456789abcdef", 8, &[]).unwrap();
        assert_eq!((response.prompt_tokens, response.truncated_tokens), (12, 4));
        assert_eq!(response.text, "ok");
        assert!(greedy(&mut model, "0", 20, &[]).is_err());
        assert!(greedy(&mut model, "", 8, &[]).is_err());
    }

    #[test]
    fn the_cut_is_made_at_each_stop_in_turn() {
        assert_eq!(before_stop("a</s>b Question: c", &stops(&["Question:", "</s>"])), "a");
        assert_eq!(before_stop("none", &stops(&["Question:", ""])), "none");
        // lm-evaluation-harness cuts at "b" first and then no longer finds "ab".
        assert_eq!(before_stop("xab", &stops(&["b", "ab"])), "xa");
    }

    #[test]
    fn ties_go_to_the_lower_id_and_nan_is_refused() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]).unwrap(), 1);
        assert!(argmax(&[1.0, f32::NAN]).is_err());
        assert!(argmax(&[f32::INFINITY]).is_err());
        assert!(argmax(&[]).is_err());
    }
}
