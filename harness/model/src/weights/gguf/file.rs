//! The GGUF container: magic, version, metadata, tensor table, data (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! Everything is checked when a file is opened, so that reading it later cannot run past its end. Nothing is allocated before
//! the bytes that justify it have been seen: metadata arrays stay in the map and are decoded when asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use ternbench_kernels::Bytes;

use super::entry::Entry;
use super::types::GgmlType;
use crate::error::LoadError;
use crate::weights::map::{MappedFile, shown};

/// A metadata value. Numbers are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Uint(u64),
    /// Any signed integer.
    Int(i64),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Str(String),
    /// Values of one type, still in the file.
    Array(ArrayInfo),
}

/// Where an array's elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayInfo {
    element: u32,
    /// Elements.
    pub len: usize,
    range: Range<usize>,
}

/// An entry of the tensor table.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions as the file has them: the row length first.
    pub dims: Vec<usize>,
    /// Its type.
    pub ty: GgmlType,
    range: Range<usize>,
}

impl TensorInfo {
    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// `(rows, row length)` of a matrix; a vector is one row.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match *self.dims {
            [k] => Some((1, k)),
            [k, ref rest @ ..] if rest[1..].iter().all(|&dim| dim == 1) => Some((rest[0], k)),
            _ => None,
        }
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    map: MappedFile,
    version: u32,
    metadata: BTreeMap<String, Value>,
    /// Type ids and places of the metadata values.
    encoded: BTreeMap<String, (u32, Range<usize>)>,
    tensors: Vec<TensorInfo>,
    by_name: BTreeMap<String, usize>,
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// The most dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// The longest key that the format allows.
const MAX_KEY: usize = 65535;

/// Bytes of a value of a fixed-size type.
fn scalar_bytes(ty: u32) -> Option<usize> {
    match ty {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Decodes a fixed-size value; `bytes` has its length.
fn scalar(ty: u32, bytes: &[u8]) -> Result<Value, String> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    let signed = |bits: u32| ((unsigned << (64 - bits)) as i64) >> (64 - bits);
    Ok(match ty {
        0 | 2 | 4 | 10 => Value::Uint(unsigned),
        1 => Value::Int(signed(8)),
        3 => Value::Int(signed(16)),
        5 => Value::Int(signed(32)),
        11 => Value::Int(signed(64)),
        6 => Value::Float(f32::from_bits(unsigned as u32).into()),
        12 => Value::Float(f64::from_bits(unsigned)),
        7 if unsigned <= 1 => Value::Bool(unsigned == 1),
        7 => return Err(format!("a truth value is {unsigned}, expected 0 or 1")),
        _ => return Err(format!("unknown metadata type {ty}")),
    })
}

/// Reads forward and never past the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], String> {
        if len > self.left() {
            return Err(format!(
                "truncated: {what} at byte {} needs {len} bytes, the file ends at {}",
                self.at,
                self.bytes.len()
            ));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.take(4, what).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.take(8, what).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// A count of things that take at least `least` bytes each; more than the rest of the file could hold is refused here.
    fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let at = self.at;
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => Err(format!(
                "{what}: count {count} at byte {at} is more than the rest of the file ({} bytes) holds",
                self.left()
            )),
        }
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8], String> {
        let len = self.count(1, what)?;
        self.take(len, what)
    }

    fn utf8(&mut self, what: &str) -> Result<&'a str, String> {
        let at = self.at;
        std::str::from_utf8(self.string(what)?).map_err(|_| format!("{what} at byte {at} is not UTF-8"))
    }

    fn value(&mut self, ty: u32, key: &str) -> Result<Value, String> {
        let what = format!("value of '{key}'");
        if ty == STRING {
            return Ok(Value::Str(self.utf8(&what)?.to_owned()));
        }
        if ty == ARRAY {
            let element = self.u32(&what)?;
            let (len, start) = if let Some(size) = scalar_bytes(element) {
                let len = self.count(size, &what)?;
                let start = self.at;
                self.take(len * size, &what)?;
                (len, start)
            } else if element == STRING {
                let len = self.count(8, &what)?;
                let start = self.at;
                for _ in 0..len {
                    self.string(&what)?;
                }
                (len, start)
            } else if element == ARRAY {
                return Err(format!("'{key}' is an array of arrays, which is not supported"));
            } else {
                return Err(format!("'{key}' is an array of unknown type {element}"));
            };
            return Ok(Value::Array(ArrayInfo { element, len, range: start..self.at }));
        }
        let size = scalar_bytes(ty).ok_or_else(|| format!("'{key}' has unknown type {ty}"))?;
        scalar(ty, self.take(size, &what)?).map_err(|reason| format!("'{key}': {reason}"))
    }
}

impl GgufFile {
    /// Opens and checks a file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Self::parse(MappedFile::open(path)?)
    }

    fn parse(map: MappedFile) -> Result<Self, LoadError> {
        let path = map.path();
        let bad = |reason: String| LoadError::file(path, reason);
        let mut cursor = Cursor { bytes: map.bytes(), at: 0 };

        let magic = cursor.take(4, "magic").map_err(bad)?;
        if magic != b"GGUF" {
            return Err(bad(format!("not a GGUF file: it starts with '{}'", magic.escape_ascii())));
        }
        let version = cursor.u32("version").map_err(bad)?;
        match version {
            2 | 3 => {}
            1 => return Err(bad("GGUF version 1 is not supported: convert it to version 3".to_owned())),
            _ if matches!(version.swap_bytes(), 1..=3) => {
                return Err(bad("big-endian GGUF is not supported: convert it to little-endian".to_owned()));
            }
            _ => return Err(bad(format!("unknown GGUF version {version}, expected 2 or 3"))),
        }
        // A tensor takes at least an 8-byte name length, dimension count, one dimension, type and offset; an entry at least a
        // key length, type and one byte.
        let n_tensors = cursor.count(32, "tensor count").map_err(bad)?;
        let n_entries = cursor.count(13, "metadata count").map_err(bad)?;

        let mut metadata = BTreeMap::new();
        let mut encoded = BTreeMap::new();
        for _ in 0..n_entries {
            let key = cursor.utf8("metadata key").map_err(bad)?;
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(bad(format!("a metadata key is {} bytes long, expected 1 to {MAX_KEY}", key.len())));
            }
            let ty = cursor.u32("metadata type").map_err(bad)?;
            let start = cursor.at;
            let value = cursor.value(ty, &shown(key)).map_err(bad)?;
            encoded.insert(key.to_owned(), (ty, start..cursor.at));
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(bad(format!("metadata key '{}' occurs twice", shown(key))));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Uint(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 30 => alignment as usize,
            Some(other) => return Err(bad(format!("general.alignment is {other:?}, expected a power of two"))),
        };

        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut offsets = Vec::new();
        let mut by_name = BTreeMap::new();
        for index in 0..n_tensors {
            let (tensor, offset) = Self::tensor_entry(&mut cursor, path)?;
            if by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(LoadError::tensor(path, &shown(&tensor.name), "occurs twice in the tensor table"));
            }
            tensors.push(tensor);
            offsets.push(offset);
        }
        let file_len = map.bytes().len();
        let data = cursor.at.next_multiple_of(alignment);
        for (tensor, offset) in tensors.iter_mut().zip(offsets) {
            let bytes = tensor.range.len();
            let range = usize::try_from(offset)
                .ok()
                .filter(|offset| offset.is_multiple_of(alignment))
                .ok_or_else(|| format!("offset {offset} is no multiple of the alignment {alignment}"))
                .and_then(|offset| {
                    let start = data.checked_add(offset);
                    let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end <= file_len);
                    start.zip(end).ok_or_else(|| {
                        format!("truncated: {bytes} bytes at offset {offset} of the data end past the file ({file_len} bytes)")
                    })
                });
            match range {
                Ok((start, end)) => tensor.range = start..end,
                Err(reason) => return Err(LoadError::tensor(path, &shown(&tensor.name), reason)),
            }
        }
        let mut order: Vec<&TensorInfo> = tensors.iter().collect();
        order.sort_by_key(|tensor| tensor.range.start);
        if let Some(pair) = order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
            let reason = format!("overlaps tensor '{}'", shown(&pair[0].name));
            return Err(LoadError::tensor(path, &shown(&pair[1].name), reason));
        }
        Ok(Self { version, metadata, encoded, tensors, by_name, map })
    }

    /// One entry of the tensor table. Its range is that of its size only; the offset is returned beside it.
    fn tensor_entry(cursor: &mut Cursor<'_>, path: &Path) -> Result<(TensorInfo, u64), LoadError> {
        let bad = |reason: String| LoadError::file(path, reason);
        let name = cursor.utf8("tensor name").map_err(bad)?;
        let bad = |reason: String| LoadError::tensor(path, &shown(name), reason);
        let n_dims = cursor.u32("number of dimensions").map_err(bad)?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(bad(format!("has {n_dims} dimensions, expected 1 to {MAX_DIMS}")));
        }
        let mut dims = Vec::new();
        for _ in 0..n_dims {
            let dim = cursor.u64("dimension").map_err(bad)?;
            match usize::try_from(dim) {
                Ok(dim) if dim > 0 => dims.push(dim),
                _ => return Err(bad(format!("has a dimension of {dim}"))),
            }
        }
        let ty = GgmlType::from_id(cursor.u32("tensor type").map_err(bad)?).map_err(bad)?;
        let bytes = ty.tensor_bytes(&dims).ok_or_else(|| {
            bad(format!("dimensions {dims:?} do not fit type {} (blocks of {})", ty.name, ty.block_len))
        })?;
        let offset = cursor.u64("tensor offset").map_err(bad)?;
        Ok((TensorInfo { name: name.to_owned(), dims, ty, range: 0..bytes }, offset))
    }

    /// The mapped file.
    pub fn map(&self) -> &MappedFile {
        &self.map
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, sorted by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The entries whose key starts with `prefix`, as stored, sorted by key.
    pub fn entries<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        let encoded = self.encoded.iter().filter(move |(key, _)| key.starts_with(prefix));
        encoded.map(|(key, (ty, range))| Entry {
            key: key.clone(),
            ty: *ty,
            bytes: self.map.bytes()[range.clone()].to_vec(),
        })
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// A tensor's bytes as stored.
    pub fn data(&self, tensor: &TensorInfo) -> Result<Bytes, LoadError> {
        let window = self.map.window(tensor.range.clone());
        window.ok_or_else(|| self.tensor_error(&tensor.name, "does not lie inside the file"))
    }

    /// An error about this file.
    pub fn error(&self, reason: impl ToString) -> LoadError {
        LoadError::file(self.path(), reason)
    }

    /// An error about a tensor of this file.
    pub fn tensor_error(&self, tensor: &str, reason: impl ToString) -> LoadError {
        LoadError::tensor(self.path(), &shown(tensor), reason)
    }

    fn wrong(&self, key: &str, expected: &str) -> LoadError {
        self.error(format!("metadata '{key}' is not {expected}"))
    }

    /// An integer that is not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Uint(value)) => Ok(Some(value)),
            Some(&Value::Int(value)) if value >= 0 => Ok(Some(value as u64)),
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A number as f32.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Float(value)) => Ok(Some(value as f32)),
            Some(&Value::Uint(value)) => Ok(Some(value as f32)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a truth value")),
        }
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Str(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// The number of elements of an array.
    pub fn array_len(&self, key: &str) -> Result<Option<usize>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array.len)),
            Some(_) => Err(self.wrong(key, "an array")),
        }
    }

    fn array(&self, key: &str) -> Result<Option<(&ArrayInfo, &[u8])>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some((array, &self.map.bytes()[array.range.clone()]))),
            Some(_) => Err(self.wrong(key, "an array")),
        }
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, LoadError> {
        let Some((array, bytes)) = self.array(key)? else { return Ok(None) };
        if array.element != STRING {
            return Err(self.wrong(key, "an array of strings"));
        }
        let mut cursor = Cursor { bytes, at: 0 };
        let read = |_| cursor.utf8("an element").map_err(|reason| self.error(format!("metadata '{key}': {reason}")));
        (0..array.len).map(read).collect::<Result<_, _>>().map(Some)
    }

    /// An array of numbers, as f64.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, LoadError> {
        let Some((array, bytes)) = self.array(key)? else { return Ok(None) };
        let size = scalar_bytes(array.element).filter(|_| array.element != 7);
        let size = size.ok_or_else(|| self.wrong(key, "an array of numbers"))?;
        let read = |bytes: &[u8]| match scalar(array.element, bytes) {
            Ok(Value::Uint(value)) => Ok(value as f64),
            Ok(Value::Int(value)) => Ok(value as f64),
            Ok(Value::Float(value)) => Ok(value),
            _ => Err(self.wrong(key, "an array of numbers")),
        };
        bytes.chunks_exact(size).map(read).collect::<Result<_, _>>().map(Some)
    }
}
