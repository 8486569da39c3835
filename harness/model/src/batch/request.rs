//! What can be asked of a batch, and what it answers.

use thiserror::Error;

use crate::sampler::Sampler;

/// Names a request; never used twice by one batch.
pub type RequestId = u64;

/// Asks for a continuation.
#[derive(Clone, Debug)]
pub struct Generate {
    /// The tokens to continue, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least one.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// Tokens that end the generation. What ends it otherwise, a text for instance, is the caller's: see [`super::Batch::cancel`].
    pub stop_ids: Vec<u32>,
    /// Whether tokens come with log-probabilities, and with how many of the likeliest alternatives.
    pub logprobs: Option<usize>,
}

/// Asks for the log-probabilities of given continuations of one context. What the continuations have in common is computed once.
#[derive(Clone, Debug)]
pub struct Score {
    /// What stands before, at least one token.
    pub context: Vec<u32>,
    /// At least one, each of at least one token.
    pub continuations: Vec<Vec<u32>>,
    /// How many of the likeliest alternatives come with each token.
    pub n_top: usize,
}

/// How likely a token was.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability, by the model's logits without temperature.
    pub log_prob: f32,
    /// The likeliest tokens in its place, the likeliest first, with their log-probabilities.
    pub top: Vec<(u32, f32)>,
}

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was generated.
    Token {
        /// The request.
        id: RequestId,
        /// The token, the one that ends the generation included.
        token: u32,
        /// How likely it was, if that was asked for.
        score: Option<TokenScore>,
    },
    /// A generation ended.
    Finished {
        /// The request.
        id: RequestId,
        /// What ended it.
        finish: Finish,
    },
    /// Continuations were scored.
    Scored {
        /// The request.
        id: RequestId,
        /// A score per token of each continuation.
        scores: Vec<Vec<TokenScore>>,
    },
    /// A request failed; the others go on.
    Failed {
        /// The request.
        id: RequestId,
        /// Why, on one line.
        reason: String,
    },
}

/// What ended a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token.
    Stop,
    /// The most tokens allowed.
    Length,
}

/// Why a request was not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// Nothing to continue or to score.
    #[error("{0}")]
    Empty(&'static str),
    /// A token id beyond the vocabulary.
    #[error("token id {id} is not below the vocabulary size {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab: usize,
    },
    /// More tokens than the model's context has.
    #[error("{needed} tokens with those to come, but the model's context has {context}")]
    Context {
        /// Tokens of the longest sequence.
        needed: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// More keys and values than may be held.
    #[error("its keys and values need {needed} bytes, {allowed} are allowed: allow more memory or ask for less")]
    Memory {
        /// Bytes of the request alone.
        needed: usize,
        /// Bytes of the limit.
        allowed: usize,
    },
}

pub(super) enum Request {
    Generate(Generate),
    Score(Score),
}

impl Request {
    /// The tokens that go through the model first, and the first of them whose logits are wanted: what stands before that one
    /// can be taken from another sequence.
    pub(super) fn trunk(&self) -> (Vec<u32>, usize) {
        match self {
            Self::Generate(generate) => (generate.prompt.clone(), generate.prompt.len() - 1),
            Self::Score(score) => {
                let mut trunk = score.context.clone();
                trunk.extend_from_slice(&score.inputs()[0][..score.n_common()]);
                (trunk, score.context.len() - 1)
            }
        }
    }

    /// The lengths of its sequences at their longest, after the trunk.
    pub(super) fn lengths(&self) -> Vec<usize> {
        match self {
            // The last token is not computed: nothing follows it.
            Self::Generate(generate) => vec![generate.prompt.len() + generate.max_new_tokens - 1],
            Self::Score(score) => score.inputs().iter().map(|input| score.context.len() + input.len()).collect(),
        }
    }

    pub(super) fn check(&self, vocab: usize, context: usize) -> Result<(), RequestError> {
        let tokens: Vec<&Vec<u32>> = match self {
            Self::Generate(generate) if generate.max_new_tokens == 0 => {
                return Err(RequestError::Empty("no tokens are to be generated"));
            }
            Self::Generate(generate) => vec![&generate.prompt],
            Self::Score(score) if score.continuations.is_empty() => {
                return Err(RequestError::Empty("there are no continuations to score"));
            }
            Self::Score(score) => std::iter::once(&score.context).chain(&score.continuations).collect(),
        };
        if tokens.iter().any(|tokens| tokens.is_empty()) {
            return Err(RequestError::Empty("prompts and continuations need at least one token"));
        }
        if let Some(id) = tokens.into_iter().flatten().copied().find(|&id| id as usize >= vocab) {
            return Err(RequestError::Token { id, vocab });
        }
        match self.lengths().into_iter().max() {
            Some(needed) if needed > context => Err(RequestError::Context { needed, context }),
            _ => Ok(()),
        }
    }
}

impl Score {
    /// The continuations without their last tokens, which predict nothing that counts.
    pub(super) fn inputs(&self) -> Vec<&[u32]> {
        self.continuations.iter().map(|continuation| &continuation[..continuation.len() - 1]).collect()
    }

    /// With how many tokens all inputs begin.
    pub(super) fn n_common(&self) -> usize {
        let inputs = self.inputs();
        let common = |input: &&[u32]| super::n_common(inputs[0], input);
        inputs.iter().map(common).min().unwrap_or(0)
    }
}
