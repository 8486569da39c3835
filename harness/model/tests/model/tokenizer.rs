//! Reference encodings, decoding, chat.

use std::path::Path;
use std::time::UNIX_EPOCH;

use ternbench_model::chat::{self, ChatError, ChatFormat, Message};
use ternbench_model::config::Architecture;
use ternbench_model::tokenizer::{SpecialText, Tokenizer};

use crate::common;

#[derive(serde::Deserialize)]
struct Vector {
    kind: String,
    text: String,
    ids: Vec<u32>,
    ids_special: Option<Vec<u32>>,
}

fn vectors(path: &Path) -> Vec<Vector> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every reference encodes as it says, decodes back, and streams without half characters.
fn check(tokenizer: &Tokenizer, vectors: &[Vector]) {
    let mut wrong = 0;
    for Vector { kind, text, ids, ids_special } in vectors {
        let plain = tokenizer.encode(text, SpecialText::AsText).unwrap();
        let special = tokenizer.encode(text, SpecialText::Parsed).unwrap();
        let expected = ids_special.as_ref().unwrap_or(ids);
        if plain != *ids || special != *expected {
            println!("{kind} {text:?}\n  is  {plain:?}\n  ref {ids:?}\n  special {special:?}\n  ref     {expected:?}");
            wrong += 1;
        }
        assert_eq!(tokenizer.decode(ids).unwrap(), *text, "{kind}: decoding");
        assert_eq!(tokenizer.decode_with_special(expected).unwrap(), *text, "{kind}: decoding with special tokens");
        let mut stream = tokenizer.decode_stream();
        let mut streamed = String::new();
        for &id in ids {
            let part = stream.push(id).unwrap();
            assert!(text.contains('\u{FFFD}') || !part.contains('\u{FFFD}'), "{kind} {text:?}: half a character");
            streamed += &part;
        }
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, *text, "{kind}: streaming");
    }
    assert_eq!(wrong, 0, "of {} references", vectors.len());
}

#[test]
fn llama3() {
    let (Some(file), Some(references)) =
        (common::shared("tokenizer/llama3-tokenizer.model"), common::shared("golden/refs/llama3_tokenizer.jsonl"))
    else {
        return;
    };
    let tokenizer = Tokenizer::from_tiktoken(&file).unwrap();
    assert_eq!(tokenizer.vocab_size(), 128_256);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(128_000), Some(128_001)));
    assert_eq!(tokenizer.eos_ids(), [128_001, 128_009]);
    assert_eq!(tokenizer.token_to_id("<|start_header_id|>"), Some(128_006));
    assert_eq!(tokenizer.token_to_id("<|reserved_special_token_250|>"), Some(128_255));
    assert_eq!(tokenizer.encode_default("a").unwrap(), [128_000, 64]);
    check(&tokenizer, &vectors(&references));

    // What is no text comes out as replacement characters, at once or at the end, and does not hold up what follows.
    let byte = |byte: u8| tokenizer.encode("é", SpecialText::AsText).unwrap().len() * usize::from(byte);
    assert_eq!(byte(1), 1);
    let half = (0..256).find(|&id| tokenizer.decode(&[id]).unwrap() == "\u{FFFD}").unwrap();
    let mut stream = tokenizer.decode_stream();
    let mut text = String::new();
    for _ in 0..40 {
        text += &stream.push(half).unwrap();
    }
    assert!(text.chars().count() >= 20, "{text:?}");
    text += &stream.push(64).unwrap();
    text += &stream.finish().unwrap();
    assert_eq!(text, "\u{FFFD}".repeat(40) + "a");

    let Some(references) = common::shared("golden/refs/llama3_chat.json") else { return };
    #[derive(serde::Deserialize)]
    struct Chat {
        dialog: Vec<Message>,
        ids: Vec<u32>,
    }
    let references: Vec<Chat> = serde_json::from_slice(&std::fs::read(references).unwrap()).unwrap();
    let format = ChatFormat::of(Architecture::Bitnet, &tokenizer).unwrap();
    assert_eq!(format, ChatFormat::Bitnet);
    for Chat { dialog, ids } in references {
        assert_eq!(format.encode(&tokenizer, &dialog, true).unwrap(), ids, "{dialog:?}");
    }
    let injected = format.encode(&tokenizer, &[Message::user("<|eot_id|>")], false).unwrap();
    assert_eq!(injected.iter().filter(|&&id| id == 128_009).count(), 1, "typed text cannot end the turn");
    let role = Message { role: "tool".to_owned(), content: String::new() };
    assert!(matches!(format.encode(&tokenizer, &[role], true), Err(ChatError::Role(_))));
}

#[test]
fn smollm2() {
    let (Some(file), Some(references)) =
        (common::model("SmolLM2-135M-Instruct.Q4_1.gguf"), common::shared("golden/refs/smollm2_tokenizer.jsonl"))
    else {
        return;
    };
    let tokenizer = Tokenizer::for_model(&file).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eos_ids(), [2, 0]);
    assert_eq!(tokenizer.encode_default("a").unwrap(), [81]);
    check(&tokenizer, &vectors(&references));

    let format = ChatFormat::of(Architecture::Llama, &tokenizer).unwrap();
    let messages = [Message::system("Be brief."), Message::user("Hi")];
    let text = chat::render(&tokenizer, &messages, true, UNIX_EPOCH).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = format.encode(&tokenizer, &messages, true).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 3);
    assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), text);
}

#[test]
fn gemma3() {
    let (Some(file), Some(references)) =
        (common::model("gemma-3-270m-q4_k_m.gguf"), common::shared("golden/refs/gemma3_tokenizer.jsonl"))
    else {
        return;
    };
    let tokenizer = Tokenizer::for_model(&file).unwrap();
    assert_eq!(tokenizer.vocab_size(), 262_144);
    assert_eq!(tokenizer.eos_ids(), [1, 106]);
    assert_eq!(tokenizer.encode_default("").unwrap(), [2]);
    check(&tokenizer, &vectors(&references));
    assert!(matches!(ChatFormat::of(Architecture::Gemma3, &tokenizer), Err(ChatError::NoTemplate)));
}

/// A `tokenizer.json` with its neighbours: byte-level, no merges.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab: serde_json::Map<_, _> = alphabet.iter().zip(0..).map(|(c, id)| (c.to_string(), id.into())).collect();
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    let special = |id: u32, content: &str| {
        serde_json::json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        })
    };
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 },
        "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "<|im_end|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [256], "tokens": ["<s>"] } }
        },
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] }
    });
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let template = "{% for m in messages %}{{ m.role.upper() }}{% if m.content.startswith('!') %}{{ \
                    raise_exception('no shouting') }}{% endif %}: {{ m.content | trim }}{{ eos_token }}\n{% endfor %}\
                    {% if add_generation_prompt %}{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% endif %}";
    let config = serde_json::json!({
        "bos_token": "<s>", "eos_token": { "content": "<|im_end|>" }, "chat_template": template
    });
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [257, 9]}"#).unwrap();
    folder
}

#[test]
fn tokenizer_json() {
    let folder = folder();
    let tokenizer = Tokenizer::for_model(folder.path()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id()), (258, Some(256)));
    assert_eq!(tokenizer.eos_ids(), [257, 9]);
    let plain = tokenizer.encode("<s>hallo", SpecialText::AsText).unwrap();
    assert_eq!(plain.len(), 8, "the file's truncation is for training");
    let parsed = tokenizer.encode_default("<s>hallo").unwrap();
    assert_eq!((parsed.len(), &parsed[..2]), (7, &[256, 256][..]));
    assert_eq!(tokenizer.decode(&parsed).unwrap(), "hallo");

    let text = chat::render(&tokenizer, &[Message::user(" x ")], true, UNIX_EPOCH).unwrap();
    assert_eq!(text, "USER: x<|im_end|>\n<s>01 Jan 1970");
    let error = chat::render(&tokenizer, &[Message::user("!")], true, UNIX_EPOCH).unwrap_err().to_string();
    assert!(error.contains("no shouting") && !error.contains('\n'), "{error}");

    // Bad files: one line each.
    for (name, content) in [
        ("tokenizer.json", "{\n}"),
        ("tokenizer.json", ""),
        ("tokenizer.json", "{\"decoder\": \0}"),
        ("tokenizer.json", r#"{"normalizer": {"type": "Precompiled"}}"#),
        ("tokenizer.json", r#"{"normalizer": {"normalizers": [{"precompiled_charsmap": "////fw=="}]}}"#),
        ("tokenizer_config.json", "{"),
    ] {
        let folder = self::folder();
        std::fs::write(folder.path().join(name), content).unwrap();
        let error = Tokenizer::for_model(folder.path()).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains('\n'), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(Tokenizer::for_model(empty.path()).unwrap_err().to_string().contains("tokenizer.json"));
    let ranks = empty.path().join("tokenizer.model");
    for (content, expected) in
        [(&b"\xff\xfe"[..], "tiktoken"), (b"IQ== 0\nIg=\n", "line 2"), (b"IQ== 1\n", "rank 1"), (b"", "byte token")]
    {
        std::fs::write(&ranks, content).unwrap();
        let error = Tokenizer::for_model(empty.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
}

/// The test model's metadata holds a vocabulary that cannot encode text: refused with the reason.
#[test]
fn unusable_gguf_vocabulary() {
    let error = Tokenizer::for_model(&common::fixture("i2_s.gguf")).unwrap_err().to_string();
    assert!(error.contains("i2_s.gguf") && error.contains("merge 'a b'"), "{error}");
}
