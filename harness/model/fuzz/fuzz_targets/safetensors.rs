//! Any bytes as the weights of a small model; the first byte picks its `config.json`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ternbench_model::weights::safetensors::SafetensorsModel;
use ternbench_model::weights::{WeightSource, inventory};

const CONFIGS: [&str; 4] = [
    include_str!("../../tests/fixtures/bitnet-silu-tiny/config.json"),
    include_str!("../../tests/fixtures/llama-tiny/config.json"),
    include_str!("../../tests/fixtures/gemma3-tiny/config.json"),
    include_str!("../../tests/fixtures/bitnet-tiny128/packed-offline/config.json"),
];

fuzz_target!(|data: &[u8]| {
    let Some((pick, data)) = data.split_first() else { return };
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let config = CONFIGS[usize::from(*pick) % CONFIGS.len()];
    std::fs::write(folder.path().join("config.json"), config).expect("room in memory");
    std::fs::write(folder.path().join("model.safetensors"), data).expect("room in memory");
    let Ok(model) = SafetensorsModel::open(folder.path()) else { return };
    let _ = (model.embedding(), model.head(), model.stored());
    for name in inventory::vectors(model.config()) {
        let _ = model.vector(name);
    }
    for (layer, which) in inventory::linears(model.config()) {
        let _ = model.linear(layer, which);
    }
});
