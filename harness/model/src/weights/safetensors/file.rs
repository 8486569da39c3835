//! Safetensors files: a checked header over a map, and checkpoints of several such files.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserializer;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use ternbench_kernels::Bytes;

use crate::error::LoadError;
use crate::weights::map::{MappedFile, hex, shown};

/// The largest JSON file that is read: `config.json` and shard indices of real models stay far below.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file of a model folder.
pub fn read_json(path: &Path) -> Result<serde_json::Value, LoadError> {
    let io = |source| LoadError::io(path, source);
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_JSON_BYTES {
        return Err(LoadError::file(path, format!("{len} bytes are too many for a JSON file of a model")));
    }
    serde_json::from_slice(&std::fs::read(path).map_err(io)?)
        .map_err(|error| LoadError::file(path, format!("bad JSON: {error}")))
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Index of its file.
    shard: usize,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, the row length last.
    pub shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl Entry {
    /// Stored bytes.
    pub fn bytes(&self) -> u64 {
        (self.end - self.start) as u64
    }
}

/// The safetensors files of a model, as one table of tensors.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
}

/// The first pass over a header: finds what the parser would accept, doubled names and offsets past the end (whose sum it
/// does not guard against overflow).
struct HeaderCheck {
    data_len: u64,
}

#[derive(serde::Deserialize)]
struct Offsets {
    data_offsets: (u64, u64),
}

impl<'de> Visitor<'de> for HeaderCheck {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let (start, end) = map.next_value::<Offsets>()?.data_offsets;
                if start > end || end > self.data_len {
                    let reason = format!(
                        "tensor '{}' lies at {start}..{end} of {} bytes of data (truncated file?)",
                        shown(&name),
                        self.data_len
                    );
                    return Err(A::Error::custom(reason));
                }
            }
            if let Some(name) = seen.replace(name) {
                return Err(A::Error::custom(format!("tensor '{}' occurs twice", shown(&name))));
            }
        }
        Ok(())
    }
}

fn check_header(bytes: &[u8]) -> Result<(), String> {
    let len = bytes.get(..8).ok_or("truncated: no header length")?;
    let len = u64::from_le_bytes(len.try_into().map_err(|_| "truncated: no header length")?);
    let header = usize::try_from(len).ok().and_then(|len| bytes[8..].get(..len));
    let header = header.ok_or_else(|| {
        format!("the header claims {len} bytes, the file has {} (truncated, or not safetensors)", bytes.len())
    })?;
    let check = HeaderCheck { data_len: (bytes.len() - 8 - header.len()) as u64 };
    let mut json = serde_json::Deserializer::from_slice(header);
    let done = json.deserialize_map(check).and_then(|()| json.end());
    done.map_err(|error| format!("bad header: {error}"))
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let mut checkpoint = Self { folder: folder.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        if single.exists() {
            checkpoint.add(&single)?;
        } else if index.exists() {
            checkpoint.add_index(&index)?;
        } else {
            return Err(LoadError::file(folder, "holds neither model.safetensors nor model.safetensors.index.json"));
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path) -> Result<(), LoadError> {
        let file = MappedFile::open(path)?;
        check_header(file.bytes()).map_err(|reason| LoadError::file(path, reason))?;
        let (header_len, metadata) = SafeTensors::read_metadata(file.bytes())
            .map_err(|error| LoadError::file(path, format!("bad header: {}", one_line(&error))))?;
        let data = 8 + header_len;
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data + info.data_offsets.0,
                end: data + info.data_offsets.1,
            };
            if let Some(other) = self.tensors.get(&name) {
                let reason = format!("occurs in {} too", self.shards[other.shard].path().display());
                return Err(LoadError::tensor(path, &shown(&name), reason));
            }
            self.tensors.insert(name, entry);
        }
        self.shards.push(file);
        Ok(())
    }

    fn add_index(&mut self, index: &Path) -> Result<(), LoadError> {
        let json = read_json(index)?;
        let map = json.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| LoadError::file(index, "has no 'weight_map'"))?;
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().filter(|file| Path::new(file).file_name() == Some(file.as_ref()));
            let file =
                file.ok_or_else(|| LoadError::tensor(index, &shown(tensor), "its file is not a plain file name"))?;
            shards.insert(file, 0);
        }
        for (number, (file, place)) in shards.iter_mut().enumerate() {
            self.add(&self.folder.join(file))?;
            *place = number;
        }
        for (tensor, file) in map {
            let expected = file.as_str().and_then(|file| shards.get(file));
            if self.tensors.get(tensor).map(|entry| &entry.shard) != expected {
                let reason = format!("is not in {file}, where the index says");
                return Err(LoadError::tensor(index, &shown(tensor), reason));
            }
        }
        Ok(())
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// All tensor names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Name, type and shape of every tensor, sorted by name.
    pub fn tensors(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// A tensor's bytes.
    pub fn data(&self, name: &str, entry: &Entry) -> Result<Bytes, LoadError> {
        let window = self.shards[entry.shard].window(entry.start..entry.end);
        window.ok_or_else(|| self.error(name, "does not lie inside the file"))
    }

    /// An error about a tensor; it names the tensor's file, or the folder when there is no such tensor.
    pub fn error(&self, name: &str, reason: impl ToString) -> LoadError {
        let path = self.tensors.get(name).map_or(self.first_path(), |entry| self.shards[entry.shard].path());
        LoadError::tensor(path, &shown(name), reason)
    }

    fn first_path(&self) -> &Path {
        match &*self.shards {
            [only] => only.path(),
            _ => &self.folder,
        }
    }

    /// Lets the system take back the memory of what was read.
    pub fn release(&self) {
        self.shards.iter().for_each(MappedFile::release);
    }

    /// Bytes of all files.
    pub fn stored_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes().len() as u64).sum()
    }

    /// The files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path().to_owned()).collect()
    }

    /// The sha256 of a single file. Of several: the sha256 over one line `NAME SHA256\n` for each, sorted by name.
    pub fn sha256(&self) -> String {
        use sha2::{Digest, Sha256};
        if let [only] = &*self.shards {
            return only.sha256();
        }
        let mut all = Sha256::new();
        for shard in &self.shards {
            let name = shard.path().file_name().unwrap_or_default().to_string_lossy();
            all.update(format!("{name} {}\n", shard.sha256()));
        }
        hex(all.finalize())
    }
}

fn one_line(error: &impl fmt::Display) -> String {
    error.to_string().replace(['\n', '\r'], " ")
}
