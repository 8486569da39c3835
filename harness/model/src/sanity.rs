//! Whether a model understands anything at all. I2_S files do not say which of three layouts they use, and a wrong guess still
//! decodes to valid trits; but no such model expects English text any better than chance.

use crate::engine::Engine;
use crate::segment::{ForwardError, Logits, Segment};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Plain words that every language model finds likely.
const TEXT: &str = "The sun rises in the east and sets in the west. In the morning people get up, wash their hands and eat \
                    breakfast before they go to work or to school.";

/// A model this close to chance, in nats a token, has learned nothing: chance is `ln(vocabulary)`, about 11.8 for Llama 3's,
/// and the worst of real models stay below 6 on this text.
const MARGIN: f64 = 3.0;

/// How surprised a model is by plain English, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surprise {
    /// The model's.
    pub nats: f64,
    /// That of one to whom all tokens are equally likely.
    pub chance: f64,
}

impl Surprise {
    /// Whether the weights are noise, or were read in the wrong layout.
    pub fn is_noise(self) -> bool {
        self.nats.is_nan() || self.nats >= self.chance - MARGIN.min(self.chance / 2.0)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SanityError {
    /// The tokenizer does not work.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model does not run.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// Reads a short English text.
pub fn surprise(engine: &mut Engine<'_>, tokenizer: &Tokenizer) -> Result<Surprise, SanityError> {
    let vocab = engine.model().config().vocab;
    let mut ids = tokenizer.encode_default(TEXT)?;
    ids.truncate(engine.model().config().context);
    let mut cache = engine.new_cache(ids.len());
    let segment = Segment { cache: &mut cache, tokens: &ids, logits: Logits::From(0) };
    let logits = engine.forward(&mut [segment])?;
    let loss = |(row, &next): (&[f32], &u32)| {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        sum.ln() - f64::from(row[next as usize] - max)
    };
    let pairs = logits.chunks_exact(vocab).zip(&ids[1..]);
    let nats = pairs.map(loss).sum::<f64>() / (ids.len() - 1).max(1) as f64;
    Ok(Surprise { nats, chance: (vocab as f64).ln() })
}
