//! Every family against transformers in float32, on tiny random checkpoints (`scripts/make-goldens.py`), from safetensors and,
//! converted, from GGUF.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use ternbench_kernels::{DenseType, Pool, registry};
use ternbench_model::config::Activation;
use ternbench_model::sampler::argmax;
use ternbench_model::weights::convert::{Conversion, TokenizerFrom, convert};
use ternbench_model::weights::encode::StoredType;
use ternbench_model::weights::{self, OpenOptions};
use ternbench_model::{Engine, Logits, Segment, Transformer};

use crate::common;

const FAMILIES: [&str; 5] = ["llama-tiny", "qwen2-tiny", "gemma3-tiny", "minicpm-tiny", "bitnet-silu-tiny"];

/// Tokens that the greedy references begin with.
const PROMPT: usize = 8;

fn folder(name: &str) -> PathBuf {
    common::fixture("..").join(name)
}

fn rows(file: &SafeTensors<'_>, name: &str) -> Option<Vec<Vec<[u8; 4]>>> {
    let tensor = file.tensor(name).ok()?;
    let words: Vec<[u8; 4]> = tensor.data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect();
    Some(words.chunks_exact(words.len() / tensor.shape()[0]).map(<[_]>::to_vec).collect())
}

fn ids(rows: Vec<Vec<[u8; 4]>>) -> Vec<Vec<u32>> {
    rows.into_iter().map(|row| row.into_iter().map(u32::from_le_bytes).collect()).collect()
}

fn load(path: &Path, pool: &Pool) -> Transformer {
    let source = weights::open(path, OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    Transformer::load(&*source, registry::find("auto").unwrap(), pool, &|_| {}).unwrap()
}

fn logits(model: &Transformer, pool: &Pool, tokens: &[u32]) -> Vec<f32> {
    let mut engine = Engine::new(model, pool);
    let mut cache = engine.new_cache(tokens.len());
    engine.forward(&mut [Segment { cache: &mut cache, tokens, logits: Logits::From(0) }]).unwrap().to_vec()
}

/// Holds a model to its reference: logits within 1e-4, the same greedy tokens.
fn check(what: &str, path: &Path, reference: &[u8]) {
    let pool = Pool::new(1).unwrap();
    let model = load(path, &pool);
    let file = SafeTensors::deserialize(reference).unwrap();
    let expected = rows(&file, "logits").unwrap();
    for (tokens, expected) in ids(rows(&file, "input_ids").unwrap()).iter().zip(expected) {
        let got = logits(&model, &pool, tokens);
        let expected: Vec<f32> = expected.into_iter().map(f32::from_le_bytes).collect();
        assert_eq!(got.len(), expected.len(), "{what}");
        let differences = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let (worst, at) = differences.zip(0..).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        println!("{what}: largest difference of a logit {worst:.1e}");
        assert!(worst <= 1e-4, "{what}: logit {at} is off by {worst}");
    }
    for tokens in rows(&file, "greedy").map(ids).into_iter().flatten() {
        let all = logits(&model, &pool, &tokens);
        let greedy: Vec<u32> = all.chunks_exact(model.config().vocab).map(argmax).collect();
        assert_eq!(greedy[PROMPT - 1..tokens.len() - 1], tokens[PROMPT..], "{what}");
    }
}

#[test]
fn every_family_matches_transformers() {
    for name in FAMILIES {
        let folder = folder(name);
        check(name, &folder, &std::fs::read(folder.join("reference.safetensors")).unwrap());
    }
}

#[test]
fn and_after_conversion_to_gguf_and_back() {
    let temporary = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let start = folder(name);
        let reference = std::fs::read(start.join("reference.safetensors")).unwrap();
        let ternary = name.starts_with("bitnet");
        let ty = if ternary { StoredType::I2S } else { StoredType::Dense(DenseType::BF16) };
        let embedding = Some(DenseType::BF16);
        let [gguf, back] = [format!("{name}.gguf"), name.to_owned()].map(|name| temporary.path().join(name));
        for (from, to) in [(&start, &gguf), (&gguf, &back)] {
            let source = weights::open(from, OpenOptions::default()).unwrap();
            let conversion = Conversion { ty, embedding, tokenizer: TokenizerFrom::None, origin: None, force: false };
            convert(&*source, to, &conversion, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
            check(&format!("{name} -> {}", to.display()), to, &reference);
        }
    }
}

/// What the fixtures are for: each one exercises its family's own.
#[test]
fn the_fixtures_exercise_what_they_are_for() {
    let config = |name: &str| weights::open(&folder(name), OpenOptions::default()).unwrap().config().clone();
    let llama = config("llama-tiny");
    assert!(llama.rope_scaling.is_some() && !llama.tied);
    assert!(config("qwen2-tiny").qkv_bias);
    let gemma = config("gemma3-tiny");
    assert_eq!(gemma.sliding.map(|sliding| (sliding.window, sliding.pattern)), Some((8, 2)));
    let minicpm = config("minicpm-tiny");
    assert!(minicpm.embedding_scale == 12.0 && minicpm.logit_scale == 0.25 && minicpm.residual_scale < 1.0);
    let bitnet = config("bitnet-silu-tiny");
    assert!(bitnet.sub_norms && bitnet.activation == Activation::Silu);

    // Without its scaling of frequencies, Llama is another model.
    let folder = folder("llama-tiny");
    let temporary = tempfile::tempdir().unwrap();
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    json["rope_scaling"] = serde_json::Value::Null;
    std::fs::write(temporary.path().join("config.json"), json.to_string()).unwrap();
    std::fs::copy(folder.join("model.safetensors"), temporary.path().join("model.safetensors")).unwrap();
    let pool = Pool::new(1).unwrap();
    let tokens: Vec<u32> = (0..40).collect();
    let [a, b] = [&folder, temporary.path()].map(|path| logits(&load(path, &pool), &pool, &tokens));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 1e-2, "scaling changes logits by {worst} only");
}
