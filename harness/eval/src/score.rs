//! Log-likelihoods of given choices, and which of them is best.
//!
//! Source: lm-evaluation-harness 0.4.13, `models/huggingface.py` (`_loglikelihood_tokens`) and `api/model.py` (`_encode_pair`),
//! `api/task.py` (`process_results` of multiple choice tasks).

use crate::error::EvalError;
use crate::lm::{LanguageModel, Logits};

/// Most rows of logits held at once. A row of a 128,256-token vocabulary is half a megabyte, so 64 are 33 MB; more rows make
/// a pass no faster once the weights are reused this often.
const MAX_ROWS: usize = 64;

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
pub fn encode_pair<M: LanguageModel>(model: &M, context: &str, continuation: &str) -> Result<Pair, EvalError> {
    let stem = context.trim_end();
    let context_ids = model.encode(stem)?;
    let mut whole = model.encode(&format!("{context}{continuation}"))?;
    if whole.len() <= context_ids.len() {
        return Err(EvalError::Model(format!("the tokens of {continuation:?} cannot be told from its context's")));
    }
    let continuation = whole.split_off(context_ids.len());
    Ok(Pair { context: context_ids, continuation })
}

/// What scoring some continuations gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The log-likelihood of each continuation.
    pub loglikelihoods: Vec<f32>,
    /// Tokens of the longest sequence that did not fit into the model's context, and were left out from its start.
    pub truncated_tokens: usize,
}

/// The log-likelihood of each pair's continuation after its context. The tokens that all sequences begin with are computed
/// once.
pub fn loglikelihoods<M: LanguageModel>(model: &mut M, pairs: &[Pair]) -> Result<Scores, EvalError> {
    let max = model.max_context();
    let mut sequences = Vec::with_capacity(pairs.len());
    let mut truncated_tokens = 0;
    for pair in pairs {
        if pair.context.is_empty() || pair.continuation.is_empty() || pair.continuation.len() > max {
            let (context, continuation) = (pair.context.len(), pair.continuation.len());
            let reason =
                format!("cannot score {continuation} tokens after {context}: 1 to {max} after 1 or more are needed");
            return Err(EvalError::Model(reason));
        }
        let sequence = Sequence::new(pair, max);
        truncated_tokens = truncated_tokens.max(sequence.truncated);
        sequences.push(sequence);
    }
    let shared = shared_prefix(&sequences);
    let first_row = sequences.iter().map(|sequence| sequence.first_row).min().unwrap_or(0);
    let capacity = sequences.iter().map(|sequence| sequence.input.len()).max().unwrap_or(0);
    let mut sums = vec![0.0_f64; pairs.len()];

    let mut cache = model.new_cache(capacity);
    if let Some(first) = sequences.first() {
        advance(model, &mut cache, &first.input[..shared], first_row, |row, logits| {
            for (sum, sequence) in sums.iter_mut().zip(&sequences) {
                if let Some(target) = sequence.target(row) {
                    *sum += f64::from(logits.log_prob(target)?);
                }
            }
            Ok(())
        })?;
    }
    for (sum, sequence) in sums.iter_mut().zip(&sequences) {
        let mut cache = cache.clone();
        let first_row = sequence.first_row.saturating_sub(shared);
        advance(model, &mut cache, &sequence.input[shared..], first_row, |row, logits| {
            if let Some(target) = sequence.target(shared + row) {
                *sum += f64::from(logits.log_prob(target)?);
            }
            Ok(())
        })?;
    }
    Ok(Scores { loglikelihoods: sums.into_iter().map(|sum| sum as f32).collect(), truncated_tokens })
}

/// The tokens that go through the model, and which rows of logits count.
struct Sequence<'p> {
    input: Vec<u32>,
    continuation: &'p [u32],
    /// The row that predicts the first token of the continuation.
    first_row: usize,
    truncated: usize,
}

impl<'p> Sequence<'p> {
    /// The last token predicts nothing that counts, and of the others the model's context holds the last `max`.
    fn new(pair: &'p Pair, max: usize) -> Self {
        let mut input: Vec<u32> = pair.context.iter().chain(&pair.continuation).copied().collect();
        input.pop();
        let truncated = input.len().saturating_sub(max);
        input.drain(..truncated);
        let first_row = input.len() - pair.continuation.len();
        Self { input, continuation: &pair.continuation, first_row, truncated }
    }

    fn target(&self, row: usize) -> Option<u32> {
        row.checked_sub(self.first_row).and_then(|i| self.continuation.get(i)).copied()
    }
}

/// How many tokens all sequences begin with.
fn shared_prefix(sequences: &[Sequence<'_>]) -> usize {
    let Some((first, others)) = sequences.split_first() else {
        return 0;
    };
    others
        .iter()
        .map(|other| first.input.iter().zip(&other.input).take_while(|(a, b)| a == b).count())
        .min()
        .unwrap_or(first.input.len())
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

/// Runs `tokens` through the model, and gives the logits after each token from index `first_row` on to `on_row`, with the
/// token's index. At most [`MAX_ROWS`] rows are held at once.
pub(crate) fn advance<M: LanguageModel>(
    model: &mut M,
    cache: &mut M::Cache,
    tokens: &[u32],
    first_row: usize,
    mut on_row: impl FnMut(usize, Row<'_>) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let vocab = model.vocab();
    let mut done = 0;
    while done < tokens.len() {
        let silent = first_row.saturating_sub(done);
        let end = tokens.len().min(done + silent + MAX_ROWS);
        let wanted = if done + silent < end { Logits::From(silent) } else { Logits::None };
        let logits = model.forward(cache, &tokens[done..end], wanted)?;
        for (i, row) in logits.chunks_exact(vocab).enumerate() {
            on_row(done + silent + i, Row::new(row)?)?;
        }
        done = end;
    }
    Ok(())
}

/// A row of logits, ready to give log-probabilities.
#[derive(Clone, Copy)]
pub(crate) struct Row<'l> {
    logits: &'l [f32],
    max: f32,
    log_sum: f32,
}

impl<'l> Row<'l> {
    /// `log_softmax` in f32, as torch does it: `x - max - log(Σ exp(x - max))`. The sum is in f64, which costs nothing here and
    /// makes its order irrelevant.
    pub(crate) fn new(logits: &'l [f32]) -> Result<Self, EvalError> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
        if !max.is_finite() || !sum.is_finite() {
            return Err(EvalError::Model(
                "logits are not finite: the forward pass or the weights are broken".to_owned(),
            ));
        }
        Ok(Self { logits, max, log_sum: sum.ln() as f32 })
    }

    /// The log-probability of a token.
    pub(crate) fn log_prob(&self, token: u32) -> Result<f32, EvalError> {
        let logit = self.logits.get(token as usize).ok_or_else(|| {
            EvalError::Model(format!("token {token} is beyond the vocabulary of {}", self.logits.len()))
        })?;
        Ok(logit - self.max - self.log_sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::HashLm;

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

    #[test]
    fn log_softmax_of_known_rows() {
        let row = [0.0, 1.0_f32.ln(), 2.0_f32.ln(), 4.0_f32.ln()];
        let row = Row::new(&row).unwrap();
        for (token, p) in [(0, 0.125_f32), (1, 0.125), (2, 0.25), (3, 0.5)] {
            assert!((row.log_prob(token).unwrap() - p.ln()).abs() < 1e-6);
        }
        assert!(row.log_prob(4).is_err());
        // Large logits do not overflow.
        let row = [1000.0, 1000.0];
        assert!((Row::new(&row).unwrap().log_prob(0).unwrap() - 0.5_f32.ln()).abs() < 1e-6);
        assert!(Row::new(&[0.0, f32::NAN]).is_err());
        assert!(Row::new(&[0.0, f32::INFINITY]).is_err());
    }

    fn pair(context: &str, continuation: &str) -> Pair {
        encode_pair(&HashLm::new(4096), context, continuation).unwrap()
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
        assert!(encode_pair(&HashLm::new(4096), "ab", "").is_err());
        assert!(encode_pair(&HashLm::new(4096), "a(", ")").is_err());
    }

    /// Every sequence alone and token by token: the definition.
    fn reference(pair: &Pair, max: usize) -> f32 {
        let mut model = HashLm::new(max);
        let mut whole = pair.context.clone();
        let mut sum = 0.0;
        for &token in &pair.continuation {
            // The window that holds the whole sequence but its last token.
            let start = (pair.context.len() + pair.continuation.len() - 1).saturating_sub(max);
            let mut cache = model.new_cache(whole.len() - start);
            let logits = model.forward(&mut cache, &whole[start..], Logits::Last).unwrap();
            let exps: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            sum += f64::from(logits[token as usize]) - exps.ln();
            whole.push(token);
        }
        sum as f32
    }

    #[test]
    fn sharing_changes_nothing_but_the_work() {
        let long = "x".repeat(3 * MAX_ROWS + 5);
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
            let pairs: Vec<_> = continuations.iter().map(|continuation| pair(context, continuation)).collect();
            let mut model = HashLm::new(4096);
            let scores = loglikelihoods(&mut model, &pairs).unwrap();
            for (pair, &score) in pairs.iter().zip(&scores.loglikelihoods) {
                let expected = reference(pair, 4096);
                assert!(
                    (score - expected).abs() <= 1e-5 * expected.abs(),
                    "{context:?}: {score} instead of {expected}"
                );
            }
            assert_eq!(scores.truncated_tokens, 0);
            assert!(model.most_rows <= MAX_ROWS, "{} rows", model.most_rows);
        }
        // 20 tokens of context and 12 shared ones once, then the two tails.
        let mut model = HashLm::new(4096);
        let context = "Question: why? Answer";
        loglikelihoods(&mut model, &[pair(context, " because of A!"), pair(context, " because of B!!")]).unwrap();
        assert_eq!(model.tokens_computed, context.len() + " because of ".len() + "A".len() + "B!".len());
    }

    #[test]
    fn long_sequences_lose_their_start() {
        let pairs = [pair("0123456789", "abc"), pair("0123456789", "de")];
        let mut model = HashLm::new(8);
        let scores = loglikelihoods(&mut model, &pairs).unwrap();
        assert_eq!(scores.truncated_tokens, 4);
        for (pair, &score) in pairs.iter().zip(&scores.loglikelihoods) {
            assert!((score - reference(pair, 8)).abs() < 1e-5);
        }
        assert!(loglikelihoods(&mut model, &[pair("0", "123456789")]).is_err());
        assert!(loglikelihoods(&mut model, &[]).unwrap().loglikelihoods.is_empty());
    }
}
