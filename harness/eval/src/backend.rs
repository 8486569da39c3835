//! What answers an evaluation's questions: many at once, in any order.
//!
//! A trait over texts, not over logits, so that the same evaluation runs on ternbench's own engine ([`crate::LocalModel`]) and on
//! any server that scores and completes texts.

use ternbench_model::chat::Message;

use crate::error::EvalError;
use crate::generate::Response;
use crate::stats::LogLoss;

/// What a model is asked about an item.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// The log-likelihood of each continuation of a context.
    Choices {
        /// What stands before.
        context: Text,
        /// The continuations, delimiters included.
        continuations: Vec<String>,
    },
    /// A greedy response.
    Generate {
        /// What stands before.
        prompt: Text,
        /// Most tokens generated.
        max_new_tokens: usize,
        /// It ends where one of these appears, and they are cut off.
        stop: Vec<String>,
    },
    /// The losses of the tokens behind the middle of a window of text.
    Window(Vec<u32>),
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// As it is.
    Plain(String),
    /// A conversation that the model is to continue, in the model's own format.
    Chat(Vec<Message>),
}

impl Text {
    /// The text, the turns of a conversation as `role: content` lines: for people, and for a hash.
    pub fn shown(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Chat(turns) => {
                turns.iter().map(|turn| format!("{}: {}\n", turn.role, turn.content)).collect::<String>()
            }
        }
    }
}

/// The answer to a [`Question`] of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To [`Question::Choices`].
    Scores(Scores),
    /// To [`Question::Generate`].
    Response(Response),
    /// To [`Question::Window`].
    Loss(LogLoss),
}

/// What scoring some continuations gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The log-likelihood of each continuation.
    pub loglikelihoods: Vec<f32>,
    /// Tokens scored of each.
    pub n_tokens: Vec<usize>,
    /// Tokens of the context.
    pub context_tokens: usize,
    /// Tokens of the longest sequence that did not fit into the model's context, and were left out from its start.
    pub truncated_tokens: usize,
}

/// Answers questions.
pub trait Backend {
    /// Whether it is worth asking more before taking an answer.
    fn has_room(&self) -> bool;

    /// Asks a question; `index` comes back with the answer.
    fn ask(&mut self, index: usize, question: Question) -> Result<(), EvalError>;

    /// An answer, whichever is ready first; `None` when no question is open. `working` is told [`Self::tokens_done`] about once a
    /// second or after every forward pass until then: answers of long questions are minutes apart.
    fn answer(&mut self, working: &mut dyn FnMut(u64)) -> Option<(usize, Result<Answer, EvalError>)>;

    /// Tokens answered for so far, prompts included: for the display of speed.
    fn tokens_done(&self) -> u64;

    /// How the questions since the last call were answered, for people: speeds and memory.
    fn take_notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// The tokens of a text, for windows of it.
    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError>;

    /// The most tokens a window may have.
    fn max_context(&self) -> usize;
}
