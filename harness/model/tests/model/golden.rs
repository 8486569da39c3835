//! The forward pass against transformers' logits, on every kernel (see tests/fixtures and ../shared/golden).

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use ternbench_kernels::{Exactness, Pool, registry};
use ternbench_model::sampler::argmax;
use ternbench_model::weights::{self, OpenOptions};
use ternbench_model::{Engine, Logits, Segment, Transformer};

use crate::common;

/// A checkpoint and the reference it answers to.
struct Golden {
    checkpoint: PathBuf,
    folder: PathBuf,
    mode: &'static str,
}

/// The shipped checkpoints, and those of the shared folder where it is there.
fn goldens() -> Vec<Golden> {
    let shipped = common::fixture("");
    let mut goldens = vec![Golden { checkpoint: shipped.join("i2_s.gguf"), folder: shipped.clone(), mode: "offline" }];
    for folder in [Some(shipped), common::shared("golden/bitnet-tiny")].into_iter().flatten() {
        for (name, mode) in [("bf16-online", "online"), ("packed-offline", "offline")] {
            goldens.push(Golden { checkpoint: folder.join(name), folder: folder.clone(), mode });
        }
    }
    goldens
}

fn load(checkpoint: &Path, kernel: &str, pool: &Pool) -> Transformer {
    let source = weights::open(checkpoint, OpenOptions::default()).unwrap();
    Transformer::load(&*source, registry::find(kernel).unwrap(), pool, &|_| {}).unwrap()
}

fn all_logits(model: &Transformer, pool: &Pool, tokens: &[u32]) -> Vec<f32> {
    let mut engine = Engine::new(model, pool);
    let mut cache = engine.new_cache(tokens.len());
    engine.forward(&mut [Segment { cache: &mut cache, tokens, logits: Logits::From(0) }]).unwrap().to_vec()
}

/// A tensor as rows of 32-bit words.
fn rows(file: &[u8], name: &str) -> Vec<Vec<[u8; 4]>> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let words: Vec<[u8; 4]> = tensor.data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect();
    words.chunks_exact(words.len() / tensor.shape()[0]).map(<[_]>::to_vec).collect()
}

fn prompts(file: &[u8], name: &str) -> Vec<Vec<u32>> {
    let ids = |row: &Vec<[u8; 4]>| row.iter().map(|&word| i32::from_le_bytes(word) as u32).collect();
    rows(file, name).iter().map(ids).collect()
}

fn floats(file: &[u8], name: &str) -> Vec<Vec<f32>> {
    rows(file, name).iter().map(|row| row.iter().map(|&word| f32::from_le_bytes(word)).collect()).collect()
}

#[test]
fn robust_prompts_match_within_1e_4_and_every_kernel_gives_the_bits_of_the_oracle() {
    let pool = Pool::new(2).unwrap();
    for golden in goldens() {
        let file = std::fs::read(golden.folder.join("reference_robust.safetensors")).unwrap();
        let expected = floats(&file, &format!("logits_f32_{}", golden.mode));
        let prompts = prompts(&file, "input_ids");
        let logits = |kernel| {
            let model = load(&golden.checkpoint, kernel, &pool);
            prompts.iter().map(|prompt| all_logits(&model, &pool, prompt)).collect::<Vec<_>>()
        };
        let oracle = logits(registry::ORACLE_KERNEL);
        for (got, expected) in oracle.iter().zip(&expected) {
            assert_eq!(got.len(), expected.len());
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-4, "{}: a logit is off by {worst}", golden.checkpoint.display());
        }
        for kernel in registry::supported().filter(|kernel| kernel.info().exactness == Exactness::Exact) {
            let kernel = kernel.info().name;
            assert!(logits(kernel) == oracle, "{}: {kernel}: other logits", golden.checkpoint.display());
        }
    }
}

#[test]
fn long_prompts_match_in_the_mean_and_in_greedy_tokens() {
    let pool = Pool::new(1).unwrap();
    for golden in goldens() {
        let name = golden.checkpoint.display();
        let file = std::fs::read(golden.folder.join("reference.safetensors")).unwrap();
        let model = load(&golden.checkpoint, "auto", &pool);
        let expected = floats(&file, &format!("logits_f32_{}", golden.mode));
        for (prompt, expected) in prompts(&file, "input_ids").iter().zip(expected) {
            let got = all_logits(&model, &pool, prompt);
            let sum: f64 = got.iter().zip(&expected).map(|(a, b)| f64::from((a - b).abs())).sum();
            let mean = sum / expected.len() as f64;
            assert!(mean <= 0.01, "{name}: the mean error is {mean}");
        }
        for tokens in prompts(&file, &format!("greedy_f32_{}", golden.mode)) {
            let vocab = model.config().vocab;
            let logits = all_logits(&model, &pool, &tokens);
            for (at, row) in (8..tokens.len()).zip(logits.chunks_exact(vocab).skip(7)) {
                let best = argmax(row);
                // The reference may have chosen the other of two nearly equal logits.
                let gap = row[best as usize] - row[tokens[at] as usize];
                assert!(gap < 1e-3, "{name}: token {at} is {best}, the reference has {} (gap {gap})", tokens[at]);
            }
        }
    }
}

#[test]
fn the_i2_s_file_equals_its_safetensors_sibling() {
    let pool = Pool::new(1).unwrap();
    let tokens: Vec<u32> = (0..50).map(|i| i * 97 % 512).collect();
    for kernel in registry::supported().filter(|kernel| kernel.info().exactness == Exactness::Exact) {
        let kernel = kernel.info().name;
        let logits = |name| all_logits(&load(&common::fixture(name), kernel, &pool), &pool, &tokens);
        assert!(logits("i2_s.gguf") == logits("packed-offline"), "{kernel}");
    }
}
