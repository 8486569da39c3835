//! Log-likelihoods of given choices, and which of them is best.
//!
//! Source: lm-evaluation-harness 0.4.13, `models/huggingface.py` (`_loglikelihood_tokens`) and `api/model.py` (`_encode_pair`),
//! `api/task.py` (`process_results` of multiple choice tasks).

use crate::error::EvalError;
use crate::local::TextCodec;

/// A context and a continuation as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The tokens of the context alone.
    pub context: Vec<u32>,
    /// What the tokens of context and continuation have beyond as many as the context has.
    pub continuation: Vec<u32>,
}

/// Splits the tokens of `context + continuation`. White space at the end of the context goes to the continuation first, as
/// most tokenizers keep it with the word that follows.
pub fn encode_pair(text: &impl TextCodec, context: &str, continuation: &str) -> Result<Pair, EvalError> {
    let stem = context.trim_end();
    let context_ids = text.encode(stem)?;
    let mut whole = text.encode(&format!("{context}{continuation}"))?;
    if whole.len() <= context_ids.len() {
        return Err(EvalError::Model(format!("the tokens of {continuation:?} cannot be told from its context's")));
    }
    let continuation = whole.split_off(context_ids.len());
    Ok(Pair { context: context_ids, continuation })
}

/// Leaves out what does not fit into a context of `max` from the start of a pair, and says how many tokens that were. The last
/// token of the continuation needs no place: it predicts nothing that counts.
pub fn truncate(mut pair: Pair, max: usize) -> Result<(Pair, usize), EvalError> {
    let (context, continuation) = (pair.context.len(), pair.continuation.len());
    if context == 0 || continuation == 0 || continuation > max {
        let reason =
            format!("cannot score {continuation} tokens after {context}: 1 to {max} after 1 or more are needed");
        return Err(EvalError::Model(reason));
    }
    let truncated = (context + continuation - 1).saturating_sub(max);
    pair.context.drain(..truncated);
    Ok((pair, truncated))
}

/// Whether the best choice is the right one: by log-likelihood, per code point, and per byte of the choice itself (without
/// the delimiter before it).
pub fn correct_by_length(loglikelihoods: &[f32], choices: &[String], gold: usize) -> [bool; 3] {
    let best = |length: fn(&str) -> usize| {
        let per_length = loglikelihoods.iter().zip(choices).map(|(&ll, choice)| f64::from(ll) / length(choice) as f64);
        first_of_largest(per_length) == Some(gold)
    };
    [best(|_| 1), best(|choice| choice.chars().count()), best(str::len)]
}

/// numpy's argmax: the first of equal ones.
fn first_of_largest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, value) in values.enumerate() {
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Answer, Backend, Question, Scores, Text};
    use crate::testing::{Bytes, HashLm};

    #[test]
    fn lengths_decide_and_ties_go_to_the_first() {
        let choices = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(correct_by_length(&[-6.0, -8.0], &choices("ab", "abcd"), 0), [true, false, false]);
        assert_eq!(correct_by_length(&[-6.0, -8.0], &choices("ab", "abcd"), 1), [false, true, true]);
        // Two code points, six bytes: 3 per code point against 4, but 1 per byte against 2.
        assert_eq!(correct_by_length(&[-6.0, -4.0], &choices("\u{20ac}\u{20ac}", "ab"), 0), [false, false, true]);
        assert_eq!(correct_by_length(&[-6.0, -6.0], &choices("ab", "cd"), 0), [true; 3]);
        assert_eq!(correct_by_length(&[-6.0, -6.0], &choices("ab", "cd"), 1), [false; 3]);
    }

    fn pair(context: &str, continuation: &str) -> Pair {
        encode_pair(&Bytes::default(), context, continuation).unwrap()
    }

    #[test]
    fn the_continuation_is_what_the_whole_has_more() {
        let Pair { context, continuation } = pair("ab", " c");
        assert_eq!((context, continuation), (vec![97, 98], vec![32, 99]));
        // White space at the end of the context belongs to the continuation.
        assert_eq!(pair("ab ", "c"), pair("ab", " c"));
        // A tokenizer that merges across the border: the context's own tokens stay, as many are taken off the whole.
        let Pair { context, continuation } = pair("a(", ")b");
        assert_eq!((context, continuation), (vec![97, 40], vec![98]));
        assert!(encode_pair(&Bytes::default(), "ab", "").is_err());
        assert!(encode_pair(&Bytes::default(), "a(", ")").is_err());
    }

    /// Every sequence alone and token by token: the definition.
    fn reference(pair: &Pair, max: usize) -> f32 {
        let mut whole = pair.context.clone();
        let mut sum = 0.0;
        for &token in &pair.continuation {
            // The window that holds the whole sequence but its last token.
            let start = (pair.context.len() + pair.continuation.len() - 1).saturating_sub(max);
            let logits = HashLm::logits_after(&whole[start..]);
            let exps: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            sum += f64::from(logits[token as usize]) - exps.ln();
            whole.push(token);
        }
        sum as f32
    }

    fn scores(max: usize, context: &str, continuations: &[&str]) -> Result<(Scores, usize), EvalError> {
        let mut model = HashLm::new(max).local(4);
        let continuations = continuations.iter().map(|text| (*text).to_owned()).collect();
        model.ask(3, Question::Choices { context: Text::Plain(context.to_owned()), continuations })?;
        match model.answer(&mut |_| ()) {
            Some((3, Ok(Answer::Scores(scores)))) => Ok((scores, model.batch().model().tokens_computed)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sharing_changes_nothing_but_the_work() {
        let long = "x".repeat(300);
        let cases: &[(&str, &[&str])] = &[
            ("Question: why?\nAnswer:", &[" because of this", " because of that"]),
            ("Question: why?\nAnswer:", &[" a", " b"]),
            ("Q", &[" same", " same"]),
            ("Q", &[" a", " a longer one", " a"]),
            ("Q", &[&long, "y"]),
            (&long, &["y", &long]),
            ("only", &[" one"]),
        ];
        for (context, continuations) in cases {
            let (scores, _) = scores(4096, context, continuations).unwrap();
            for (continuation, &score) in continuations.iter().zip(&scores.loglikelihoods) {
                let expected = reference(&pair(context, continuation), 4096);
                assert!(
                    (score - expected).abs() <= 1e-5 * expected.abs(),
                    "{context:?}: {score} instead of {expected}"
                );
            }
            assert_eq!(scores.truncated_tokens, 0);
        }
        // 21 tokens of context and 12 shared ones once, then the two tails.
        let context = "Question: why? Answer";
        let (_, computed) = scores(4096, context, &[" because of A!", " because of B!!"]).unwrap();
        assert_eq!(computed, context.len() + " because of ".len() + "A".len() + "B!".len());
    }

    #[test]
    fn long_sequences_lose_their_start() {
        let (result, _) = scores(8, "0123456789", &["abc", "de"]).unwrap();
        assert_eq!((result.truncated_tokens, result.context_tokens, &result.n_tokens[..]), (4, 10, &[3, 2][..]));
        for (continuation, &score) in ["abc", "de"].iter().zip(&result.loglikelihoods) {
            assert!((score - reference(&pair("0123456789", continuation), 8)).abs() < 1e-5);
        }
        assert!(scores(8, "0", &["123456789"]).is_err());
    }
}
