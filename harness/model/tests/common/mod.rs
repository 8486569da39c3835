//! What the tests of this crate share: where data lies, visible skips, a GGUF writer.

#![allow(dead_code, reason = "every test binary uses a part of this")]

use std::path::{Path, PathBuf};

/// The small BitNet checkpoints that are part of the project.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bitnet-tiny128").join(name)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A path that need not exist: `None` prints a visible line, and fails where `TERNBENCH_REQUIRE` names `what`.
fn optional(path: PathBuf, what: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var("TERNBENCH_REQUIRE").unwrap_or_default();
    let required = required.split([',', ' ']).any(|name| name == what);
    assert!(!required, "TERNBENCH_REQUIRE names '{what}', but {} does not exist", path.display());
    println!("SKIPPED: {} does not exist", path.display());
    None
}

/// A path in the folder of shared reference data (`TERNBENCH_SHARED`, default beside the workspace).
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TERNBENCH_SHARED").map_or(workspace().join("../shared"), PathBuf::from);
    optional(folder.join(name), "shared")
}

/// A model that `scripts/fetch-small-models` fetches.
pub fn model(name: &str) -> Option<PathBuf> {
    optional(workspace().join("datasets/cache/models").join(name), "models")
}

/// Seeded noise (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn trits(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.below(3) as i8 - 1).collect()
    }
}

/// Name, dimensions (row length first), type id, data.
pub type Tensor = (String, Vec<u64>, u32, Vec<u8>);

/// Writes GGUF version 3, sound unless told otherwise.
#[derive(Clone, Default)]
pub struct Gguf {
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    pub fn u32(mut self, key: &str, value: u32) -> Self {
        self.metadata.push((key.to_owned(), 4, value.to_le_bytes().to_vec()));
        self
    }

    pub fn f32(mut self, key: &str, value: f32) -> Self {
        self.metadata.push((key.to_owned(), 6, value.to_le_bytes().to_vec()));
        self
    }

    pub fn str(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.to_owned(), 8, string(value)));
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], ty: u32, data: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), ty, data));
        self
    }

    pub fn f32_tensor(self, name: &str, dims: &[u64], value: f32) -> Self {
        let len = dims.iter().product::<u64>() as usize;
        self.tensor(name, dims, 0, value.to_le_bytes().repeat(len))
    }

    /// A llama-like model of one layer: hidden 128, ffn 256, 2 heads of 64, 1 kv head, vocabulary 32.
    pub fn model(arch: &str, norms: &[(&str, u64)]) -> Self {
        let mut file = Self::default()
            .str("general.architecture", arch)
            .u32(&format!("{arch}.block_count"), 1)
            .u32(&format!("{arch}.context_length"), 256)
            .u32(&format!("{arch}.embedding_length"), 128)
            .u32(&format!("{arch}.feed_forward_length"), 256)
            .u32(&format!("{arch}.attention.head_count"), 2)
            .u32(&format!("{arch}.attention.head_count_kv"), 1)
            .f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5)
            .f32_tensor("token_embd.weight", &[128, 32], 0.5)
            .f32_tensor("output_norm.weight", &[128], 1.0);
        for (name, len) in [("attn_norm.weight", 128), ("ffn_norm.weight", 128)].iter().chain(norms) {
            file = file.f32_tensor(&format!("blk.0.{name}"), &[*len], 1.0);
        }
        for (name, n, k) in LINEARS {
            file = file.f32_tensor(&format!("blk.0.{name}.weight"), &[k, n], 0.25);
        }
        file
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, ty, value) in &self.metadata {
            out.extend(string(key));
            out.extend(ty.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, dims, ty, data) in &self.tensors {
            out.extend(string(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(ty.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += data.len().next_multiple_of(32) as u64;
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

/// Linear layers of [`Gguf::model`]: name, n, k.
pub const LINEARS: [(&str, u64, u64); 7] = [
    ("attn_q", 128, 128),
    ("attn_k", 64, 128),
    ("attn_v", 64, 128),
    ("attn_output", 128, 128),
    ("ffn_gate", 256, 128),
    ("ffn_up", 256, 128),
    ("ffn_down", 128, 256),
];

pub fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}
