//! Speculation changes how many passes there are, and no token and no bit of a logit.

use std::path::Path;

use ternbench_kernels::{Pool, registry};
use ternbench_model::kv_cache::KvType;
use ternbench_model::manifest::Manifest;
use ternbench_model::speculate::Speculator;
use ternbench_model::weights::synthetic::SyntheticModel;
use ternbench_model::{Engine, Transformer};

/// `n` greedy tokens behind `prompt` with the bits of their logits, and the passes they took.
fn decode(engine: &mut Engine<'_>, prompt: &[u32], n: usize, max_draft: usize) -> (Vec<(u32, u32)>, Speculator) {
    let mut cache = engine.new_cache(prompt.len() + n);
    let mut speculator = Speculator::new(max_draft);
    let mut text = prompt.to_vec();
    let mut all = Vec::new();
    while all.len() < n {
        let new = speculator.next(engine, &mut cache, &text, n - all.len()).unwrap();
        assert!(!new.is_empty());
        all.extend(new.iter().map(|&(token, logit)| (token, logit.to_bits())));
        text.extend(new.iter().map(|&(token, _)| token));
        assert_eq!(cache.len(), text.len() - 1, "the cache holds all but the newest token");
    }
    assert_eq!(all.len(), n, "never more than asked for");
    (all, speculator)
}

#[test]
fn tokens_and_logits_are_those_of_greedy_decoding() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    let mut drafts = 0;
    for name in ["bitnet-tiny", "llama-tiny"] {
        let source = SyntheticModel::new(&Manifest::find(&folder, name).unwrap(), None, 7);
        let pool = Pool::new(2).unwrap();
        let mut model = Transformer::load(&source, registry::default_kernel(), &pool, &|_| {}).unwrap();
        model.screen_head(&pool, None);
        // Prompts that repeat themselves, so that there is something to draft; the drafts are mostly wrong.
        for (seed, kv) in [(1, KvType::F32), (2, KvType::F16), (3, KvType::Int8)] {
            let prompt: Vec<u32> = (0..40).map(|i| (i % 8 * 31 + seed) % 64).collect();
            let mut engine = Engine::new(&model, &pool).with_kv(kv);
            let (expected, plain) = decode(&mut engine, &prompt, 48, 0);
            assert_eq!((plain.count().passes, plain.count().drafted), (48, 0));
            for max_draft in [1, 4, 16] {
                let (tokens, speculator) = decode(&mut engine, &prompt, 48, max_draft);
                assert_eq!(tokens, expected, "{name}, seed {seed}, drafts of {max_draft}");
                let count = speculator.count();
                assert_eq!(count.passes + count.accepted, 48, "every pass gives one token more than it accepts");
                drafts += count.drafted;
            }
        }
    }
    assert!(drafts > 50, "{drafts}: something was drafted");
}

/// A model that repeats itself needs fewer passes than tokens: its own text, given as the prompt, is drafted from.
#[test]
fn right_drafts_save_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    let source = SyntheticModel::new(&Manifest::find(&folder, "llama-tiny").unwrap(), None, 7);
    let pool = Pool::new(1).unwrap();
    let model = Transformer::load(&source, registry::default_kernel(), &pool, &|_| {}).unwrap();
    let mut engine = Engine::new(&model, &pool);
    let (tokens, _) = decode(&mut engine, &[3], 400, 0);
    let tokens: Vec<u32> = tokens.into_iter().map(|(token, _)| token).collect();
    let prompt: Vec<u32> = [3].into_iter().chain(tokens[..300].iter().copied()).collect();
    let (again, speculator) = decode(&mut engine, &prompt, 100, 8);
    assert_eq!(again.iter().map(|&(token, _)| token).collect::<Vec<_>>(), tokens[300..]);
    let count = speculator.count();
    assert!(count.accepted > 20 && count.passes + count.accepted == 100, "{count:?}");
}
