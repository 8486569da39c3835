//! Any bytes as a `tokenizer.model`, and a text through the tokenizer that comes out.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ternbench_model::Tokenizer;
use ternbench_model::tokenizer::SpecialText;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("tokenizer.model");
    std::fs::write(&path, data).expect("room in memory");
    let Ok(tokenizer) = Tokenizer::for_model(&path) else { return };
    if let Ok(ids) = tokenizer.encode("Hello, wörld 12", SpecialText::Parsed) {
        let _ = tokenizer.decode(&ids);
    }
});
