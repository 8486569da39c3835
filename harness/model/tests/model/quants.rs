//! Quantised types against the `gguf` Python package, bit for bit (`scripts/make-goldens.py quants`), and ik_llama.cpp's own
//! ternary types against an encoder written from its source.

use safetensors::SafeTensors;
use ternbench_kernels::{DenseType, TernaryMatrix};
use ternbench_model::weights::encode::{self, StoredType};
use ternbench_model::weights::gguf::GgufModel;
use ternbench_model::weights::{LinearName, LinearWeights, OpenOptions, WeightSource, ternary};

use crate::common::{self, Gguf, Random};

/// Rows and row length of the golden matrices.
const SHAPE: (usize, usize) = (8, 256);

fn golden() -> Vec<u8> {
    std::fs::read(common::fixture("../quants.safetensors")).unwrap()
}

fn bytes(file: &[u8], name: &str) -> Vec<u8> {
    SafeTensors::deserialize(file).unwrap().tensor(name).unwrap().data().to_vec()
}

fn floats(file: &[u8], name: &str) -> Vec<f32> {
    bytes(file, name).chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    // The package gives -0 where a scale of 0 meets a negative code, llama.cpp's C too; both are zero.
    values.iter().map(|value| (value + 0.0).to_bits()).collect()
}

/// A model whose embedding is the golden matrix `name`, of a vocabulary of 8 and a width of 256.
fn model_with(id: u32, data: Vec<u8>) -> GgufModel {
    let (rows, width) = (SHAPE.0 as u64, SHAPE.1 as u64);
    let mut file = Gguf::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 256)
        .u32("llama.embedding_length", 256)
        .u32("llama.feed_forward_length", 256)
        .u32("llama.attention.head_count", 4)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("token_embd.weight", &[width, rows], id, data.clone())
        .f32_tensor("output_norm.weight", &[width], 1.0);
    for name in ["attn_norm", "ffn_norm"] {
        file = file.f32_tensor(&format!("blk.0.{name}.weight"), &[width], 1.0);
    }
    for (name, _, _) in common::LINEARS {
        file = file.f32_tensor(&format!("blk.0.{name}.weight"), &[width, width], 0.25);
    }
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), file.bytes()).unwrap();
    GgufModel::open(path.path(), OpenOptions::default()).unwrap()
}

#[test]
fn dequantised_values_are_bit_equal() {
    let file = golden();
    let types =
        [(2, "Q4_0"), (3, "Q4_1"), (6, "Q5_0"), (7, "Q5_1"), (8, "Q8_0"), (12, "Q4_K"), (13, "Q5_K"), (14, "Q6_K")];
    for (id, name) in types {
        let matrix = model_with(id, bytes(&file, &format!("{name}.bytes"))).embedding().unwrap();
        let mut values = vec![0.0; SHAPE.0 * SHAPE.1];
        values.chunks_exact_mut(SHAPE.1).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
        let expected = floats(&file, &format!("{name}.values"));
        assert!(expected.iter().any(|&value| value != 0.0));
        assert_eq!(bits(&values), bits(&expected), "{name}");
    }
}

#[test]
fn quantised_bytes_are_equal() {
    let file = golden();
    for (ty, name) in [(DenseType::Q4_0, "Q4_0"), (DenseType::Q4_1, "Q4_1"), (DenseType::Q8_0, "Q8_0")] {
        let mut out = Vec::new();
        encode::floats(ty, &floats(&file, &format!("{name}.source")), &mut out).unwrap();
        assert_eq!(out, bytes(&file, &format!("{name}.bytes")), "{name}");
    }
}

#[test]
fn ternary_blocks_are_equal_both_ways() {
    let file = golden();
    type Decoder = fn(&[u8]) -> Result<(Vec<i8>, f32), String>;
    let decoders: [(&str, StoredType, Decoder); 2] =
        [("TQ1_0", StoredType::Tq1_0, ternary::tq1_0), ("TQ2_0", StoredType::Tq2_0, ternary::tq2_0)];
    for (name, ty, decode) in decoders {
        let stored = bytes(&file, &format!("{name}.bytes"));
        let (trits, scale) = decode(&stored).unwrap();
        let values: Vec<f32> = trits.iter().map(|&trit| f32::from(trit) * scale).collect();
        assert_eq!(bits(&values), bits(&floats(&file, &format!("{name}.values"))), "{name}");
        let matrix = TernaryMatrix::new(SHAPE.0, SHAPE.1, trits, scale).unwrap();
        assert_eq!(encode::blocks(&matrix, ty).unwrap(), stored, "{name}");
    }
}

/// ik_llama.cpp's rows, packed from their description: IQ2_BN an f32 and 2 bits a weight in runs of 16; IQ1_BN an f16 and, for
/// every 16 weights, three bytes of five trits with the sixteenth in the block's last byte.
#[test]
fn bn_types_decode() {
    let (n, k) = (6, 192);
    let mut random = Random(11);
    let mut trits = random.trits(n * k);
    trits[k..2 * k].fill(0);
    let byte_of = |digits: &[i8]| {
        let value =
            digits.iter().zip([1u32, 3, 9, 27, 81]).map(|(&trit, place)| (trit + 1) as u32 * place).sum::<u32>();
        (value * 256).div_ceil(243) as u8
    };
    let (mut two, mut one) = (Vec::new(), Vec::new());
    for row in trits.chunks_exact(k) {
        let scale = if row.iter().all(|&trit| trit == 0) { 0.0f32 } else { 0.75 };
        two.extend(scale.to_le_bytes());
        one.extend(half::f16::from_f32(scale).to_le_bytes());
        for block in row.chunks_exact(64) {
            two.extend((0..16).map(|p| (0..4).map(|run| ((block[run * 16 + p] + 1) as u8) << (2 * run)).sum::<u8>()));
            let groups: Vec<&[i8]> = block.chunks_exact(16).collect();
            one.extend(groups.iter().flat_map(|group| group[..15].chunks_exact(5).map(byte_of).collect::<Vec<_>>()));
            one.push(byte_of(&groups.iter().map(|group| group[15]).collect::<Vec<_>>()));
        }
    }
    assert_eq!(ternary::iq2_bn(&two, k).unwrap(), (trits.clone(), 0.75));
    assert_eq!(ternary::iq1_bn(&one, k).unwrap(), (trits, 0.75));
    two[2 * (4 + 48) + 3] ^= 1;
    assert!(ternary::iq2_bn(&two, k).unwrap_err().contains("row 2 has scale"));
}

/// The same through a file: the size of rows with a scale in front is what the reader expects.
#[test]
fn bn_types_load() {
    for (id, scale, block) in [(134, vec![0u8, 0x3c], vec![0u8; 13]), (135, 1f32.to_le_bytes().to_vec(), vec![0u8; 16])]
    {
        let mut file = Gguf::model("bitnet", &[("attn_sub_norm.weight", 128), ("ffn_sub_norm.weight", 256)]);
        for (name, n, k) in common::LINEARS {
            let row = [scale.clone(), block.repeat(k as usize / 64)].concat();
            let name = format!("blk.0.{name}.weight");
            let tensor = file.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
            (tensor.2, tensor.3) = (id, row.repeat(n as usize));
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file.bytes()).unwrap();
        let model = GgufModel::open(path.path(), OpenOptions::default()).unwrap();
        let LinearWeights::Ternary(matrix) = model.linear(0, LinearName::Down).unwrap() else { panic!("no trits") };
        assert_eq!((matrix.scale(), matrix.trits()), (1.0, &vec![-1i8; 128 * 256][..]));
    }
}
