//! The same weights out of every file format.

use std::path::Path;

use ternbench_kernels::TernaryMatrix;
use ternbench_model::config::{Activation, Architecture, RopeLayout};
use ternbench_model::weights::gguf::GgufModel;
use ternbench_model::weights::safetensors::SafetensorsModel;
use ternbench_model::weights::{
    self, I2sLayout, LinearName, LinearWeights, OpenOptions, VectorName, WeightSource, inventory,
};

use crate::common::{self, Gguf, LINEARS, Random, fixture};

fn ternary(source: &dyn WeightSource, layer: usize, which: LinearName) -> TernaryMatrix {
    match source.linear(layer, which) {
        Ok(LinearWeights::Ternary(matrix)) => matrix,
        other => panic!("layer {layer} {which:?}: {other:?}"),
    }
}

fn hf_name(layer: usize, which: LinearName) -> String {
    let part = match which {
        LinearName::Q => "self_attn.q_proj",
        LinearName::K => "self_attn.k_proj",
        LinearName::V => "self_attn.v_proj",
        LinearName::O => "self_attn.o_proj",
        LinearName::Gate => "mlp.gate_proj",
        LinearName::Up => "mlp.up_proj",
        LinearName::Down => "mlp.down_proj",
    };
    format!("model.layers.{layer}.{part}.weight")
}

/// Online, packed and I2_S checkpoints of one model agree with each other and with the reference's statistics.
#[test]
fn three_files_one_model() {
    let open = |name: &str| weights::open(&fixture(name), OpenOptions::default()).unwrap();
    let [online, packed, gguf] = ["bf16-online", "packed-offline", "i2_s.gguf"].map(open);
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("reference.json")).unwrap()).unwrap();

    assert_eq!(online.config(), packed.config());
    assert_eq!(online.config(), gguf.config());
    let config = online.config();
    assert_eq!(config.architecture, Architecture::Bitnet);
    assert_eq!((config.hidden, config.ffn, config.n_layers, config.vocab), (128, 384, 2, 512));
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.context), (2, 1, 64, 4096));
    assert_eq!((config.activation, config.rope_layout), (Activation::Relu2, RopeLayout::HalfSplit));
    assert_eq!((config.rope_theta, config.norm_eps), (500_000.0, 1e-5));
    assert!(config.tied && config.sub_norms);

    for (layer, which) in inventory::linears(config) {
        let name = hf_name(layer, which);
        let [online, packed, gguf] = [&online, &packed, &gguf].map(|source| ternary(source.as_ref(), layer, which));
        assert_eq!(online.trits(), packed.trits(), "{name}");
        assert_eq!(online.trits(), gguf.trits(), "{name}");

        let expected = &reference["scales"][&name];
        let sum: i64 = online.trits().iter().map(|&trit| i64::from(trit)).sum();
        assert_eq!(sum, expected["sum_ternary"].as_i64().unwrap(), "{name}");
        let nnz = online.trits().iter().filter(|&&trit| trit != 0).count();
        assert_eq!(nnz as u64, expected["nnz"].as_u64().unwrap(), "{name}");
        let close = |scale: f32, key: &str, tolerance: f64| {
            let expected = expected[key].as_f64().unwrap();
            let error = (f64::from(scale) / expected - 1.0).abs();
            assert!(error < tolerance, "{name}: scale {scale}, {key} {expected}");
        };
        // torch sums in f32, in its own order.
        close(online.scale(), "absmean_f32", 2e-6);
        close(packed.scale(), "absmean_bf16", 1e-7);
        close(gguf.scale(), "absmean_f32", 4e-3);
    }
    for name in inventory::vectors(config) {
        let values = online.vector(name).unwrap();
        assert_eq!(values.len(), name.len(config));
        assert_eq!(values, packed.vector(name).unwrap(), "{name:?}");
        assert_eq!(values, gguf.vector(name).unwrap(), "{name:?}");
    }
    let [a, b, c] = [&online, &packed, &gguf].map(|source| {
        let embedding = source.embedding().unwrap();
        let mut row = vec![0.0; embedding.k()];
        embedding.dequantize_row(7, &mut row);
        assert!(source.head().unwrap().is_none());
        row
    });
    assert_eq!(a, b);
    assert!(a.iter().zip(&c).all(|(a, c)| (a - c).abs() <= a.abs() * 1e-3), "bf16 and f16 embedding");
}

#[test]
fn hashes_and_sizes() {
    let gguf = GgufModel::open(&fixture("i2_s.gguf"), OpenOptions::default()).unwrap();
    assert_eq!(gguf.name(), "i2_s.gguf");
    assert_eq!(gguf.stored_bytes(), 379_072);
    assert_eq!(gguf.hash().unwrap().len(), 64);
    let folder = SafetensorsModel::open(&fixture("bf16-online")).unwrap();
    assert_eq!(folder.name(), "bf16-online");
    assert_ne!(gguf.hash().unwrap(), folder.hash().unwrap());
}

/// `quantize_i2_s` of bitnet.cpp in its three builds.
fn encode_i2s(trits: &[i8], n: usize, k: usize, scale: f32, layout: I2sLayout) -> Vec<u8> {
    let mut bytes = vec![0u8; n * k / 4];
    for (i, &trit) in trits.iter().enumerate() {
        let (byte, shift) = match layout {
            I2sLayout::X86 => (i / 128 * 32 + i % 32, 6 - 2 * (i % 128 / 32)),
            I2sLayout::Arm => (i / 64 * 16 + i % 16, 6 - 2 * (i % 64 / 16)),
            I2sLayout::X86Interleaved => (i / k / 4 * k + i % k, 6 - 2 * (i / k % 4)),
        };
        bytes[byte] |= ((trit + 1) as u8) << shift;
    }
    for _ in 0..8 {
        bytes.extend(scale.to_le_bytes());
    }
    bytes
}

fn encode_tq2_0(trits: &[i8], d: half::f16) -> Vec<u8> {
    let mut out = Vec::new();
    for block in trits.chunks(256) {
        let mut bytes = [0u8; 64];
        for (i, &trit) in block.iter().enumerate() {
            bytes[i / 128 * 32 + i % 32] |= ((trit + 1) as u8) << (2 * (i % 128 / 32));
        }
        out.extend(bytes);
        let zero = block.iter().all(|&trit| trit == 0);
        out.extend(if zero { half::f16::ZERO } else { d }.to_le_bytes());
    }
    out
}

fn encode_tq1_0(trits: &[i8], d: half::f16) -> Vec<u8> {
    let mut out = Vec::new();
    for block in trits.chunks(256) {
        // Start, bytes, trits a byte: as in `quantize_row_tq1_0_ref`; bytes of four trits hold a fifth of 0.
        for (start, width, digits) in [(0, 32, 5), (160, 16, 5), (240, 4, 4)] {
            for byte in 0..width {
                let mut value = 0u32;
                for digit in 0..5 {
                    let trit = if digit < digits { (block[start + digit * width + byte] + 1) as u32 } else { 0 };
                    value = value * 3 + trit;
                }
                out.push((value * 256).div_ceil(243) as u8);
            }
        }
        out.extend(d.to_le_bytes());
    }
    out
}

fn ternary_model(
    arch: &str,
    k_unit: u64,
    encode: impl Fn(&[i8], usize, usize) -> (u32, Vec<u8>),
) -> (Gguf, Vec<Vec<i8>>) {
    let mut file = Gguf::model(arch, &[("attn_sub_norm.weight", 128), ("ffn_sub_norm.weight", 256)]);
    let mut random = Random(7);
    let mut all = Vec::new();
    for (name, n, k) in LINEARS {
        let trits = random.trits((n * k) as usize);
        if k % k_unit == 0 {
            let name = format!("blk.0.{name}.weight");
            let tensor = file.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
            (tensor.2, tensor.3) = encode(&trits, n as usize, k as usize);
        }
        all.push(trits);
    }
    (file, all)
}

fn written(file: &Gguf) -> tempfile::NamedTempFile {
    let temporary = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(temporary.path(), file.bytes()).unwrap();
    temporary
}

fn open_gguf(path: &Path, i2s_layout: I2sLayout) -> GgufModel {
    GgufModel::open(path, OpenOptions { i2s_layout }).unwrap()
}

#[test]
fn i2s_layouts_round_trip() {
    for layout in [I2sLayout::X86, I2sLayout::X86Interleaved, I2sLayout::Arm] {
        let (file, trits) = ternary_model("bitnet-25", 1, |trits, n, k| (36, encode_i2s(trits, n, k, 0.125, layout)));
        let file = written(&file);
        let model = open_gguf(file.path(), layout);
        for (which, trits) in LinearName::ALL.into_iter().zip(&trits) {
            let matrix = ternary(&model, 0, which);
            assert_eq!(matrix.trits(), trits, "{layout:?} {which:?}");
            assert_eq!(matrix.scale(), 0.125);
        }
        let other = if layout == I2sLayout::X86 { I2sLayout::Arm } else { I2sLayout::X86 };
        assert_ne!(ternary(&open_gguf(file.path(), other), 0, LinearName::Q).trits(), trits[0]);
    }
}

#[test]
fn tq_types_round_trip() {
    let d = half::f16::from_f32(0.375);
    for id in [34, 35] {
        let encode = |trits: &[i8]| if id == 34 { encode_tq1_0(trits, d) } else { encode_tq2_0(trits, d) };
        let (file, trits) = ternary_model("bitnet", 256, |trits, _, _| (id, encode(trits)));
        let path = written(&file);
        let model = open_gguf(path.path(), I2sLayout::X86);
        assert_eq!(model.config().activation, Activation::Silu);
        let down = ternary(&model, 0, LinearName::Down);
        assert_eq!(down.trits(), trits[6], "type {id}");
        assert_eq!(down.scale(), 0.375);

        // A block of zeros has scale 0; another scale elsewhere makes it no ternary tensor.
        let mut zeros = trits[6].clone();
        zeros[256..512].fill(0);
        let mut file = file.clone();
        let at = file.tensors.iter().position(|tensor| tensor.0 == "blk.0.ffn_down.weight").unwrap();
        file.tensors[at].3 = encode(&zeros);
        let path = written(&file);
        assert_eq!(ternary(&open_gguf(path.path(), I2sLayout::X86), 0, LinearName::Down).trits(), zeros);
        let last = file.tensors[at].3.len() - 1;
        file.tensors[at].3[last] ^= 1;
        let path = written(&file);
        let error = open_gguf(path.path(), I2sLayout::X86).linear(0, LinearName::Down).unwrap_err().to_string();
        assert!(error.contains("blk.0.ffn_down.weight") && error.contains("scale"), "{error}");
    }
}

#[test]
fn gguf_families() {
    let open = |file: &Gguf| {
        let file = written(file);
        GgufModel::open(file.path(), OpenOptions::default())
    };
    let llama = open(&Gguf::model("llama", &[])).unwrap();
    assert_eq!(llama.config().rope_layout, RopeLayout::Interleaved);
    assert!(matches!(llama.linear(0, LinearName::Q), Ok(LinearWeights::Dense(_))));

    let untied = open(&Gguf::model("llama", &[]).f32_tensor("output.weight", &[128, 32], 1.0)).unwrap();
    assert!(!untied.config().tied && untied.head().unwrap().is_some());

    let qwen = open(&Gguf::model("qwen2", &[("attn_q.bias", 128), ("attn_k.bias", 64), ("attn_v.bias", 64)])).unwrap();
    assert!(qwen.config().qkv_bias && qwen.config().rope_layout == RopeLayout::HalfSplit);
    assert_eq!(qwen.vector(VectorName::Bias(0, LinearName::K)).unwrap().len(), 64);
    let error = open(&Gguf::model("qwen2", &[])).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_q.bias") && error.contains("missing"), "{error}");

    let gemma_norms = [
        ("post_attention_norm.weight", 128),
        ("post_ffw_norm.weight", 128),
        ("attn_q_norm.weight", 64),
        ("attn_k_norm.weight", 64),
    ];
    let gemma = open(&Gguf::model("gemma3", &gemma_norms).u32("gemma3.attention.sliding_window", 512)).unwrap();
    let config = gemma.config();
    assert!(config.qk_norm && config.post_norms && config.activation == Activation::GeluTanh);
    assert_eq!(config.embedding_scale, 128f32.sqrt());
    assert_eq!(config.sliding.map(|sliding| (sliding.window, sliding.pattern)), Some((512, 6)));
    // Stored as what is multiplied by.
    assert_eq!(gemma.vector(VectorName::QNorm(0)).unwrap(), [1.0; 64]);

    let minicpm = Gguf::model("minicpm", &[])
        .f32("minicpm.embedding_scale", 12.0)
        .f32("minicpm.residual_scale", 0.25)
        .f32("minicpm.logit_scale", 9.0);
    let minicpm = open(&minicpm).unwrap();
    assert_eq!((minicpm.config().embedding_scale, minicpm.config().residual_scale), (12.0, 0.25));
    assert_eq!(minicpm.config().logit_scale, 1.0 / 9.0);
}

/// Llama 3.2's frequency divisors are recognised, others refused.
#[test]
fn gguf_rope_scaling() {
    let divisor = |j: usize| {
        let wavelength = std::f64::consts::TAU * 500_000f64.powf(j as f64 / 32.0);
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        match wavelength {
            short if short < 2048.0 => 1.0,
            long if long > 8192.0 => 32.0,
            _ => 1.0 / ((1.0 - smooth) / 32.0 + smooth),
        }
    };
    let divisors: Vec<u8> = (0..32).flat_map(|j| (divisor(j) as f32).to_le_bytes()).collect();
    let file = Gguf::model("llama", &[]).f32("llama.rope.freq_base", 500_000.0);
    let path = written(&file.clone().tensor("rope_freqs.weight", &[32], 0, divisors.clone()));
    let scaling = open_gguf(path.path(), I2sLayout::X86).config().rope_scaling.unwrap();
    assert_eq!((scaling.factor, scaling.original_context), (32.0, 8192));

    let mut other = divisors;
    other[4 * 16..4 * 17].copy_from_slice(&7.5f32.to_le_bytes());
    let path = written(&file.tensor("rope_freqs.weight", &[32], 0, other));
    let error = GgufModel::open(path.path(), OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
}

/// Copies a fixture folder with another `config.json`.
fn folder_with(name: &str, change: impl Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn bitlinear_divides() {
    let multiplied = SafetensorsModel::open(&fixture("packed-offline")).unwrap();
    let folder = folder_with("packed-offline", |config| {
        config["quantization_config"]["linear_class"] = "bitlinear".into();
    });
    let divided = SafetensorsModel::open(folder.path()).unwrap();
    let [a, b] = [&multiplied, &divided].map(|source| ternary(source, 1, LinearName::Up));
    assert_eq!(a.trits(), b.trits());
    assert_eq!(b.scale(), 1.0 / a.scale());
}

/// A single file split in two with an index is the same model.
#[test]
fn shards() {
    let single = SafetensorsModel::open(&fixture("packed-offline")).unwrap();
    let bytes = std::fs::read(fixture("packed-offline/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let folder = folder_with("packed-offline", |_| ());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, name) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate() {
        let part = tensors.tensors().into_iter().enumerate().filter(|(i, _)| i % 2 == shard).map(|(_, tensor)| tensor);
        let part: Vec<_> = part.collect();
        map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), (*name).into())));
        std::fs::write(folder.path().join(name), safetensors::serialize(part, None).unwrap()).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let sharded = SafetensorsModel::open(folder.path()).unwrap();
    for (layer, which) in inventory::linears(single.config()) {
        assert_eq!(ternary(&single, layer, which), ternary(&sharded, layer, which));
    }
    assert_ne!(single.hash().unwrap(), sharded.hash().unwrap());

    for (change, expected) in
        [("../model.safetensors", "plain file name"), ("model-00001-of-00002.safetensors", "index")]
    {
        let mut map = map.clone();
        for file in map.values_mut().filter(|file| file.as_str().unwrap().contains("00002-of")) {
            *file = change.into();
        }
        std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        let error = SafetensorsModel::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
}

/// The real files, where they have been fetched.
#[test]
fn real_files() {
    if let Some(path) = common::model("SmolLM2-135M-Instruct.Q4_1.gguf") {
        let model = weights::open(&path, OpenOptions::default()).unwrap();
        let config = model.config();
        assert_eq!((config.n_layers, config.hidden, config.vocab, config.rope_theta), (30, 576, 49152, 100_000.0));
        assert_eq!(model.hash().unwrap(), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
        for (layer, which) in inventory::linears(config) {
            assert!(matches!(model.linear(layer, which), Ok(LinearWeights::Dense(_))));
        }
    }
}

/// A Hugging Face folder of one layer, every value 0.5, with what `config` adds to the shape; `extra` tensors by name and
/// shape, below `model.`.
fn hf_folder(config: serde_json::Value, extra: &[(&str, &[usize])]) -> tempfile::TempDir {
    let mut all = serde_json::json!({
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 32, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0
    });
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    let layer: [(&str, &[usize]); 9] = [
        ("layers.0.self_attn.q_proj.weight", &[128, 128]),
        ("layers.0.self_attn.k_proj.weight", &[64, 128]),
        ("layers.0.self_attn.v_proj.weight", &[64, 128]),
        ("layers.0.self_attn.o_proj.weight", &[128, 128]),
        ("layers.0.mlp.gate_proj.weight", &[256, 128]),
        ("layers.0.mlp.up_proj.weight", &[256, 128]),
        ("layers.0.mlp.down_proj.weight", &[128, 256]),
        ("layers.0.input_layernorm.weight", &[128]),
        ("layers.0.post_attention_layernorm.weight", &[128]),
    ];
    let outer: [(&str, &[usize]); 2] = [("embed_tokens.weight", &[32, 128]), ("norm.weight", &[128])];
    let shapes = layer.iter().chain(&outer).chain(extra);
    let data: Vec<_> = shapes
        .map(|(name, shape)| {
            let name = if *name == "lm_head.weight" { (*name).to_owned() } else { format!("model.{name}") };
            (name, *shape, half::f16::from_f32(0.5).to_le_bytes().repeat(shape.iter().product()))
        })
        .collect();
    let views = data.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.to_vec(), data);
        (name.as_str(), view.unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(folder.path().join("config.json"), all.to_string()).unwrap();
    folder
}

#[test]
fn hf_families() {
    let open = |config, extra: &[(&str, &[usize])]| SafetensorsModel::open(hf_folder(config, extra).path());
    let llama3 = serde_json::json!({
        "model_type": "llama", "tie_word_embeddings": true, "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        }
    });
    let llama = open(llama3.clone(), &[]).unwrap();
    let config = llama.config();
    assert_eq!((config.rope_layout, config.activation), (RopeLayout::HalfSplit, Activation::Silu));
    assert_eq!(config.rope_scaling.map(|s| (s.factor, s.original_context)), Some((32.0, 8192)));
    assert_eq!(llama.vector(VectorName::FfnNorm(0)).unwrap(), [0.5; 128]);
    assert!(matches!(llama.linear(0, LinearName::Down), Ok(LinearWeights::Dense(_))));
    assert!(llama.head().unwrap().is_none());
    let mut yarn = llama3;
    yarn["rope_scaling"]["rope_type"] = "yarn".into();
    assert!(open(yarn, &[]).unwrap_err().to_string().contains("yarn"));
    // Untied where the configuration says so, or says nothing and there is a head.
    let head: &[(&str, &[usize])] = &[("lm_head.weight", &[32, 128])];
    assert!(open(serde_json::json!({ "model_type": "llama" }), head).unwrap().head().unwrap().is_some());
    assert!(open(serde_json::json!({ "model_type": "llama" }), &[]).unwrap().config().tied);

    let qwen = serde_json::json!({ "model_type": "qwen2", "use_sliding_window": false });
    let biases: &[(&str, &[usize])] = &[
        ("layers.0.self_attn.q_proj.bias", &[128]),
        ("layers.0.self_attn.k_proj.bias", &[64]),
        ("layers.0.self_attn.v_proj.bias", &[64]),
    ];
    assert_eq!(open(qwen.clone(), biases).unwrap().vector(VectorName::Bias(0, LinearName::V)).unwrap(), [0.5; 64]);
    assert!(open(qwen, &[]).unwrap_err().to_string().contains("q_proj.bias"));

    let gemma = serde_json::json!({
        "model_type": "gemma3_text", "query_pre_attn_scalar": 64, "sliding_window": 512, "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000.0, "rope_theta": 1e6, "hidden_activation": "gelu_pytorch_tanh"
    });
    let norms: &[(&str, &[usize])] = &[
        ("layers.0.pre_feedforward_layernorm.weight", &[128]),
        ("layers.0.post_feedforward_layernorm.weight", &[128]),
        ("layers.0.self_attn.q_norm.weight", &[64]),
        ("layers.0.self_attn.k_norm.weight", &[64]),
    ];
    let model = open(gemma.clone(), norms).unwrap();
    let sliding = model.config().sliding.unwrap();
    assert_eq!((sliding.window, sliding.pattern, sliding.rope_theta), (512, 6, 10_000.0));
    assert_eq!(model.config().rope_theta, 1e6);
    // Stored as w, multiplied by 1 + w.
    assert_eq!(model.vector(VectorName::OutputNorm).unwrap(), [1.5; 128]);
    let mut scaled = gemma;
    scaled["query_pre_attn_scalar"] = 168.into();
    assert!(open(scaled, norms).unwrap_err().to_string().contains("query_pre_attn_scalar"));

    let minicpm = serde_json::json!({
        "model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256
    });
    let model = open(minicpm, &[]).unwrap();
    let config = model.config();
    assert_eq!((config.embedding_scale, config.residual_scale, config.logit_scale), (12.0, 1.4, 2.0));
}
