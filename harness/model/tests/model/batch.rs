//! Many requests at once give the bits of each alone, within the memory allowed.

use std::collections::BTreeMap;
use std::path::Path;

use ternbench_kernels::{DenseMatrix, Pool, registry};
use ternbench_model::batch::{Event, Finish, Generate, Limits, RequestError, RequestId, Score};
use ternbench_model::kv_cache::{BLOCK, blocks_for};
use ternbench_model::manifest::Manifest;
use ternbench_model::sampler::{Sampler, argmax};
use ternbench_model::weights::synthetic::SyntheticModel;
use ternbench_model::weights::{LinearName, LinearWeights, VectorName, WeightSource};
use ternbench_model::{Batch, Engine, LoadError, Logits, ModelConfig, Segment, Transformer};

struct Setup {
    model: Transformer,
    pool: Pool,
}

fn setup(name: &str) -> Setup {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    let source = SyntheticModel::new(&Manifest::find(&folder, name).unwrap(), None, 7);
    let pool = Pool::new(2).unwrap();
    let model = Transformer::load(&source, registry::find("auto").unwrap(), &pool, &|_| {}).unwrap();
    Setup { model, pool }
}

impl Setup {
    fn batch(&self, limits: Limits) -> Batch<Engine<'_>> {
        Batch::new(Engine::new(&self.model, &self.pool), limits)
    }

    fn blocks(&self, n: usize) -> usize {
        n * Engine::new(&self.model, &self.pool).kv().block_bytes()
    }
}

fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + salt * 101 + 5) % 512).collect()
}

fn generate(prompt: Vec<u32>, max_new_tokens: usize) -> Generate {
    Generate { prompt, max_new_tokens, sampler: Sampler::greedy(), stop_ids: vec![], logprobs: None }
}

#[derive(Clone)]
enum Request {
    Generate(Generate),
    Score(Score),
}

/// Prompts that share much, a little and nothing, short and long ones, and scores of both kinds.
fn requests() -> Vec<Request> {
    let shots = tokens(70, 1);
    let mut all = Vec::new();
    for i in 0..6 {
        let prompt = [&shots[..], &tokens(3 + 5 * i, 10 + i as u32)].concat();
        all.push(Request::Generate(generate(prompt, 1 + 3 * i)));
        let context = [&shots[..20 * (i % 3)], &tokens(9, 50 + i as u32)].concat();
        let common = tokens(i * 4, 30);
        let ends = [tokens(1, 90), tokens(1 + i, 91), tokens(12, 92), tokens(1, 93)];
        let continuations = ends.map(|end| [&common[..], &end].concat()).to_vec();
        all.push(Request::Score(Score { context, continuations, n_top: i % 3 }));
        let sampler = Sampler::new(0.8, 20, 0.9, i as u64);
        let prompt = tokens(1 + i, i as u32);
        all.push(Request::Generate(Generate { sampler, logprobs: Some(1), ..generate(prompt, 6) }));
    }
    all
}

/// All events of each request, by its number.
fn run(batch: &mut Batch<Engine<'_>>, requests: &[Request]) -> Vec<Vec<Event>> {
    let ids: Vec<RequestId> = requests
        .iter()
        .map(|request| match request.clone() {
            Request::Generate(request) => batch.generate(request).unwrap(),
            Request::Score(request) => batch.score(request).unwrap(),
        })
        .collect();
    let mut events: BTreeMap<RequestId, Vec<Event>> = BTreeMap::new();
    while !batch.is_idle() {
        for event in batch.step().unwrap() {
            let (Event::Token { id, .. }
            | Event::Finished { id, .. }
            | Event::Scored { id, .. }
            | Event::Failed { id, .. }) = event;
            // The batch's own names differ between runs.
            let event = match event {
                Event::Token { token, score, .. } => Event::Token { id: 0, token, score },
                Event::Finished { finish, .. } => Event::Finished { id: 0, finish },
                Event::Scored { scores, .. } => Event::Scored { id: 0, scores },
                failed => failed,
            };
            events.entry(id).or_default().push(event);
        }
    }
    ids.iter().map(|id| events.remove(id).unwrap_or_default()).collect()
}

#[test]
fn any_batch_gives_the_bits_of_one_at_a_time() {
    for name in ["bitnet-tiny", "llama-tiny"] {
        let setup = setup(name);
        let requests = requests();
        let alone: Vec<_> = requests
            .iter()
            .map(|r| run(&mut setup.batch(Limits::default()), std::slice::from_ref(r)).remove(0))
            .collect();
        for (max_requests, tokens_per_pass, blocks) in
            [(1, 512, 999), (3, 7, 999), (32, 512, 999), (32, 150, 999), (32, 64, 14), (8, 1, 30)]
        {
            let limits = Limits { max_requests, tokens_per_pass, kv_bytes: setup.blocks(blocks) };
            let mut batch = setup.batch(limits);
            assert!(run(&mut batch, &requests) == alone, "{name}: {limits:?}");
            assert!(batch.stats().peak_blocks <= blocks, "{limits:?}: {:?}", batch.stats());
            // Twice in a row: what the first run left behind is used and changes nothing.
            assert!(run(&mut batch, &requests) == alone, "{name}: {limits:?}, again");
        }
    }
}

#[test]
fn greedy_requests_read_the_screened_head_and_give_the_same() {
    for name in ["bitnet-tiny", "llama-tiny"] {
        let mut setup = setup(name);
        let requests = requests();
        let plain = run(&mut setup.batch(Limits::default()), &requests);
        setup.model.screen_head(&setup.pool, None);
        assert!(setup.model.screen().is_some());
        let limits = |max_requests| Limits { max_requests, ..Limits::default() };
        for max_requests in [1, 2, 32] {
            assert!(run(&mut setup.batch(limits(max_requests)), &requests) == plain, "{name}: {max_requests}");
        }
        let is_greedy = |request: &&Request| matches!(request, Request::Generate(g) if g.logprobs.is_none());
        let greedy: Vec<Request> = requests.iter().filter(is_greedy).cloned().collect();
        let mut batch = setup.batch(limits(32));
        let events = run(&mut batch, &greedy);
        let expected: Vec<_> = requests.iter().zip(plain).filter(|(request, _)| is_greedy(request)).collect();
        assert!(events.iter().eq(expected.iter().map(|(_, events)| events)), "{name}: greedy requests alone");
        let count = batch.model().head_use();
        assert!(
            count.screened > 0 && count.in_screened > count.screened,
            "{name}: several positions a search: {count:?}"
        );
    }
}

/// A model whose last norm gives NaN.
struct Broken(SyntheticModel);

impl WeightSource for Broken {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        self.0.embedding()
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        self.0.head()
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        self.0.linear(layer, which)
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        let mut vector = self.0.vector(name)?;
        if name == VectorName::OutputNorm {
            vector.fill(f32::NAN);
        }
        Ok(vector)
    }

    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn hash(&self) -> Result<String, LoadError> {
        self.0.hash()
    }
}

#[test]
fn a_broken_model_fails_greedy_requests_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models");
    let source = SyntheticModel::new(&Manifest::find(&folder, "llama-tiny").unwrap(), None, 7);
    let pool = Pool::new(1).unwrap();
    let mut model = Transformer::load(&Broken(source), registry::find("auto").unwrap(), &pool, &|_| {}).unwrap();
    for screened in [false, true] {
        if screened {
            model.screen_head(&pool, None);
        }
        let mut batch = Batch::new(Engine::new(&model, &pool), Limits::default());
        let events = run(&mut batch, &[Request::Generate(generate(vec![1, 2, 3], 4))]).remove(0);
        let [Event::Failed { reason, .. }] = &events[..] else { panic!("{screened}: {events:?}") };
        assert!(reason.contains("not finite"), "{reason}");
    }
}

#[test]
fn results_are_those_of_plain_forward_passes() {
    let setup = setup("bitnet-tiny");
    let mut engine = Engine::new(&setup.model, &setup.pool);
    let vocab = setup.model.config().vocab;
    for (request, events) in requests().iter().zip(run(&mut setup.batch(Limits::default()), &requests())) {
        match request {
            Request::Generate(request) if request.logprobs.is_none() => {
                let mut ids = request.prompt.clone();
                let mut expected = Vec::new();
                for _ in 0..request.max_new_tokens {
                    let mut cache = engine.new_cache(ids.len());
                    let segment = Segment { cache: &mut cache, tokens: &ids, logits: Logits::Last };
                    let token = argmax(engine.forward(&mut [segment]).unwrap());
                    ids.push(token);
                    expected.push(Event::Token { id: 0, token, score: None });
                }
                expected.push(Event::Finished { id: 0, finish: Finish::Length });
                assert_eq!(events, expected);
            }
            Request::Generate(_) => assert_eq!(events.len(), 7),
            Request::Score(request) => {
                let [Event::Scored { scores, .. }] = &events[..] else { panic!("{events:?}") };
                for (continuation, scores) in request.continuations.iter().zip(scores) {
                    let ids = [&request.context[..], continuation].concat();
                    let mut cache = engine.new_cache(ids.len());
                    let segment = Segment { cache: &mut cache, tokens: &ids, logits: Logits::From(0) };
                    let logits = engine.forward(&mut [segment]).unwrap();
                    assert_eq!(scores.len(), continuation.len());
                    for (i, (score, &target)) in scores.iter().zip(continuation).enumerate() {
                        let row = &logits[(request.context.len() + i - 1) * vocab..][..vocab];
                        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                        let log_prob = |id: u32| f64::from(row[id as usize]) - sum.ln();
                        assert!((f64::from(score.log_prob) - log_prob(target)).abs() < 1e-5);
                        assert_eq!(score.top.len(), request.n_top);
                        if let Some(&(best, best_log_prob)) = score.top.first() {
                            assert_eq!(best, argmax(row));
                            assert!((f64::from(best_log_prob) - log_prob(best)).abs() < 1e-5);
                        }
                        assert!(score.top.is_sorted_by(|a, b| a.1 >= b.1));
                    }
                }
            }
        }
    }
}

#[test]
fn common_beginnings_are_computed_once() {
    let setup = setup("bitnet-tiny");
    let shots = tokens(100, 1);
    let prompt = |i: u32| [&shots[..], &tokens(10, 20 + i)].concat();
    for max_requests in [1, 4, 32] {
        let mut batch = setup.batch(Limits { max_requests, ..Limits::default() });
        run(&mut batch, &(0..8).map(|i| Request::Generate(generate(prompt(i), 2))).collect::<Vec<_>>());
        let stats = batch.stats();
        // Tokens 20 + i are equal beyond the shots in no case.
        assert_eq!((stats.prefill_tokens, stats.shared_tokens), (100 + 8 * 10, 7 * 100), "{max_requests} at once");
        assert_eq!(stats.decode_tokens, 8);
    }
    // Two choices: context and common words once, then two tails; last tokens are not computed.
    let mut batch = setup.batch(Limits::default());
    let score = Score {
        context: tokens(20, 0),
        continuations: vec![[tokens(5, 1), tokens(3, 2)].concat(), [tokens(5, 1), tokens(4, 3)].concat()],
        n_top: 0,
    };
    run(&mut batch, &[Request::Score(score)]);
    assert_eq!(batch.stats().prefill_tokens, 20 + 5 + 2 + 3);
    assert_eq!(batch.stats().passes, 2);
}

#[test]
fn a_finished_or_cancelled_request_makes_room_at_once() {
    let setup = setup("bitnet-tiny");
    let mut batch = setup.batch(Limits { max_requests: 2, ..Limits::default() });
    let long = batch.generate(generate(tokens(4, 1), 30)).unwrap();
    let short = batch.generate(generate(tokens(4, 2), 2)).unwrap();
    let third = batch.generate(generate(tokens(4, 3), 30)).unwrap();
    let fourth = batch.generate(generate(tokens(4, 4), 1)).unwrap();
    let of = |events: &[Event], wanted: RequestId| {
        events.iter().filter(|event| matches!(event, Event::Token { id, .. } if *id == wanted)).count()
    };
    batch.step().unwrap();
    let events = batch.step().unwrap();
    assert!(events.contains(&Event::Finished { id: short, finish: Finish::Length }));
    let events = batch.step().unwrap();
    assert_eq!((of(&events, long), of(&events, third)), (1, 1));
    assert!(batch.cancel(long) && !batch.cancel(long) && !batch.cancel(short));
    let events = batch.step().unwrap();
    assert_eq!((of(&events, long), of(&events, third), of(&events, fourth)), (0, 1, 1));
    let waiting = batch.generate(generate(tokens(4, 5), 1)).unwrap();
    assert!(batch.cancel(waiting) && batch.cancel(third) && batch.is_idle());
    assert!(batch.step().unwrap().is_empty());
}

#[test]
fn a_stop_token_ends_a_generation() {
    let setup = setup("bitnet-tiny");
    let request = generate(tokens(9, 1), 10);
    let events = run(&mut setup.batch(Limits::default()), &[Request::Generate(request.clone())]).remove(0);
    let Event::Token { token, .. } = events[4] else { panic!("{events:?}") };
    let request = Generate { stop_ids: vec![token], ..request };
    let stopped = run(&mut setup.batch(Limits::default()), &[Request::Generate(request)]).remove(0);
    let first = events.iter().position(|e| matches!(e, Event::Token { token: t, .. } if *t == token)).unwrap();
    assert_eq!(stopped[..=first], events[..=first]);
    assert_eq!(stopped[first + 1..], [Event::Finished { id: 0, finish: Finish::Stop }]);
}

#[test]
fn impossible_requests_are_refused() {
    let setup = setup("bitnet-tiny");
    let context = setup.model.config().context;
    let allowed = setup.blocks(3);
    let mut batch = setup.batch(Limits { kv_bytes: allowed, ..Limits::default() });
    assert!(matches!(batch.generate(generate(vec![], 1)), Err(RequestError::Empty(_))));
    assert!(matches!(batch.generate(generate(vec![1], 0)), Err(RequestError::Empty(_))));
    assert_eq!(batch.generate(generate(vec![1, 512], 1)), Err(RequestError::Token { id: 512, vocab: 512 }));
    let needed = context + 1;
    assert_eq!(batch.generate(generate(vec![1, 2], context)), Err(RequestError::Context { needed, context }));
    assert!(batch.generate(generate(tokens(40, 0), 3 * BLOCK - 40 + 1)).is_ok());
    let error = batch.generate(generate(tokens(40, 0), 3 * BLOCK - 40 + 2)).unwrap_err();
    assert_eq!(error, RequestError::Memory { needed: setup.blocks(blocks_for(3 * BLOCK + 1)), allowed });
    let score = |context: &[u32], continuations: &[&[u32]]| Score {
        context: context.to_vec(),
        continuations: continuations.iter().map(|tokens| tokens.to_vec()).collect(),
        n_top: 0,
    };
    assert!(batch.score(score(&[], &[&[1]])).is_err());
    assert!(batch.score(score(&[1], &[])).is_err());
    assert!(batch.score(score(&[1], &[&[1], &[]])).is_err());
    assert!(batch.score(score(&[1], &[&[1], &[2, 3]])).is_ok());
}
