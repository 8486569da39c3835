//! What rounding keys and values costs trained models.

use ternbench_kernels::{Pool, registry};
use ternbench_model::kv_cache::KvType;
use ternbench_model::weights::{self, OpenOptions};
use ternbench_model::{Engine, Logits, Segment, Tokenizer, Transformer};

use crate::common;

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum = ternbench_kernels::ops::log_sum_exp(logits);
    logits.iter().map(|&logit| f64::from(logit) - sum).collect()
}

/// Prints nats a token, the mean KL divergence from floats, and how often the best token is the same: `-- --nocapture`.
#[test]
fn trained_models_hardly_notice() {
    let text = std::fs::read_to_string(common::fixture("../../../../../datasets/sample/perplexity/text.txt")).unwrap();
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let Some(path) = common::model(file) else { continue };
        let pool = Pool::new(2).unwrap();
        let source = weights::open(&path, OpenOptions::default()).unwrap();
        let model = Transformer::load(&*source, registry::default_kernel(), &pool, &|_| {}).unwrap();
        let mut tokens = Tokenizer::for_model(&path).unwrap().encode_default(&text).unwrap();
        tokens.truncate(256);
        let of = |ty| -> Vec<Vec<f64>> {
            let mut engine = Engine::new(&model, &pool).with_kv(ty);
            let mut cache = engine.new_cache(tokens.len());
            let mut all = Vec::new();
            for tokens in tokens.chunks(128) {
                let segment = Segment { cache: &mut cache, tokens, logits: Logits::From(0) };
                let logits = engine.forward(&mut [segment]).unwrap();
                all.extend(logits.chunks_exact(model.config().vocab).map(log_softmax));
            }
            all
        };
        let n = tokens.len() - 1;
        let mean = |of_token: &dyn Fn(usize) -> f64| (0..n).map(of_token).sum::<f64>() / n as f64;
        let exact = of(KvType::F32);
        let nats = |all: &[Vec<f64>]| mean(&|i| -all[i][tokens[i + 1] as usize]);
        for (ty, most) in [(KvType::F16, 1e-5), (KvType::Int8, 1e-2)] {
            let rounded = of(ty);
            let divergence = mean(&|i| exact[i].iter().zip(&rounded[i]).map(|(p, q)| p.exp() * (p - q)).sum());
            let best = |p: &[f64]| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]));
            let same = mean(&|i| f64::from(best(&exact[i]) == best(&rounded[i])));
            let (before, after) = (nats(&exact), nats(&rounded));
            println!(
                "{file}, {n} tokens, {ty:?}: {before:.5} nats, {after:.5}, KL {divergence:.2e}, same best {same:.4}"
            );
            assert!(divergence > 0.0 && divergence < most, "{file}, {ty:?}: KL {divergence}");
        }
    }
}
