//! The parts of a `tokenizer.json` that make the `tokenizers` crate (0.23) panic where it should refuse them.

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Error, Value};

#[derive(Deserialize)]
struct Fragile {
    /// Expected to be JSON.
    #[serde(rename = "decoder")]
    _decoder: Option<Value>,
    normalizer: Option<Value>,
}

/// Refuses a file that is no JSON, and SentencePiece's normalization tables: the crate neither checks their length before it makes
/// room for them nor their links before it follows them. No model of an architecture that is read here has one.
pub fn check(file: &[u8]) -> Result<(), Error> {
    let Fragile { normalizer, .. } = serde_json::from_slice(file)?;
    if normalizer.as_ref().is_some_and(has_table) {
        return Err(Error::custom("a normalizer of type Precompiled is not supported"));
    }
    Ok(())
}

fn has_table(normalizer: &Value) -> bool {
    match normalizer {
        Value::Array(parts) => parts.iter().any(has_table),
        Value::Object(fields) => {
            let is_table = normalizer["type"] == "Precompiled" || fields.contains_key("precompiled_charsmap");
            is_table || fields.values().any(has_table)
        }
        _ => false,
    }
}
