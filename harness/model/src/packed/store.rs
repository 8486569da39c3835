//! The file: a header in JSON, then sections of bytes.
//!
//! ```text
//! "TERNPACK"  u32 version  u32 header length  u64 checksum of the header   (little-endian)
//! header      JSON: key, notes, and length and checksum of every section
//! sections    each from a multiple of 64 bytes on
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use ternbench_kernels::{AlignedBytes, Bytes, Pool};
use twox_hash::XxHash3_64;

use crate::error::LoadError;
use crate::weights::map::MappedFile;
use crate::weights::output::PartialFile;

const MAGIC: &[u8; 8] = b"TERNPACK";
/// Raised when the file's format or a packed layout changes.
const VERSION: u32 = 3;
const PREFIX: usize = 24;
const LARGEST_HEADER: usize = 16 << 20;
/// What a thread reads at once: whole huge pages, few enough to share between threads.
const PIECE: usize = 16 << 20;
/// A map is used where at least this part of it is in huge pages. Decoding from 4 KB pages was 10 % slower, for as long as the model
/// runs; copying them took 0.25 s for 0.66 GB, once.
const LEAST_HUGE: f64 = 0.9;

type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    notes: serde_json::Value,
    sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
struct Section {
    len: usize,
    checksum: u64,
}

/// What a file holds.
pub(super) struct Store {
    pub(super) notes: serde_json::Value,
    pub(super) sections: Vec<Bytes>,
    /// Whether they are windows into the mapped file.
    pub(super) is_mapped: bool,
}

/// The checksum of sections.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(64)
}

/// Writes a file, which appears whole or not at all.
pub(super) fn write(path: &Path, key: &str, notes: serde_json::Value, sections: &[&Bytes]) -> Result<(), LoadError> {
    let about = sections.par_iter().map(|bytes| Section { len: bytes.len(), checksum: checksum(bytes) });
    let header = Header { key: key.to_owned(), notes, sections: about.collect() };
    let header = serde_json::to_vec(&header).map_err(|error| LoadError::file(path, error))?;
    let mut out = PartialFile::create(path)?;
    out.write(MAGIC)?;
    out.write(&VERSION.to_le_bytes())?;
    out.write(&(header.len() as u32).to_le_bytes())?;
    out.write(&checksum(&header).to_le_bytes())?;
    out.write(&header)?;
    let padding = |len: usize| &[0; 64][..aligned(len) - len];
    out.write(padding(PREFIX + header.len()))?;
    for bytes in sections {
        out.write(bytes)?;
        out.write(padding(bytes.len()))?;
    }
    out.finish()?;
    Ok(())
}

/// Opens a file and compares its checksums, in parallel. `None` where there is none, or one of another version or key.
///
/// # Errors
/// When the file is cut off or a checksum differs.
pub(super) fn read(path: &Path, key: &str, pool: &Pool) -> Result<Option<Store>, LoadError> {
    read_as(path, key, pool, LEAST_HUGE)
}

/// The same, mapping the file where at least the part `least_huge` of it is in huge pages.
fn read_as(path: &Path, key: &str, pool: &Pool, least_huge: f64) -> Result<Option<Store>, LoadError> {
    let io = |error| LoadError::io(path, error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let len_of_file = file.metadata().map_err(io)?.len();
    let damaged = |what: &str| LoadError::file(path, format!("{what}: delete it, it will be made again"));
    let mut prefix = [0; PREFIX];
    file.read_exact(&mut prefix).map_err(|_| damaged("is cut off"))?;
    let (words, _) = prefix[8..].as_chunks::<4>();
    let word = |i: usize| u32::from_le_bytes(words[i]);
    if prefix[..8] != *MAGIC {
        return Err(damaged("is no file of packed weights"));
    }
    if word(0) != VERSION {
        return Ok(None);
    }
    let header_len = word(1) as usize;
    if header_len > LARGEST_HEADER || (PREFIX + header_len) as u64 > len_of_file {
        return Err(damaged("is cut off"));
    }
    let mut header = vec![0; header_len];
    file.read_exact(&mut header).map_err(|_| damaged("is cut off"))?;
    if checksum(&header) != u64::from(word(2)) | u64::from(word(3)) << 32 {
        return Err(damaged("has a damaged header"));
    }
    let header: Header = serde_json::from_slice(&header).map_err(|_| damaged("has a damaged header"))?;
    if header.key != key {
        return Ok(None);
    }
    let mut start = aligned(PREFIX + header_len);
    let mut places = Vec::with_capacity(header.sections.len());
    for Section { len, checksum } in &header.sections {
        let end =
            start.checked_add(*len).filter(|&end| end as u64 <= len_of_file).ok_or_else(|| damaged("is cut off"))?;
        places.push((start..end, *checksum));
        start = aligned(end);
    }
    if start as u64 != len_of_file {
        return Err(damaged("is cut off"));
    }
    let (owner, is_mapped) = contents(path, &file, start, pool, least_huge)?;
    let section = |(range, sum): (Range<usize>, u64)| {
        let bytes = Bytes::new(owner.clone(), range).ok_or_else(|| damaged("is cut off"))?;
        if checksum(&bytes) == sum { Ok(bytes) } else { Err(damaged("has damaged weights")) }
    };
    let sections = pool.rayon().install(|| places.into_par_iter().map(section).collect::<Result<Vec<_>, _>>())?;
    Ok(Some(Store { notes: header.notes, sections, is_mapped }))
}

/// The `len` bytes of a file, in huge pages: mapped where the system's cache has them so, which takes no time, or else read; and
/// which of the two.
fn contents(path: &Path, file: &File, len: usize, pool: &Pool, least_huge: f64) -> Result<(Owner, bool), LoadError> {
    let map = MappedFile::map(path, file)?;
    if map.populate() as f64 >= least_huge * len as f64 {
        return Ok((map.owner(), true));
    }
    drop(map);
    let mut bytes = AlignedBytes::zeroed(len);
    let read = |(i, piece): (usize, &mut [u8])| {
        // Each thread has a position of its own in the file.
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start((i * PIECE) as u64))?;
        file.read_exact(piece)
    };
    let read = pool.rayon().install(|| bytes.par_chunks_mut(PIECE).enumerate().try_for_each(read));
    read.map_err(|error| LoadError::io(path, error))?;
    Ok((Arc::new(bytes), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mapped or read, the sections are the same, and damage is seen; what is mapped is one buffer, as what is read is.
    #[test]
    fn a_map_and_a_copy_say_the_same() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("kept");
        let pool = Pool::new(2).expect("threads");
        let sections = [0, 1, 63, 3 << 20, 5 << 20, 100].map(|len: usize| {
            let mut bytes = AlignedBytes::zeroed(len);
            bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * i / 251 + len) as u8);
            Bytes::from(bytes)
        });
        write(&path, "key", "notes".into(), &sections.each_ref()).expect("written");
        let (map, copy) = (0.0, f64::INFINITY);
        for least_huge in [map, copy] {
            assert!(read_as(&path, "another", &pool, least_huge).expect("sound").is_none());
            let store = read_as(&path, "key", &pool, least_huge).expect("sound").expect("kept");
            assert_eq!((store.notes, store.is_mapped), ("notes".into(), least_huge == map));
            assert_eq!(store.sections.len(), sections.len());
            for (found, kept) in store.sections.iter().zip(&sections) {
                assert!(**found == **kept);
                assert_eq!(found.as_ptr().addr() % 64, 0);
            }
        }
        let sound = std::fs::read(&path).expect("written");
        for at in [sound.len() - 164, sound.len() / 2, 300] {
            let mut bytes = sound.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).expect("written");
            assert!(read_as(&path, "key", &pool, map).is_err() && read_as(&path, "key", &pool, copy).is_err(), "{at}");
        }
        std::fs::write(&path, &sound[..sound.len() - 64]).expect("written");
        assert!(read_as(&path, "key", &pool, map).is_err() && read_as(&path, "key", &pool, copy).is_err());
    }
}
