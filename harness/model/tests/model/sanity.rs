//! A trained model is told from noise.

use ternbench_kernels::{Pool, registry};
use ternbench_model::manifest::Manifest;
use ternbench_model::sanity::{Surprise, surprise};
use ternbench_model::weights::synthetic::SyntheticModel;
use ternbench_model::weights::{self, OpenOptions, WeightSource};
use ternbench_model::{Engine, Tokenizer, Transformer};

use crate::common;

fn of(source: &dyn WeightSource, tokenizer: &Tokenizer) -> Surprise {
    let pool = Pool::new(2).unwrap();
    let model = Transformer::load(source, registry::find("auto").unwrap(), &pool, &|_| {}).unwrap();
    surprise(&mut Engine::new(&model, &pool), tokenizer).unwrap()
}

#[test]
fn noise_is_noise() {
    let manifest = Manifest::find(&common::fixture("../../../../../datasets/models"), "bitnet-tiny").unwrap();
    let source = SyntheticModel::new(&manifest, None, 1);
    let noise = of(&source, &Tokenizer::generated(manifest.shape.vocab).unwrap());
    assert!(noise.is_noise(), "{noise:?}");
    assert!(Surprise { nats: f64::NAN, chance: 11.0 }.is_noise());
}

#[test]
fn a_trained_model_is_none() {
    let Some(path) = common::model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let source = weights::open(&path, OpenOptions::default()).unwrap();
    let trained = of(&*source, &Tokenizer::for_model(&path).unwrap());
    println!("{trained:?}");
    assert!(!trained.is_noise() && trained.nats < 5.0, "{trained:?}");
}
