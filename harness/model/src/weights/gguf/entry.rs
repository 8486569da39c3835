//! Metadata entries of GGUF files to be written.

/// A key and its value, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value's type id.
    pub ty: u32,
    /// The value as the file stores it.
    pub bytes: Vec<u8>,
}

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Entry {
    fn new(key: impl Into<String>, ty: u32, bytes: Vec<u8>) -> Self {
        Self { key: key.into(), ty, bytes }
    }

    /// A 32-bit unsigned integer.
    pub fn u32(key: impl Into<String>, value: u32) -> Self {
        Self::new(key, U32, value.to_le_bytes().to_vec())
    }

    /// A 32-bit float.
    pub fn f32(key: impl Into<String>, value: f32) -> Self {
        Self::new(key, F32, value.to_le_bytes().to_vec())
    }

    /// A truth value.
    pub fn bool(key: impl Into<String>, value: bool) -> Self {
        Self::new(key, BOOL, vec![u8::from(value)])
    }

    /// A text.
    pub fn str(key: impl Into<String>, value: &str) -> Self {
        let mut bytes = Vec::new();
        string(value, &mut bytes);
        Self::new(key, STRING, bytes)
    }

    fn array(key: impl Into<String>, element: u32, len: usize, encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = element.to_le_bytes().to_vec();
        bytes.extend((len as u64).to_le_bytes());
        encode(&mut bytes);
        Self::new(key, ARRAY, bytes)
    }

    /// An array of texts.
    pub fn strings(key: impl Into<String>, values: &[String]) -> Self {
        Self::array(key, STRING, values.len(), |out| values.iter().for_each(|value| string(value, out)))
    }

    /// An array of 32-bit integers.
    pub fn i32s(key: impl Into<String>, values: &[i32]) -> Self {
        Self::array(key, I32, values.len(), |out| values.iter().for_each(|value| out.extend(value.to_le_bytes())))
    }

    /// An array of 32-bit floats.
    pub fn f32s(key: impl Into<String>, values: &[f32]) -> Self {
        Self::array(key, F32, values.len(), |out| values.iter().for_each(|value| out.extend(value.to_le_bytes())))
    }

    /// Appends the entry as the file stores it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        string(&self.key, out);
        out.extend(self.ty.to_le_bytes());
        out.extend(&self.bytes);
    }
}

/// The beginning of a file: everything before the tensors' data. `tensors` are names, dimensions (row length first), type ids
/// and stored bytes; the data follow in this order, each padded to a multiple of 32 bytes.
pub(super) fn header(entries: &[Entry], tensors: &[(String, Vec<usize>, u32, usize)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    entries.iter().for_each(|entry| entry.encode(&mut out));
    let mut offset = 0u64;
    for (name, dims, ty, bytes) in tensors {
        string(name, &mut out);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(ty.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// The default of `general.alignment`.
pub(super) const ALIGNMENT: usize = 32;
