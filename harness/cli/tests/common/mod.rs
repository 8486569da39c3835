//! What several test programs of the command line need.

use std::path::{Path, PathBuf};

use serde_json::json;

/// The repository's folder, where paths such as `datasets/tasks/...` begin.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Writes a `tokenizer.json` in which every byte is a token, for synthetic models, which have none of their own.
pub fn write_byte_tokenizer(path: &Path) {
    // GPT-2's spelling of bytes: printable ones are themselves, the others follow from U+0100 on.
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut vocab = serde_json::Map::new();
    let mut others = 0;
    for byte in 0..256u32 {
        let spelled = if printable(byte) { byte } else { 256 + others };
        others += u32::from(!printable(byte));
        vocab.insert(char::from_u32(spelled).unwrap().to_string(), json!(byte));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    });
    std::fs::write(path, file.to_string()).unwrap();
}
