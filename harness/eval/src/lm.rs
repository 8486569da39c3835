//! What an evaluation needs of a model: text to tokens and back, and forward passes over one sequence at a time.
//!
//! A trait and not the engine itself, so that the rules of scoring are tested against toy models whose answers are known.

pub use ternbench_model::Logits;
use ternbench_model::kv_cache::KvCache;
use ternbench_model::{Engine, Segment, Tokenizer};

use crate::error::EvalError;

/// A language model with its tokenizer.
pub trait LanguageModel {
    /// The keys and values of one sequence.
    type Cache: Clone;

    /// Logits per row.
    fn vocab(&self) -> usize;

    /// The most tokens a sequence may have.
    fn max_context(&self) -> usize;

    /// Tokens that end a generation.
    fn eos_ids(&self) -> &[u32];

    /// Text to tokens, with what the model's tokenizer adds by default (Gemma `<bos>`, SmolLM2 nothing).
    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError>;

    /// Tokens to text, special tokens left out.
    fn decode(&self, ids: &[u32]) -> Result<String, EvalError>;

    /// An empty cache with room for `capacity` tokens.
    fn new_cache(&self, capacity: usize) -> Self::Cache;

    /// Appends `tokens` (at least one) to the cache's sequence; one row of logits per position asked for.
    fn forward(&mut self, cache: &mut Self::Cache, tokens: &[u32], logits: Logits) -> Result<&[f32], EvalError>;
}

/// An engine of ternbench with its model's tokenizer.
pub struct EngineModel<'m> {
    engine: Engine<'m>,
    tokenizer: &'m Tokenizer,
}

impl<'m> EngineModel<'m> {
    /// Evaluates on `engine`.
    pub fn new(engine: Engine<'m>, tokenizer: &'m Tokenizer) -> Self {
        Self { engine, tokenizer }
    }
}

impl LanguageModel for EngineModel<'_> {
    type Cache = KvCache;

    fn vocab(&self) -> usize {
        self.engine.model().config().vocab
    }

    fn max_context(&self) -> usize {
        self.engine.model().config().context
    }

    /// All ends that the tokenizer knows: where a model has several, an end of text is not taken for a part of the answer.
    fn eos_ids(&self) -> &[u32] {
        self.tokenizer.eos_ids()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        self.tokenizer.encode_default(text).map_err(EvalError::model)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, EvalError> {
        self.tokenizer.decode(ids).map_err(EvalError::model)
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        self.engine.new_cache(capacity)
    }

    fn forward(&mut self, cache: &mut KvCache, tokens: &[u32], logits: Logits) -> Result<&[f32], EvalError> {
        self.engine.forward(&mut [Segment { cache, tokens, logits }]).map_err(EvalError::model)
    }
}
