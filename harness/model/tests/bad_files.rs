//! Broken weight files give one clear line, never a panic, a hang or a huge allocation.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Gguf, Random, fixture, string};
use ternbench_model::LoadError;
use ternbench_model::weights::{self, OpenOptions, inventory};

/// Remembers the largest allocation.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Largest = Largest;

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LARGEST.fetch_max(new_size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// More than any part of a sound fixture needs: the files have at most 0.9 MB.
const MAX_ALLOCATION: usize = 32 << 20;

/// Opens a model and reads everything in it.
fn read_all(path: &Path) -> Result<(), LoadError> {
    let source = weights::open(path, OpenOptions::default())?;
    let config = source.config();
    source.embedding()?;
    source.head()?;
    for name in inventory::vectors(config) {
        source.vector(name)?;
    }
    for (layer, which) in inventory::linears(config) {
        source.linear(layer, which)?;
    }
    Ok(())
}

/// The error of a file with these bytes; it must be one line with the file's name.
fn error_of(path: &Path, bytes: &[u8]) -> Option<String> {
    let (file, model) = if path.is_dir() { (path.join("model.safetensors"), path) } else { (path.to_owned(), path) };
    std::fs::write(&file, bytes).unwrap();
    let error = read_all(model).err()?.to_string();
    let folder = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(error.contains(&folder) || error.contains("model.safetensors"), "names no file: {error}");
    assert!(!error.contains(['\n', '\r']), "more than one line: {error:?}");
    assert!(error.len() < 600, "too long: {error}");
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < MAX_ALLOCATION, "allocated {largest} bytes: {error}");
    Some(error)
}

fn gguf_bytes() -> Vec<u8> {
    std::fs::read(fixture("i2_s.gguf")).unwrap()
}

/// A folder with the configuration of a fixture, and its weights.
fn safetensors_folder(name: &str) -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
    (folder, std::fs::read(fixture(name).join("model.safetensors")).unwrap())
}

fn truncations(path: &Path, bytes: &[u8], seed: u64) {
    let mut random = Random(seed);
    // Half of the places in the first part of the file, where the tables are.
    for i in 0..200 {
        let at = random.below(if i % 2 == 0 { bytes.len() } else { bytes.len().min(16 << 10) });
        assert!(error_of(path, &bytes[..at]).is_some(), "opens after truncation at byte {at}");
    }
}

fn flips(path: &Path, bytes: &[u8], seed: u64) {
    let mut random = Random(seed);
    let (mut refused, mut bytes) = (0, bytes.to_vec());
    for i in 0..500 {
        let at = random.below(if i % 2 == 0 { bytes.len() } else { bytes.len().min(16 << 10) });
        let bit = 1 << random.below(8);
        bytes[at] ^= bit;
        refused += usize::from(error_of(path, &bytes).is_some());
        bytes[at] ^= bit;
    }
    println!("{refused} of 500 flips refused");
    assert!(refused > 50, "only {refused} of 500 flips were noticed");
}

#[test]
fn gguf_truncated() {
    let file = tempfile::NamedTempFile::new().unwrap();
    truncations(file.path(), &gguf_bytes(), 1);
}

#[test]
fn gguf_flipped() {
    let file = tempfile::NamedTempFile::new().unwrap();
    flips(file.path(), &gguf_bytes(), 2);
}

#[test]
fn safetensors_truncated() {
    for (name, seed) in [("packed-offline", 3), ("bf16-online", 4)] {
        let (folder, bytes) = safetensors_folder(name);
        truncations(folder.path(), &bytes, seed);
    }
}

#[test]
fn safetensors_flipped() {
    let (folder, bytes) = safetensors_folder("packed-offline");
    flips(folder.path(), &bytes, 5);
}

/// Every single count, length and size field at its worst.
#[test]
fn gguf_metadata_lies() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path();
    let sound = Gguf::model("llama", &[]);
    assert_eq!(error_of(path, &sound.bytes()), None, "the model that the others are made of");

    let refused = |bytes: &[u8], expected: &[&str]| {
        let error = error_of(path, bytes).unwrap_or_else(|| panic!("accepted, expected {expected:?}"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}: expected {expected:?}");
    };
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = sound.bytes();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    refused(b"", &["empty"]);
    refused(b"PK\x03\x04", &["not a GGUF file"]);
    refused(&patched(0, b"GGML"), &["not a GGUF file", "GGML"]);
    refused(&patched(4, &1u32.to_le_bytes()), &["version 1"]);
    refused(&patched(4, &9u32.to_le_bytes()), &["version 9"]);
    refused(&patched(4, &3u32.to_be_bytes()), &["big-endian"]);
    for count in [u64::MAX, 1 << 62, 1 << 40] {
        refused(&patched(8, &count.to_le_bytes()), &["tensor count", &count.to_string()]);
        refused(&patched(16, &count.to_le_bytes()), &["metadata count", &count.to_string()]);
        refused(&patched(24, &count.to_le_bytes()), &["metadata key", &count.to_string()]);
    }

    let mut array = 4u32.to_le_bytes().to_vec();
    array.extend((1u64 << 61).to_le_bytes());
    let mut with = sound.clone();
    with.metadata.push(("a".to_owned(), 9, array));
    refused(&with.bytes(), &["'a'", "2305843009213693952"]);
    let mut nested = 9u32.to_le_bytes().to_vec();
    nested.extend(1u64.to_le_bytes());
    let mut with = sound.clone();
    with.metadata.push(("a".to_owned(), 9, nested));
    refused(&with.bytes(), &["'a'", "array of arrays"]);
    let mut with = sound.clone();
    with.metadata.push(("a".to_owned(), 77, vec![]));
    refused(&with.bytes(), &["'a'", "unknown type 77"]);
    let mut with = sound.clone();
    with.metadata.push(("a".to_owned(), 7, vec![2]));
    refused(&with.bytes(), &["'a'", "truth value"]);
    refused(&sound.clone().u32("llama.block_count", 1).bytes(), &["llama.block_count", "twice"]);
    for alignment in [0, 3, 48, u32::MAX] {
        refused(&sound.clone().u32("general.alignment", alignment).bytes(), &["general.alignment"]);
    }
    let mut with = sound.clone();
    with.metadata[0].2 = string("gpt\n2");
    refused(&with.bytes(), &["architecture", "gpt\\n2"]);
    refused(&sound.clone().u32("split.count", 3).bytes(), &["split"]);

    for (key, value, expected) in [
        ("llama.block_count", u32::MAX, "layers"),
        ("llama.block_count", 0, "layers"),
        ("llama.block_count", 2, "blk.1."),
        ("llama.embedding_length", 0, "is 0"),
        ("llama.embedding_length", 256, "token_embd.weight"),
        ("llama.feed_forward_length", 512, "ffn_"),
        ("llama.attention.head_count", 0, "heads"),
        ("llama.attention.head_count", 3, "3 heads"),
        ("llama.attention.head_count_kv", 0, "kv heads"),
        ("llama.attention.head_count_kv", 4, "kv heads"),
        ("llama.context_length", 0, "context"),
    ] {
        let mut with = sound.clone();
        let entry = with.metadata.iter_mut().find(|entry| entry.0 == key).unwrap();
        entry.2 = value.to_le_bytes().to_vec();
        refused(&with.bytes(), &[expected]);
    }
    refused(&sound.clone().u32("llama.vocab_size", 33).bytes(), &["vocab_size", "33"]);
    let mut tokens = 8u32.to_le_bytes().to_vec();
    tokens.extend(2u64.to_le_bytes());
    tokens.extend([string("a"), string("b")].concat());
    let mut with = sound.clone();
    with.metadata.push(("tokenizer.ggml.tokens".to_owned(), 9, tokens));
    refused(&with.bytes(), &["2 tokens", "32 rows"]);
}

#[test]
fn gguf_tensor_lies() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path();
    let sound = Gguf::model("llama", &[]);
    let refused = |bytes: &[u8], expected: &[&str]| {
        let error = error_of(path, bytes).unwrap_or_else(|| panic!("accepted, expected {expected:?}"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}: expected {expected:?}");
    };
    let with = |name: &str, change: &dyn Fn(&mut common::Tensor)| {
        let mut file = sound.clone();
        change(file.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap());
        file.bytes()
    };
    let q = "blk.0.attn_q.weight";
    refused(&with(q, &|tensor| tensor.1 = vec![1 << 63, 2]), &[q, "do not fit"]);
    refused(&with(q, &|tensor| tensor.1 = vec![u64::MAX, u64::MAX, u64::MAX]), &[q, "do not fit"]);
    refused(&with(q, &|tensor| tensor.1 = vec![1 << 40, 1 << 10]), &[q, "truncated"]);
    refused(&with(q, &|tensor| tensor.1 = vec![128, 0]), &[q, "dimension of 0"]);
    refused(&with(q, &|tensor| tensor.1 = vec![]), &[q, "0 dimensions"]);
    refused(&with(q, &|tensor| tensor.1 = vec![1; 5]), &[q, "5 dimensions"]);
    refused(&with(q, &|tensor| tensor.1 = vec![64, 256]), &[q, "[64, 256]", "[128, 128]"]);
    refused(&with(q, &|tensor| tensor.2 = 999), &[q, "unknown tensor type 999"]);
    refused(&with(q, &|tensor| tensor.2 = 38), &[q, "TL1", "I2_S or safetensors"]);
    refused(&with(q, &|tensor| tensor.2 = 39), &[q, "TL2", "I2_S or safetensors"]);
    refused(&with(q, &|tensor| tensor.2 = 135), &[q, "is 3, which is no trit"]);
    refused(&with(q, &|tensor| tensor.2 = 10), &[q, "do not fit type Q2_K"]);
    refused(
        &with("blk.0.ffn_down.weight", &|tensor| tensor.2 = 10),
        &["blk.0.ffn_down.weight", "Q2_K", "not supported"],
    );
    refused(&with(q, &|tensor| tensor.0 = "output_norm.weight".to_owned()), &["output_norm.weight", "twice"]);
    refused(&with(q, &|tensor| tensor.0 = "blk.0.attn_q\n.weight".to_owned()), &[q, "missing"]);
    refused(&sound.clone().f32_tensor("blk.0.attn_q.bias", &[128], 0.0).bytes(), &["blk.0.attn_q.bias", "not known"]);
    refused(&with("output_norm.weight", &|tensor| tensor.2 = 8), &["output_norm.weight", "Q8_0"]);

    // The second tensor moved onto the first, off the alignment, and past the end.
    let bytes = sound.bytes();
    let name = string("output_norm.weight");
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8 + 4;
    for (offset, expected) in
        [(0u64, "overlaps"), (1, "alignment"), (1 << 40, "truncated"), (u64::MAX - 31, "truncated")]
    {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        let named = if offset == 0 { "t" } else { "output_norm.weight" };
        refused(&bytes, &[named, expected]);
    }

    for value in [f32::NAN, f32::INFINITY] {
        let nan = with("blk.0.ffn_norm.weight", &|tensor| tensor.3[8..12].copy_from_slice(&value.to_le_bytes()));
        refused(&nan, &["blk.0.ffn_norm.weight", "value 2", "finite"]);
    }
}

#[test]
fn gguf_bad_trits() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = |bytes: &[u8], expected: &[&str]| {
        let error = error_of(file.path(), bytes).unwrap_or_else(|| panic!("accepted, expected {expected:?}"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}: expected {expected:?}");
    };
    let sound = Gguf::model("bitnet-b1.58", &[("attn_sub_norm.weight", 128), ("ffn_sub_norm.weight", 256)]);
    let with = |ty: u32, data: Vec<u8>| {
        let mut file = sound.clone();
        let tensor = file.tensors.iter_mut().find(|tensor| tensor.0 == "blk.0.ffn_down.weight").unwrap();
        (tensor.2, tensor.3) = (ty, data);
        file.bytes()
    };
    let i2s = |codes: u8, scale: f32| {
        let mut data = vec![codes; 256 * 128 / 4];
        data.extend(scale.to_le_bytes().repeat(8));
        data
    };
    assert_eq!(error_of(file.path(), &with(36, i2s(0b01_10_00_01, 1.0))), None);
    refused(&with(36, i2s(0b01_11_00_01, 1.0)), &["blk.0.ffn_down.weight", "row 0, column 32", "code"]);
    refused(&with(36, i2s(0b01_01_00_01, f32::NAN)), &["blk.0.ffn_down.weight", "scale"]);
    refused(&with(36, i2s(0b01_01_00_01, f32::INFINITY)), &["blk.0.ffn_down.weight", "scale"]);
    let tq2 = |codes: u8, d: half::f16| {
        let block: Vec<u8> = std::iter::repeat_n(codes, 64).chain(d.to_le_bytes()).collect();
        block.repeat(128)
    };
    assert_eq!(error_of(file.path(), &with(35, tq2(0b01_10_00_01, half::f16::ONE))), None);
    refused(&with(35, tq2(0b01_11_00_01, half::f16::ONE)), &["blk.0.ffn_down.weight", "code"]);
    refused(&with(35, tq2(0b01_10_00_01, half::f16::NAN)), &["blk.0.ffn_down.weight", "scale", "NaN"]);
}

/// A safetensors file from a header and its data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn safetensors_header_lies() {
    let (folder, sound) = safetensors_folder("packed-offline");
    let path = folder.path();
    let refused = |bytes: &[u8], expected: &[&str]| {
        let error = error_of(path, bytes).unwrap_or_else(|| panic!("accepted, expected {expected:?}"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}: expected {expected:?}");
    };
    assert_eq!(error_of(path, &sound), None);
    refused(b"", &["empty"]);
    refused(b"1234567", &["truncated"]);
    for len in [u64::MAX, 1 << 62, 1 << 40, sound.len() as u64] {
        let mut bytes = sound.clone();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        refused(&bytes, &["header", &len.to_string()]);
    }
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let header = |tensors: &[String]| format!("{{{}}}", tensors.join(","));
    let a = tensor("a", "F32", "[2]", 0, 8);
    refused(&with_header("{", 0), &["header"]);
    refused(&with_header("[]", 0), &["header"]);
    refused(&with_header("\u{1}\n\n", 0), &["header"]);
    refused(&with_header(&header(&[a.clone(), a.clone()]), 8), &["'a'", "twice"]);
    refused(&with_header(&header(&[a.clone(), tensor("b", "F32", "[2]", 4, 12)]), 12), &["offset", "b"]);
    refused(&with_header(&header(&[a.clone(), tensor("b", "F32", "[2]", 12, 20)]), 20), &["offset", "b"]);
    refused(&with_header(&header(&[tensor("a", "F32", "[2]", 0, u64::MAX)]), 8), &["'a'", "18446744073709551615"]);
    refused(&with_header(&header(&[tensor("a", "F32", "[3]", 0, 8)]), 8), &["shape"]);
    refused(&with_header(&header(&[tensor("a", "F99", "[2]", 0, 8)]), 8), &["F99"]);
    refused(&with_header(&header(&[tensor("a", "F32", "[4611686018427387904,4]", 0, 8)]), 8), &["overflow"]);
    refused(&with_header(&header(std::slice::from_ref(&a)), 16), &["not fully covered"]);
    refused(&with_header(&header(&[a]), 8), &["model.embed_tokens.weight", "missing"]);
    let nested = "[".repeat(100_000);
    refused(&with_header(&format!(r#"{{"a":{nested}"#), 0), &["header"]);
}

/// Changes one tensor of a checkpoint.
fn change(bytes: &[u8], name: &str, replace: Option<(safetensors::Dtype, Vec<usize>, Vec<u8>)>) -> Vec<u8> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut list: Vec<_> = tensors.tensors().into_iter().filter(|(other, _)| other != name).collect();
    if let Some((dtype, shape, data)) = &replace {
        list.push((name.to_owned(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap()));
    }
    safetensors::serialize(list, None).unwrap()
}

#[test]
fn safetensors_tensor_lies() {
    use safetensors::Dtype;
    let (folder, sound) = safetensors_folder("packed-offline");
    let path = folder.path();
    let refused = |bytes: &[u8], expected: &[&str]| {
        let error = error_of(path, bytes).unwrap_or_else(|| panic!("accepted, expected {expected:?}"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}: expected {expected:?}");
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    let codes = vec![0b01_10_00_01; 32 * 128];
    assert_eq!(error_of(path, &change(&sound, q, Some((Dtype::U8, vec![32, 128], codes.clone())))), None);
    refused(&change(&sound, q, None), &[q, "missing"]);
    refused(&change(&sound, q, Some((Dtype::U8, vec![128, 32], codes.clone()))), &[q, "[128, 32]", "[32, 128]"]);
    refused(&change(&sound, q, Some((Dtype::I8, vec![32, 128], codes.clone()))), &[q]);
    let mut bad = codes;
    bad[128 + 5] = 0b01_01_11_01;
    refused(&change(&sound, q, Some((Dtype::U8, vec![32, 128], bad))), &[q, "code", "row 33, column 5"]);
    let scale = "model.layers.1.mlp.up_proj.weight_scale";
    refused(&change(&sound, scale, None), &[scale, "missing"]);
    for value in [half::bf16::NAN, half::bf16::INFINITY] {
        let bytes = value.to_le_bytes().to_vec();
        refused(&change(&sound, scale, Some((Dtype::BF16, vec![1], bytes))), &[scale, "finite"]);
    }
    let norm = "model.layers.1.mlp.ffn_sub_norm.weight";
    let nan = half::bf16::NAN.to_le_bytes().repeat(384);
    refused(&change(&sound, norm, Some((Dtype::BF16, vec![384], nan.clone()))), &[norm, "value 0", "finite"]);
    refused(&change(&sound, norm, Some((Dtype::BF16, vec![1, 384], nan.clone()))), &[norm, "[1, 384]"]);
    refused(&change(&sound, "extra\n", Some((Dtype::BF16, vec![384], nan))), &["extra\\n", "not known"]);
}

#[test]
fn hf_config_lies() {
    let (folder, weights) = safetensors_folder("packed-offline");
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let sound: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    let cases: &[(&str, serde_json::Value, &str)] = &[
        ("/model_type", "mamba".into(), "mamba"),
        ("/model_type", serde_json::Value::Null, "model_type"),
        ("/hidden_size", 0.into(), "hidden"),
        ("/hidden_size", (-1).into(), "hidden_size"),
        ("/hidden_size", 1e30.into(), "hidden_size"),
        ("/hidden_size", 256.into(), "expected"),
        ("/vocab_size", 513.into(), "model.embed_tokens.weight"),
        ("/vocab_size", u64::MAX.into(), "vocab"),
        ("/num_attention_heads", 0.into(), "heads"),
        ("/num_key_value_heads", 0.into(), "kv heads"),
        ("/num_hidden_layers", u64::MAX.into(), "layers"),
        ("/num_hidden_layers", 1.into(), "not known"),
        ("/num_hidden_layers", 3.into(), "missing"),
        ("/rms_norm_eps", 0.into(), "epsilon"),
        ("/rope_theta", "x".into(), "rope_theta"),
        ("/hidden_act", "gelu".into(), "gelu"),
        ("/tie_word_embeddings", false.into(), "lm_head.weight"),
        ("/attention_bias", true.into(), "attention_bias"),
        ("/quantization_config/quant_method", "gptq".into(), "gptq"),
        ("/quantization_config/linear_class", "other".into(), "other"),
    ];
    for (pointer, value, expected) in cases {
        let mut config = sound.clone();
        *config.pointer_mut(pointer).unwrap() = value.clone();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = read_all(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{pointer} {value}: {error}");
    }
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    let error = read_all(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("JSON"), "{error}");
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(read_all(folder.path()).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn no_file() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("no.gguf"), "/dev/null".into()] {
        let error = read_all(&path).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}
