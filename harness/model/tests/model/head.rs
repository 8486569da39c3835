//! The screened head inside a model: the same tokens and logits as the whole head, on synthetic and on real weights.

use std::path::Path;

use ternbench_kernels::dense::Activations;
use ternbench_kernels::{DenseMatrix, DenseType, Dispatch, Pool, registry};
use ternbench_model::manifest::Manifest;
use ternbench_model::sampler::argmax;
use ternbench_model::weights::synthetic::SyntheticModel;
use ternbench_model::weights::{self, LinearName, LinearWeights, OpenOptions, VectorName, WeightSource, encode};
use ternbench_model::{Engine, HeadUse, LoadError, Logits, ModelConfig, Segment, Tokenizer, Transformer};

use crate::common;

/// Decodes greedily behind `prompt` with a screened head, and holds the best logit of every step, and the 5 best of every fourth, to all of the whole head's; then the
/// best of all positions together, which are enough for tiles. Returns what the head was used for in both.
fn check(name: &str, mut model: Transformer, pool: &Pool, prompt: &[u32], n: usize) -> [HeadUse; 2] {
    model.screen_head(pool, None);
    assert!(model.screen().is_some(), "{name}: every weight is finite");
    let (mut engine, mut plain) = (Engine::new(&model, pool), Engine::new(&model, pool));
    let (mut cache, mut plain_cache) = (engine.new_cache(prompt.len() + n), plain.new_cache(prompt.len() + n));
    let best_of = |logits: &[f32], k: usize| {
        let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        best.truncate(k);
        best
    };
    let bits = |rows: &[(u32, f32)]| rows.iter().map(|&(id, logit)| (id, logit.to_bits())).collect::<Vec<_>>();
    let (mut tokens, mut text) = (prompt.to_vec(), prompt.to_vec());
    for step in 0..n {
        let segment = Segment { cache: &mut plain_cache, tokens: &tokens, logits: Logits::Last };
        let logits = plain.forward(&mut [segment]).unwrap();
        let k = if step % 4 == 3 { 5 } else { 1 };
        let expected = best_of(logits, k);
        assert_eq!(expected[0].0, argmax(logits), "{name}");
        let segment = Segment { cache: &mut cache, tokens: &tokens, logits: Logits::Last };
        let best = &engine.top(&mut [segment], k).unwrap()[0];
        assert_eq!(bits(best), bits(&expected), "{name}, step {step}");
        tokens = vec![best[0].0];
        text.push(best[0].0);
    }
    let count = engine.head_use();
    assert_eq!(count.positions, n as u64, "{name}: every position is counted once");
    assert!(count.whole + count.screened >= n as u64, "{name}: {count:?}");

    let (mut engine, mut cache, mut plain_cache) =
        (Engine::new(&model, pool), plain.new_cache(text.len()), plain.new_cache(text.len()));
    let segment = Segment { cache: &mut plain_cache, tokens: &text, logits: Logits::From(0) };
    let logits = plain.forward(&mut [segment]).unwrap();
    let segment = Segment { cache: &mut cache, tokens: &text, logits: Logits::From(0) };
    let best = engine.top(&mut [segment], 2).unwrap();
    assert!(best.len() == text.len() && best.len() > 16);
    for (best, logits) in best.iter().zip(logits.chunks_exact(model.config().vocab)) {
        assert_eq!(bits(best), bits(&best_of(logits, 2)), "{name}, all together");
    }
    [count, engine.head_use()]
}

#[test]
fn synthetic_models_of_every_family() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    for name in ["bitnet-tiny", "llama-tiny", "twin-fp16"] {
        let source = SyntheticModel::new(&Manifest::find(&folder, name).unwrap(), None, 3);
        for n_threads in [1, 3] {
            let pool = Pool::new(n_threads).unwrap();
            let model = Transformer::load(&source, registry::default_kernel(), &pool, &|_| {}).unwrap();
            check(name, model, &pool, &[1, 5, 9], 24);
        }
    }
}

/// A model whose head is another's, stored as this type.
struct HeadAs(DenseType, Box<dyn WeightSource>);

impl WeightSource for HeadAs {
    fn config(&self) -> &ModelConfig {
        self.1.config()
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        let stored = self.1.embedding()?;
        let mut bytes = Vec::new();
        let mut row = vec![0.0; stored.k()];
        for n in 0..stored.n() {
            stored.dequantize_row(n, &mut row);
            encode::floats(self.0, &row, &mut bytes).expect("whole blocks of finite numbers");
        }
        let mut data = ternbench_kernels::AlignedBytes::zeroed(bytes.len());
        data.copy_from_slice(&bytes);
        Ok(DenseMatrix::new(stored.n(), stored.k(), self.0, data.into()).expect("as many bytes as the type takes"))
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        Ok(None)
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        self.1.linear(layer, which)
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        self.1.vector(name)
    }

    fn stored_bytes(&self) -> u64 {
        self.1.stored_bytes()
    }

    fn name(&self) -> &str {
        self.1.name()
    }

    fn hash(&self) -> Result<String, LoadError> {
        self.1.hash()
    }
}

/// A head that rounds its input has other logits than the same head that does not, so their screens are not shared.
#[test]
fn a_head_that_rounds_its_input_takes_no_screen() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    let manifest = Manifest::find(&folder, "llama-tiny").unwrap();
    let pool = Pool::new(1).unwrap();
    let load = |head: DenseType, activations| {
        let source = HeadAs(head, Box::new(SyntheticModel::new(&manifest, None, 3)));
        let kernels = Dispatch { activations, ..Dispatch::from(registry::default_kernel()) };
        Transformer::load(&source, kernels, &pool, &|_| {}).unwrap()
    };
    let mut floats = load(DenseType::Q8_0, Activations::F32);
    floats.screen_head(&pool, None);
    let screen = floats.screen().cloned();
    assert!(screen.is_some(), "every weight is finite");
    let mut rounded = load(DenseType::Q8_0, Activations::Rounded);
    rounded.screen_head(&pool, screen);
    assert!(rounded.screen().is_none());
    // One of halves takes floats, whatever the layers do.
    let mut halves = load(DenseType::F16, Activations::Rounded);
    halves.screen_head(&pool, None);
    assert!(halves.screen().is_some());
}

/// Real embeddings and real hidden states. Prints the share of rows that are rescored: `-- --nocapture`.
#[test]
fn real_models_rescore_few_rows() {
    let text = "The capital of France is Paris. Water boils at a hundred degrees, and";
    for (file, most) in [("SmolLM2-135M-Instruct.Q4_1.gguf", 0.1), ("gemma-3-270m-q4_k_m.gguf", 0.02)] {
        let Some(path) = common::model(file) else { continue };
        let pool = Pool::new(2).unwrap();
        let source = HeadAs(DenseType::F16, weights::open(&path, OpenOptions::default()).unwrap());
        let model = Transformer::load(&source, registry::default_kernel(), &pool, &|_| {}).unwrap();
        let vocab = model.config().vocab;
        let prompt = Tokenizer::for_model(&path).unwrap().encode_default(text).unwrap();
        for count in check(file, model, &pool, &prompt, 32) {
            let share = count.rescored as f64 / (count.in_screened * vocab as u64) as f64;
            println!("{file}: {:.3} % of {vocab} rows rescored, {count:?}", 100.0 * share);
            assert!(share < most && count.whole == 0, "{file}: {share}, {count:?}");
        }
    }
}
