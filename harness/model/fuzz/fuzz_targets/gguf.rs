//! Any bytes as a GGUF file: the container, the model in it and its tokenizer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ternbench_model::Tokenizer;
use ternbench_model::tokenizer::SpecialText;
use ternbench_model::weights::gguf::{GgufFile, GgufModel};
use ternbench_model::weights::{I2sLayout, OpenOptions, WeightSource, inventory};

fuzz_target!(|data: &[u8]| {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    std::fs::write(file.path(), data).expect("room in memory");
    if let Ok(container) = GgufFile::open(file.path()) {
        let _ = container.entries("").count();
        if let Ok(tokenizer) = Tokenizer::from_gguf(&container) {
            let _ = tokenizer.encode("a b", SpecialText::Parsed).map(|ids| tokenizer.decode(&ids));
        }
    }
    let layout = [I2sLayout::X86, I2sLayout::X86Interleaved, I2sLayout::Arm][data.len() % 3];
    let Ok(model) = GgufModel::open(file.path(), OpenOptions { i2s_layout: layout }) else {
        return;
    };
    let _ = (model.embedding(), model.head(), model.stored());
    for name in inventory::vectors(model.config()) {
        let _ = model.vector(name);
    }
    for (layer, which) in inventory::linears(model.config()) {
        let _ = model.linear(layer, which);
    }
});
