//! Tokenizers in the form of the other family: as GGUF metadata, or as the files of a Hugging Face folder.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::gguf::{self, NORMAL};
use super::{Surround, Tokenizer, TokenizerError, one_line};
use crate::error::LoadError;
use crate::weights::gguf::entry::Entry;
use crate::weights::map::shown;

/// Score of tokens that no merge makes: below all others.
const NO_MERGE: f32 = -1e6;

/// GGUF metadata for an embedding of `rows` rows: `gpt2` for byte-level BPE, `llama` for SentencePiece BPE. Rows without a
/// token get an unused one, as in llama.cpp's converter; tokens without a row cannot occur and are left out. `origin` is named
/// in errors.
pub(crate) fn gguf(tokenizer: &Tokenizer, rows: usize, origin: &Path) -> Result<Vec<Entry>, LoadError> {
    let bad = |reason: String| LoadError::file(origin, one_line(reason));
    let json = json(tokenizer).map_err(bad)?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        let reason = format!("tokenizers of type {} cannot be written to GGUF (BPE can)", model["type"]);
        return Err(bad(reason));
    }
    let sentencepiece = model["byte_fallback"] == true;
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![gguf::UNUSED as i32; rows];
    let mut place = |id: Option<u64>, token: &str, ty: f64| {
        if let Some(id) = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < rows) {
            tokens[id] = token.to_owned();
            types[id] = ty as i32;
        }
    };
    for (token, id) in model["vocab"].as_object().into_iter().flatten() {
        let byte = sentencepiece && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        place(id.as_u64(), token, if byte { gguf::BYTE } else { NORMAL });
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let ty = if added["special"] == true { gguf::CONTROL } else { gguf::USER_DEFINED };
        place(added["id"].as_u64(), added["content"].as_str().unwrap_or_default(), ty);
    }
    let merges = merges(model).ok_or_else(|| bad("the merges are not pairs of tokens".to_owned()))?;

    let mut entries = Vec::new();
    if sentencepiece {
        let prefixed = |part: &Value| part.to_string().contains("\"Prepend\"");
        let metaspace = &json["pre_tokenizer"]["prepend_scheme"];
        let prefix = prefixed(&json["normalizer"]) || metaspace.as_str().is_some_and(|scheme| scheme != "never");
        let mut rank = HashMap::new();
        for (at, (left, right)) in merges.iter().enumerate() {
            rank.entry(format!("{left}{right}")).or_insert(-(at as f32));
        }
        let scores: Vec<f32> = tokens.iter().map(|token| *rank.get(token).unwrap_or(&NO_MERGE)).collect();
        entries.push(Entry::str("tokenizer.ggml.model", "llama"));
        entries.push(Entry::strings("tokenizer.ggml.tokens", &tokens));
        entries.push(Entry::f32s("tokenizer.ggml.scores", &scores));
        entries.push(Entry::i32s("tokenizer.ggml.token_type", &types));
        entries.push(Entry::bool("tokenizer.ggml.add_space_prefix", prefix));
    } else {
        let ignore_merges = model["ignore_merges"] == true;
        let pre = pre_name(&json, ignore_merges).ok_or_else(|| {
            bad(format!("its way to split words has no name in GGUF: {}", shown(&json["pre_tokenizer"].to_string())))
        })?;
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        entries.push(Entry::str("tokenizer.ggml.model", "gpt2"));
        entries.push(Entry::str("tokenizer.ggml.pre", pre));
        entries.push(Entry::strings("tokenizer.ggml.tokens", &tokens));
        entries.push(Entry::i32s("tokenizer.ggml.token_type", &types));
        entries.push(Entry::strings("tokenizer.ggml.merges", &merges));
    }
    let unknown = model["unk_token"].as_str().and_then(|token| tokenizer.token_to_id(token));
    let eos = tokenizer.eos_ids();
    let ids = [
        ("bos", tokenizer.bos_id()),
        ("eos", eos.first().copied()),
        ("eot", eos.get(1).copied()),
        ("unknown", unknown),
    ];
    let valid = |id: Option<u32>| id.filter(|&id| (id as usize) < rows);
    entries.extend(
        ids.into_iter()
            .filter_map(|(name, id)| Some(Entry::u32(format!("tokenizer.ggml.{name}_token_id"), valid(id)?))),
    );
    let around = tokenizer.encode_default("").map_err(|error| bad(error.to_string()))?;
    let begins = tokenizer.bos_id().is_some_and(|bos| around.first() == Some(&bos));
    let ends = around.len() > usize::from(begins) && around.last().copied() == tokenizer.eos_id();
    entries.push(Entry::bool("tokenizer.ggml.add_bos_token", begins));
    entries.push(Entry::bool("tokenizer.ggml.add_eos_token", ends));
    entries.extend(tokenizer.chat_template().map(|template| Entry::str("tokenizer.chat_template", template)));
    Ok(entries)
}

/// Merges in either of the two forms of `tokenizer.json`: pairs, or texts with a space.
fn merges(model: &Value) -> Option<Vec<(&str, &str)>> {
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge.as_str() {
            Some(text) => text.split_once(' '),
            None => Some((merge[0].as_str()?, merge[1].as_str()?)),
        }
    }
    model["merges"].as_array()?.iter().map(pair).collect()
}

/// The name that GGUF has for a way to split words.
fn pre_name(json: &Value, ignore_merges: bool) -> Option<&'static str> {
    let steps = match &json["pre_tokenizer"] {
        Value::Null => Vec::new(),
        sequence if sequence["type"] == "Sequence" => sequence["pretokenizers"].as_array()?.iter().collect(),
        single => vec![single],
    };
    let mut splits = Vec::new();
    for step in steps {
        match step["type"].as_str()? {
            "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                splits.push(step["pattern"]["Regex"].as_str()?);
            }
            "Digits" if step["individual_digits"] == true => splits.push(r"\p{N}"),
            "ByteLevel" if step["add_prefix_space"] == false => {
                splits.extend((step["use_regex"] != false).then_some(gguf::GPT2_SPLIT));
            }
            _ => return None,
        }
    }
    let nfc = json["normalizer"]["type"] == "NFC";
    let fits = |name: &&&str| {
        gguf::pre(name).is_some_and(|pre| pre.splits == splits && pre.ignore_merges == ignore_merges && pre.nfc == nfc)
    };
    gguf::PRE_NAMES.iter().find(fits).copied()
}

/// `tokenizer.json` as the `tokenizers` crate writes it, with what is put around a text.
fn json(tokenizer: &Tokenizer) -> Result<Value, String> {
    let text = tokenizer.inner.to_string(false).map_err(|error| error.to_string())?;
    let mut json: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if let Surround::Ids { before, after } = tokenizer.surround {
        let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
        let mut special = serde_json::Map::new();
        for (id, at) in [(before, 0), (after, 1)] {
            let Some(id) = id else { continue };
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            let at = if at == 0 { 0 } else { single.len() };
            single.insert(at, json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
            special.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        if !special.is_empty() {
            let second = json!({ "Sequence": { "id": "B", "type_id": 1 } });
            let pair: Vec<Value> = single.iter().cloned().chain([second]).collect();
            json["post_processor"] =
                json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special });
        }
    }
    Ok(json)
}

/// The files of a Hugging Face folder, by name.
pub(super) fn hugging_face(tokenizer: &Tokenizer) -> Result<Vec<(&'static str, String)>, TokenizerError> {
    let json = json(tokenizer).map_err(TokenizerError::new)?;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    if let Some(bos) = token(tokenizer.bos_id()) {
        config["bos_token"] = bos.into();
    }
    if let Some(eos) = token(tokenizer.eos_id()) {
        config["eos_token"] = eos.into();
    }
    if let Some(template) = tokenizer.chat_template() {
        config["chat_template"] = template.into();
    }
    let generation = json!({ "bos_token_id": tokenizer.bos_id(), "eos_token_id": tokenizer.eos_ids() });
    Ok(vec![
        ("tokenizer.json", format!("{json}\n")),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("generation_config.json", format!("{generation:#}\n")),
    ])
}
