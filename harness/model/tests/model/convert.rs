//! Conversion between formats keeps the model: the same trits, scales, logits and tokens come back.

use std::path::{Path, PathBuf};

use ternbench_kernels::{DenseType, Pool, registry};
use ternbench_model::tokenizer::{SpecialText, Tokenizer};
use ternbench_model::weights::convert::{Conversion, TokenizerFrom, convert};
use ternbench_model::weights::encode::StoredType;
use ternbench_model::weights::gguf::GgufFile;
use ternbench_model::weights::{self, LinearWeights, OpenOptions, WeightSource, inventory};
use ternbench_model::{Engine, LoadError, Logits, Segment, Transformer};

use crate::common;

const F16: StoredType = StoredType::Dense(DenseType::F16);
const F32: StoredType = StoredType::Dense(DenseType::F32);

fn open(path: &Path) -> Box<dyn WeightSource> {
    weights::open(path, OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn to(input: &Path, output: &Path, ty: StoredType, tokenizer: bool) -> Result<u64, LoadError> {
    let tokenizer = if tokenizer { TokenizerFrom::Path(input.to_owned()) } else { TokenizerFrom::None };
    // The bfloat16 embeddings of the fixtures do not all fit F16.
    let embedding = Some(DenseType::F32);
    let conversion = Conversion { ty, embedding, tokenizer, origin: Some(input), force: false };
    convert(&*open(input), output, &conversion, &|_, _| {})
}

fn logits(model: &Path, tokens: &[u32]) -> Vec<f32> {
    let pool = Pool::new(2).unwrap();
    let model = Transformer::load(&*open(model), registry::find("auto").unwrap(), &pool, &|_| {}).unwrap();
    let mut engine = Engine::new(&model, &pool);
    let mut cache = engine.new_cache(tokens.len());
    engine.forward(&mut [Segment { cache: &mut cache, tokens, logits: Logits::From(0) }]).unwrap().to_vec()
}

fn tokens(n: usize, vocab: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 97 + 3) % vocab).collect()
}

/// The official layout, byte for byte: every tensor of the fixture that another program packed comes out of its siblings.
#[test]
fn i2_s_is_byte_for_byte_the_reference_file() {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("out.gguf");
    to(&common::fixture("packed-offline"), &written, StoredType::I2S, false).unwrap();
    let [ours, theirs] = [&written, &common::fixture("i2_s.gguf")].map(|path| GgufFile::open(path).unwrap());
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for tensor in theirs.tensors() {
        let mine = ours.tensor(&tensor.name).unwrap();
        assert_eq!((&mine.dims, mine.ty), (&tensor.dims, tensor.ty), "{}", tensor.name);
        let [mine_data, data] = [ours.data(mine).unwrap(), theirs.data(tensor).unwrap()];
        let codes = if tensor.ty.name == "I2_S" { data.len() - 28 } else { data.len() };
        assert!(mine_data[..codes] == data[..codes], "{}", tensor.name);
    }
    for (key, value) in theirs.metadata().iter().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        if key != "general.name" {
            assert_eq!(ours.metadata().get(key), Some(value), "{key}");
        }
    }
}

#[test]
fn trits_scales_and_logits_survive_every_ternary_route() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokens(40, 512);
    for start in ["i2_s.gguf", "packed-offline", "bf16-online"] {
        let start = common::fixture(start);
        let expected = logits(&start, &tokens);
        let [file, packed, again] = ["a.gguf", "b", "c.gguf"].map(|name| folder.path().join(name));
        to(&start, &file, StoredType::I2S, false).unwrap();
        to(&file, &packed, StoredType::I2S, false).unwrap();
        to(&packed, &again, StoredType::I2S, false).unwrap();
        for path in [&file, &packed, &again] {
            assert!(logits(path, &tokens) == expected, "{} -> {}", start.display(), path.display());
        }
        for path in [file, again] {
            std::fs::remove_file(path).unwrap();
        }
        std::fs::remove_dir_all(packed).unwrap();
    }
}

/// A float type holds a ternary model's weights as they are multiplied: F32 exactly, and back to trits.
#[test]
fn floats_hold_trits_times_scale() {
    let folder = tempfile::tempdir().unwrap();
    let start = common::fixture("packed-offline");
    let original = open(&start);
    for ty in [F32, F16, StoredType::Dense(DenseType::BF16)] {
        let path = folder.path().join(format!("{}.gguf", ty.name()));
        let trits = folder.path().join(format!("{}-i2s.gguf", ty.name()));
        to(&start, &path, ty, false).unwrap();
        to(&path, &trits, StoredType::I2S, false).unwrap();
        let back = open(&trits);
        for (layer, which) in inventory::linears(original.config()) {
            let [a, b] = [&original, &back].map(|source| match source.linear(layer, which).unwrap() {
                LinearWeights::Ternary(matrix) => matrix,
                LinearWeights::Dense(_) => panic!("no trits"),
            });
            assert_eq!(a.trits(), b.trits());
            let exact = ty == F32;
            assert!((a.scale() - b.scale()).abs() <= if exact { 0.0 } else { a.scale() * 4e-3 });
        }
    }
}

#[test]
fn the_same_conversion_gives_the_same_bytes_and_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let start = common::fixture("packed-offline");
    let [a, b] = ["a.gguf", "b.gguf"].map(|name| folder.path().join(name));
    for path in [&a, &b] {
        to(&start, path, StoredType::I2S, false).unwrap();
    }
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
    let error = to(&start, &a, F16, false).unwrap_err().to_string();
    assert!(error.contains("a.gguf") && error.contains("--force"), "{error}");
    let model = folder.path().join("model");
    to(&start, &model, StoredType::I2S, false).unwrap();
    assert!(to(&start, &model, StoredType::I2S, false).unwrap_err().to_string().contains("--force"));
    std::fs::create_dir(model.join("more")).unwrap();
    let force =
        Conversion { ty: StoredType::I2S, embedding: None, tokenizer: TokenizerFrom::None, origin: None, force: true };
    let error = convert(&*open(&start), &model, &force, &|_, _| {}).unwrap_err().to_string();
    assert!(error.contains("more than a model"), "{error}");
    std::fs::remove_dir(model.join("more")).unwrap();
    convert(&*open(&start), &model, &force, &|_, _| {}).unwrap();
    convert(&*open(&start), &a, &force, &|_, _| {}).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["a.gguf", "b.gguf", "model"], "no temporary file is left");
}

#[test]
fn what_a_target_cannot_hold_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let start = common::fixture("packed-offline");
    let llama = folder.path().join("llama.gguf");
    std::fs::write(&llama, common::Gguf::model("llama", &[]).bytes()).unwrap();
    let out = |name: &str| folder.path().join(name);
    let cases: [(&Path, PathBuf, StoredType, &str); 5] = [
        (&start, out("x"), F16, "--type i2_s"),
        (&start, out("x"), StoredType::Dense(DenseType::Q8_0), "cannot hold Q8_0"),
        (&start, out("x.gguf"), StoredType::Tq2_0, "blocks of TQ2_0"),
        (&start, out("no/such/x.gguf"), F16, "No such file"),
        (&llama, out("y"), StoredType::Dense(DenseType::Q4_0), "Q4_0"),
    ];
    for (input, output, ty, expected) in cases {
        let error = to(input, &output, ty, false).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        assert!(!output.exists());
    }
}

/// SmolLM2 through all forms: GGUF to safetensors to GGUF, identical logits, the same tokens and chat template.
#[test]
fn smollm2_there_and_back() {
    let Some(start) = common::model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let folder = tempfile::tempdir().unwrap();
    let [hf, back] = ["hf", "back.gguf"].map(|name| folder.path().join(name));
    to(&start, &hf, F32, true).unwrap();
    to(&hf, &back, F32, true).unwrap();
    let tokens = tokens(24, 49152);
    let [first, between, last] = [&start, &hf, &back].map(|path| logits(path, &tokens));
    assert!(first == last, "a block and its floats are the same numbers, multiplied in the same order");
    // Heads whose rows are in another order add up in another order.
    let worst = first.iter().zip(&between).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "{worst}");
    same_tokenizer(&start, &[&hf, &back]);
}

#[test]
fn gemma3_tokenizer_there_and_back() {
    let Some(start) = common::model("gemma-3-270m-q4_k_m.gguf") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = Tokenizer::for_model(&start).unwrap();
    for (name, content) in tokenizer.to_hugging_face().unwrap() {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    same_tokenizer(&start, &[&path]);
}

fn same_tokenizer(original: &Path, others: &[&Path]) {
    let expected = Tokenizer::for_model(original).unwrap();
    for other in others {
        let tokenizer = Tokenizer::for_model(other).unwrap();
        assert_eq!(tokenizer.vocab_size(), expected.vocab_size(), "{}", other.display());
        assert_eq!(tokenizer.eos_ids(), expected.eos_ids());
        assert_eq!(tokenizer.bos_id(), expected.bos_id());
        assert_eq!(tokenizer.chat_template(), expected.chat_template());
        for text in
            ["", " a  b\n\n12345 don't <|im_end|> Tiếng Việt 🦀", "<bos>x\u{0}y\t \r\n", "def f(x):\n    return x"]
        {
            assert_eq!(tokenizer.encode_default(text).unwrap(), expected.encode_default(text).unwrap(), "{text:?}");
            let [a, b] = [&tokenizer, &expected].map(|t| t.encode(text, SpecialText::AsText).unwrap());
            assert_eq!(a, b, "{text:?}");
            assert_eq!(tokenizer.decode(&a).unwrap(), expected.decode(&b).unwrap());
        }
    }
}
