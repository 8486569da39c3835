//! Toy models and data for unit tests.

use tempfile::TempDir;
use ternbench_model::batch::{Batch, ForwardPass, Limits, SequenceCache};
use ternbench_model::chat::Message;
use ternbench_model::segment::ForwardError;
use ternbench_model::{Logits, Segment};

use crate::error::EvalError;
use crate::local::{LocalModel, TextCodec};

/// Tokens are bytes; `()` is one token of its own, so that merging across a border can be tested.
const MERGED: u32 = 256;
/// Ends a generation.
pub const EOS: u32 = 257;
const VOCAB: usize = 258;

/// Bytes as tokens.
#[derive(Default)]
pub struct Bytes {
    /// Put before every text.
    pub bos: Option<u32>,
}

impl TextCodec for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        for byte in text.bytes().map(u32::from) {
            match ids.last_mut() {
                Some(last) if *last == u32::from(b'(') && byte == u32::from(b')') => *last = MERGED,
                _ => ids.push(byte),
            }
        }
        Ok(ids)
    }

    fn encode_chat(&self, turns: &[Message]) -> Result<Vec<u32>, EvalError> {
        let turns: Vec<_> = turns.iter().map(|turn| format!("<{}>{}", turn.role, turn.content)).collect();
        self.encode(&turns.concat())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, EvalError> {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn eos_ids(&self) -> &[u32] {
        &[EOS]
    }
}

/// A model whose logits are a hash of all tokens so far: any mistake in what it is fed changes every score.
pub struct HashLm {
    max_context: usize,
    logits: Vec<f32>,
    /// After any prompt it says this, and then ends.
    script: Option<Vec<u32>>,
    /// Passes give NaN once so many tokens are computed.
    pub fail_after: Option<usize>,
    /// Tokens put through the model.
    pub tokens_computed: usize,
}

/// A toy model's cache: what it has seen, and for how much it has room.
pub struct Seen {
    tokens: Vec<u32>,
    capacity: usize,
    /// Where the prompt ends: behind the tokens that came together.
    prompt: usize,
}

impl SequenceCache for Seen {
    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn n_blocks(&self) -> usize {
        0
    }

    fn fork(&self, len: usize, capacity: usize) -> Self {
        Self { tokens: self.tokens[..len].to_vec(), capacity, prompt: 0 }
    }
}

impl HashLm {
    pub fn new(max_context: usize) -> Self {
        Self { max_context, logits: Vec::new(), script: None, fail_after: None, tokens_computed: 0 }
    }

    /// One that says `script` after any prompt.
    pub fn scripted(max_context: usize, script: &str) -> Self {
        Self { script: Some(script.bytes().map(u32::from).collect()), ..Self::new(max_context) }
    }

    /// The logits after `tokens`.
    pub fn logits_after(tokens: &[u32]) -> Vec<f32> {
        let mut hash = tokens.iter().fold(17_u32, |hash, &t| (hash ^ t).wrapping_mul(0x0100_0193));
        let next = |_| {
            hash = hash.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (hash >> 8) as f32 / (1 << 22) as f32
        };
        (0..VOCAB).map(next).collect()
    }

    /// As a backend, with `max_requests` at once.
    pub fn local(self, max_requests: usize) -> LocalModel<Self, Bytes> {
        let limits = Limits { max_requests, tokens_per_pass: 100, kv_bytes: 1 << 30 };
        LocalModel::with_text(Batch::new(self, limits), Bytes::default())
    }
}

impl ForwardPass for HashLm {
    type Cache = Seen;

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn context(&self) -> usize {
        self.max_context
    }

    fn new_cache(&self, capacity: usize) -> Seen {
        assert!(capacity <= self.max_context);
        Seen { tokens: Vec::new(), capacity, prompt: 0 }
    }

    fn forward(&mut self, segments: &mut [Segment<'_, Seen>]) -> Result<&[f32], ForwardError> {
        self.logits.clear();
        for segment in segments {
            let cache = &mut segment.cache;
            if segment.tokens.len() > 1 || cache.tokens.is_empty() {
                cache.prompt = cache.tokens.len() + segment.tokens.len();
            }
            let first = match segment.logits {
                Logits::None => usize::MAX,
                Logits::Last => segment.tokens.len() - 1,
                Logits::From(first) => first,
            };
            for (i, &token) in segment.tokens.iter().enumerate() {
                cache.tokens.push(token);
                assert!(cache.tokens.len() <= cache.capacity, "the cache is too small");
                if i < first {
                    continue;
                }
                let mut row = Self::logits_after(&cache.tokens);
                if let Some(script) = &self.script {
                    let said = cache.tokens.len() - cache.prompt.min(cache.tokens.len());
                    row[script.get(said).copied().unwrap_or(EOS) as usize] = 100.0;
                }
                self.logits.extend(row);
            }
            self.tokens_computed += segment.tokens.len();
        }
        if self.fail_after.is_some_and(|limit| self.tokens_computed > limit) {
            self.logits.fill(f32::NAN);
        }
        Ok(&self.logits)
    }

    fn blocks_in_use(&self) -> usize {
        0
    }

    fn block_bytes(&self) -> usize {
        1
    }
}

/// `random.Random(1234)`, the second `sample(range(6), 5)`, printed by CPython 3.11.
pub const SECOND_SHOTS: [u32; 5] = [5, 0, 4, 1, 3];

/// A folder with three PIQA-style and three GSM8K-style items in the authors' formats.
pub fn data_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "piqa/valid.jsonl",
        "{\"goal\": \"Open a tin\", \"sol1\": \"with a key\", \"sol2\": \"with a tin opener\"}\n\
         {\"goal\": \"Close it\", \"sol1\": \"xx \", \"sol2\": \"y\"}\n\
         {\"goal\": \"Cool tea\", \"sol1\": \"Wait.\", \"sol2\": \"Weep.\"}\n",
    );
    write("piqa/valid-labels.lst", "1\n1\n0\n");
    write(
        "gsm8k/test.jsonl",
        "{\"question\": \"What is 1 + 2?\", \"answer\": \"Add.\\n#### 3\"}\n\
         {\"question\": \"What is 2 + 2?\", \"answer\": \"Add.\\n#### 4\"}\n\
         {\"question\": \"What is 3 + 2?\", \"answer\": \"Add.\\n#### 5\"}\n",
    );
    let train: String = (0..6)
        .map(|i| {
            let sum = i + 1;
            format!("{{\"question\": \"{i} and 1?\", \"answer\": \"It is {sum}.\\n#### {sum}\"}}\n")
        })
        .collect();
    write("gsm8k/train.jsonl", &train);
    write("perplexity/text.txt", &"to be or not to be ".repeat(100));
    folder
}
