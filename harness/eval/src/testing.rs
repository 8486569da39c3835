//! Toy models and data for unit tests.

use tempfile::TempDir;

use crate::error::EvalError;
use crate::lm::{LanguageModel, Logits};

/// Tokens are bytes; `()` is one token of its own, so that merging across a border can be tested.
const MERGED: u32 = 256;
/// Ends a generation.
pub const EOS: u32 = 257;
const VOCAB: usize = 258;

fn encode(text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    for byte in text.bytes().map(u32::from) {
        match ids.last_mut() {
            Some(last) if *last == u32::from(b'(') && byte == u32::from(b')') => *last = MERGED,
            _ => ids.push(byte),
        }
    }
    ids
}

fn decode(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Which rows of a pass over `tokens` are wanted.
fn rows(tokens: &[u32], logits: Logits) -> std::ops::Range<usize> {
    assert!(!tokens.is_empty(), "a pass needs a token");
    match logits {
        Logits::None => 0..0,
        Logits::Last => tokens.len() - 1..tokens.len(),
        Logits::From(first) => {
            assert!(first < tokens.len());
            first..tokens.len()
        }
    }
}

/// A model whose logits are a hash of all tokens so far: any mistake in what it is fed changes every score.
pub struct HashLm {
    max_context: usize,
    logits: Vec<f32>,
    /// Put before every text.
    pub bos: Option<u32>,
    /// Passes give NaN once so many tokens are computed.
    pub fail_after: Option<usize>,
    /// Tokens put through the model.
    pub tokens_computed: usize,
    /// The most rows of logits asked for at once.
    pub most_rows: usize,
}

impl HashLm {
    pub fn new(max_context: usize) -> Self {
        Self { max_context, logits: Vec::new(), bos: None, fail_after: None, tokens_computed: 0, most_rows: 0 }
    }
}

/// A toy model's cache: what it has seen, and for how much it has room.
#[derive(Clone)]
pub struct Seen {
    tokens: Vec<u32>,
    capacity: usize,
    prompt: usize,
}

impl Seen {
    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        assert!(self.tokens.len() <= self.capacity, "the cache is too small");
    }
}

impl LanguageModel for HashLm {
    type Cache = Seen;

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn max_context(&self) -> usize {
        self.max_context
    }

    fn eos_ids(&self) -> &[u32] {
        &[EOS]
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.bos.into_iter().chain(encode(text)).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, EvalError> {
        Ok(decode(ids))
    }

    fn new_cache(&self, capacity: usize) -> Seen {
        assert!(capacity <= self.max_context);
        Seen { tokens: Vec::new(), capacity, prompt: 0 }
    }

    fn forward(&mut self, cache: &mut Seen, tokens: &[u32], logits: Logits) -> Result<&[f32], EvalError> {
        let rows = rows(tokens, logits);
        self.most_rows = self.most_rows.max(rows.len());
        self.logits.clear();
        for (i, &token) in tokens.iter().enumerate() {
            cache.push(token);
            if rows.contains(&i) {
                let mut hash = cache.tokens.iter().fold(17_u32, |hash, &t| (hash ^ t).wrapping_mul(0x0100_0193));
                self.logits.extend((0..VOCAB).map(|_| {
                    hash = hash.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (hash >> 8) as f32 / (1 << 22) as f32
                }));
            }
        }
        self.tokens_computed += tokens.len();
        if self.fail_after.is_some_and(|limit| self.tokens_computed > limit) {
            self.logits.fill(f32::NAN);
        }
        Ok(&self.logits)
    }
}

/// A model that says its line after any prompt, and then ends.
pub struct ScriptedLm {
    hash: HashLm,
    script: Vec<u32>,
    /// Tokens put through the model.
    pub tokens_computed: usize,
}

impl ScriptedLm {
    pub fn new(max_context: usize, script: &str) -> Self {
        Self { hash: HashLm::new(max_context), script: encode(script), tokens_computed: 0 }
    }
}

impl LanguageModel for ScriptedLm {
    type Cache = Seen;

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn max_context(&self) -> usize {
        self.hash.max_context
    }

    fn eos_ids(&self) -> &[u32] {
        &[EOS]
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        self.hash.encode(text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, EvalError> {
        Ok(decode(ids))
    }

    fn new_cache(&self, capacity: usize) -> Seen {
        self.hash.new_cache(capacity)
    }

    fn forward(&mut self, cache: &mut Seen, tokens: &[u32], logits: Logits) -> Result<&[f32], EvalError> {
        if cache.tokens.is_empty() {
            cache.prompt = tokens.len();
        }
        self.hash.forward(cache, tokens, logits)?;
        self.tokens_computed += tokens.len();
        let said = cache.tokens.len() - cache.prompt;
        let next = self.script.get(said).copied().unwrap_or(EOS);
        self.hash.logits[next as usize] = 100.0;
        Ok(&self.hash.logits)
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
    folder
}
