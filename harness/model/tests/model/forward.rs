//! The forward pass on synthetic models of every family: what must not change the bits does not.

use std::path::Path;

use ternbench_kernels::{Exactness, Pool, registry};
use ternbench_model::kv_cache::KvType;
use ternbench_model::manifest::Manifest;
use ternbench_model::weights::WeightSource;
use ternbench_model::weights::synthetic::SyntheticModel;
use ternbench_model::{Engine, Logits, Segment, Transformer, config};

fn source(name: &str) -> SyntheticModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    SyntheticModel::new(&Manifest::find(&folder, name).unwrap(), None, 7)
}

fn load(source: &dyn WeightSource, kernel: &str, pool: &Pool) -> Transformer {
    Transformer::load(source, registry::find(kernel).unwrap(), pool, &|_| {}).unwrap()
}

fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + salt * 101 + 5) % 512).collect()
}

/// Logits of every position of `tokens`, computed in one pass from an empty cache.
fn run(model: &Transformer, pool: &Pool, tokens: &[u32]) -> Vec<f32> {
    all_logits(Engine::new(model, pool), tokens)
}

fn all_logits(mut engine: Engine<'_>, tokens: &[u32]) -> Vec<f32> {
    let mut cache = engine.new_cache(tokens.len());
    let segment = Segment { cache: &mut cache, tokens, logits: Logits::From(0) };
    engine.forward(&mut [segment]).unwrap().to_vec()
}

#[test]
fn batch_split_threads_and_kernel_change_no_bit() {
    for name in ["bitnet-tiny", "llama-tiny"] {
        let source = source(name);
        let pool = Pool::new(1).unwrap();
        let model = load(&source, registry::ORACLE_KERNEL, &pool);
        let ids = tokens(41, 0);
        let vocab = model.config().vocab;
        let expected = run(&model, &pool, &ids);
        assert!(expected.iter().all(|logit| logit.is_finite()));

        for n_threads in [2, 3] {
            assert_eq!(run(&model, &Pool::new(n_threads).unwrap(), &ids), expected, "{name}: {n_threads} threads");
        }
        for kernel in registry::supported().filter(|kernel| kernel.info().exactness == Exactness::Exact) {
            let other = load(&source, kernel.info().name, &pool);
            assert_eq!(run(&other, &pool, &ids), expected, "{name}: {}", kernel.info().name);
        }

        // One token at a time, and in uneven chunks.
        for chunk in [1, 7, 16] {
            let mut engine = Engine::new(&model, &pool);
            let mut cache = engine.new_cache(ids.len());
            let mut logits = Vec::new();
            for tokens in ids.chunks(chunk) {
                let segment = Segment { cache: &mut cache, tokens, logits: Logits::From(0) };
                logits.extend_from_slice(engine.forward(&mut [segment]).unwrap());
            }
            assert_eq!(logits, expected, "{name}: chunks of {chunk}");
        }

        // Together with other sequences, in one pass.
        let (a, b) = (tokens(5, 1), tokens(23, 2));
        let mut engine = Engine::new(&model, &pool);
        let mut caches = [engine.new_cache(5), engine.new_cache(64), engine.new_cache(23)];
        let [ca, cx, cb] = &mut caches;
        let mut segments = [
            Segment { cache: ca, tokens: &a, logits: Logits::None },
            Segment { cache: cx, tokens: &ids, logits: Logits::From(0) },
            Segment { cache: cb, tokens: &b, logits: Logits::Last },
        ];
        let together = engine.forward(&mut segments).unwrap();
        assert_eq!(&together[..expected.len()], expected, "{name}: in a batch");
        assert_eq!(together[expected.len()..], run(&model, &pool, &b)[22 * vocab..]);
    }
}

/// Rounding keys and values to half precision moves logits by less than one part in 1024, to int8 by less than one in 64, and is the same
/// however the tokens are put into passes.
#[test]
fn a_rounded_cache_is_near_and_as_reproducible() {
    let pool = Pool::new(2).unwrap();
    let model = load(&source("llama-tiny"), "auto", &pool);
    let ids = tokens(41, 0);
    let exact = run(&model, &pool, &ids);
    for (ty, largest, sixteenths) in [(KvType::F16, 2f64.powi(-10), 8), (KvType::Int8, 2f64.powi(-6), 5)] {
        let engine = || Engine::new(&model, &pool).with_kv(ty);
        let rounded = all_logits(engine(), &ids);
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let difference: Vec<f32> = exact.iter().zip(&rounded).map(|(a, b)| a - b).collect();
        let relative = norm(&difference) / norm(&exact);
        assert!(relative > 0.0 && relative < largest, "{ty:?}: {relative}");

        let mut engine = engine();
        assert!(16 * engine.kv().block_bytes() <= sixteenths * Engine::new(&model, &pool).kv().block_bytes());
        let mut cache = engine.new_cache(ids.len());
        let mut logits = Vec::new();
        for tokens in ids.chunks(7) {
            let segment = Segment { cache: &mut cache, tokens, logits: Logits::From(0) };
            logits.extend_from_slice(engine.forward(&mut [segment]).unwrap());
        }
        assert_eq!(logits, rounded, "{ty:?}");
    }
}

#[test]
fn every_family_of_the_manifests_runs_at_two_layers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    for name in Manifest::names(&folder) {
        let mut manifest = Manifest::find(&folder, &name).unwrap();
        manifest.shape.n_layers = 2;
        manifest.shape.vocab = 512;
        let pool = Pool::new(2).unwrap();
        let model = load(&SyntheticModel::new(&manifest, None, 1), "auto", &pool);
        let logits = run(&model, &pool, &tokens(20, 0));
        let mean_square = logits.iter().map(|l| f64::from(l * l)).sum::<f64>() / logits.len() as f64;
        assert!(mean_square.is_finite() && mean_square > 1e-6, "{name}: {mean_square}");
    }
}

#[test]
fn a_sliding_window_hides_what_lies_before_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    let mut manifest = Manifest::find(&folder, "llama-tiny").unwrap();
    manifest.shape.n_layers = 1;
    manifest.shape.sliding_window = Some(4);
    manifest.shape.sliding_pattern = Some(2);
    let pool = Pool::new(1).unwrap();
    let model = load(&SyntheticModel::new(&manifest, None, 1), "auto", &pool);
    assert_eq!(model.config().window(0), Some(config::SlidingWindow { window: 4, pattern: 2, rope_theta: 500000.0 }));
    let vocab = model.config().vocab;
    let (mut a, mut b) = (tokens(12, 0), tokens(12, 0));
    (a[7], b[7]) = (1, 2);
    let (a, b) = (run(&model, &pool, &a), run(&model, &pool, &b));
    let same = |i: usize| a[i * vocab..(i + 1) * vocab] == b[i * vocab..(i + 1) * vocab];
    assert!((0..7).all(same), "causal");
    assert!((7..11).all(|i| !same(i)), "positions 7 to 10 see position 7");
    assert!(same(11), "position 11 sees 8 to 11");

    manifest.shape.sliding_window = Some(0);
    assert_eq!(manifest.config().validate().unwrap_err(), "sliding window is 0, expected 1 to 268435456");
    (manifest.shape.sliding_window, manifest.shape.rope_theta_local) = (Some(4), Some(0.0));
    assert!(manifest.config().validate().unwrap_err().contains("rope base"));
}

#[test]
fn bad_requests_are_refused_before_anything_changes() {
    use ternbench_model::segment::ForwardError;
    let pool = Pool::new(1).unwrap();
    let model = load(&source("bitnet-tiny"), "auto", &pool);
    let mut engine = Engine::new(&model, &pool);
    let mut cache = engine.new_cache(4);
    let mut ask = |tokens: &[u32]| {
        let result = engine.forward(&mut [Segment { cache: &mut cache, tokens, logits: Logits::Last }]).map(|_| ());
        (result, cache.len())
    };
    assert_eq!(ask(&[]), (Err(ForwardError::Empty), 0));
    assert_eq!(ask(&[1, 512]), (Err(ForwardError::Token { id: 512, vocab: 512 }), 0));
    assert_eq!(ask(&[1, 2, 3]), (Ok(()), 3));
    assert_eq!(ask(&[1, 2]), (Err(ForwardError::Context { needed: 5, capacity: 4 }), 3));
}
