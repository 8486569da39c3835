//! A weight file mapped into memory: nothing is read before it is needed, and tensors are windows into the map.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use sha2::{Digest, Sha256};
use ternbench_kernels::Bytes;

use crate::error::LoadError;

/// A read-only mapped file.
///
/// Its bytes are checked when it is opened and used for as long as the model lives. Do not write to or shorten a weight file
/// while it is in use: like every program that maps files, this one would then see the new bytes, or be stopped by the system.
#[derive(Clone, Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Arc<Mmap>,
}

impl MappedFile {
    /// Maps `path`, which must be a regular file that is not empty.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::io(path, source);
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(LoadError::file(path, "not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(LoadError::file(path, "the file is empty"));
        }
        Self::map(path, &file)
    }

    /// Maps `file`, which was opened at `path` and is not empty.
    pub(crate) fn map(path: &Path, file: &File) -> Result<Self, LoadError> {
        // SAFETY: the map is private to this process and read-only. That nobody shortens the file meanwhile is the documented
        // condition on this type; every loader of mapped weights has it.
        let map = unsafe { Mmap::map(file) }.map_err(|source| LoadError::io(path, source))?;
        Ok(Self { path: path.to_owned(), map: Arc::new(map) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A shared window, or `None` when `range` does not lie inside the file.
    pub fn window(&self, range: Range<usize>) -> Option<Bytes> {
        Bytes::new(self.map.clone(), range)
    }

    /// The owner of all its bytes, for windows into them.
    pub(crate) fn owner(&self) -> Arc<Mmap> {
        self.map.clone()
    }

    /// Takes the whole file into memory, in huge pages if it can, and says how many bytes are in such: as many as the system's
    /// cache holds in pieces of that size (see [`super::output`]). 0 where the system does not say.
    pub(crate) fn populate(&self) -> usize {
        #[cfg(target_os = "linux")]
        {
            // Asks for pieces of that size where the file has to be read from the disk. What is refused costs speed only.
            let _ = self.map.advise(memmap2::Advice::HugePage);
            let _ = self.map.advise(memmap2::Advice::PopulateRead);
            let maps = std::fs::read("/proc/self/smaps").unwrap_or_default();
            huge_bytes(&String::from_utf8_lossy(&maps), self.map.as_ptr().addr())
        }
        #[cfg(not(target_os = "linux"))]
        0
    }

    /// Lets the system take back the memory of pages that were read; they are read again when needed.
    pub fn release(&self) {
        // SAFETY: the map is shared with nobody, read-only and backed by a file: dropped pages come back with the same bytes.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    /// The sha256 of the file in lower-case hexadecimal. Reads everything.
    pub fn sha256(&self) -> String {
        hex(Sha256::digest(self.bytes()))
    }
}

/// Bytes in huge pages of the map that begins at `start`, from the contents of `/proc/self/smaps`.
#[cfg(target_os = "linux")]
fn huge_bytes(maps: &str, start: usize) -> usize {
    let heading = format!("{start:x}-");
    let about = maps.lines().skip_while(|line| !line.starts_with(&heading)).skip(1);
    // The next heading has no colon after its first word.
    let fields =
        about.map_while(|line| line.split_ascii_whitespace().next()?.strip_suffix(':').map(|name| (name, line)));
    let huge = fields.filter(|(name, _)| matches!(*name, "FilePmdMapped" | "ShmemPmdMapped"));
    huge.filter_map(|(_, line)| line.split_ascii_whitespace().nth(1)?.parse::<usize>().ok()).sum::<usize>() * 1024
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name out of a file, fit for a one-line message: control characters escaped, cut when very long.
pub(crate) fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_found_among_all_maps() {
        let maps = "\
7f00200000-7f00600000 r--s 00000000 fe:00 12 /models/a:b.packed
Size:               4096 kB
AnonHugePages:      2048 kB
FilePmdMapped:      4096 kB
VmFlags: rd mr
7f00600000-7f00800000 r--s 00000000 fe:00 13 /models/c
FilePmdMapped:      2048 kB
VmFlags: rd
";
        assert_eq!(huge_bytes(maps, 0x7f_0020_0000), 4 << 20);
        assert_eq!(huge_bytes(maps, 0x7f_0060_0000), 2 << 20);
        assert_eq!(huge_bytes(maps, 0x7f_0040_0000), 0);
        assert_eq!(huge_bytes("", 0x7f_0020_0000), 0);
    }

    #[test]
    fn a_map_can_be_populated() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), vec![7; 5 << 20]).expect("written");
        let map = MappedFile::open(file.path()).expect("mapped");
        assert!(map.populate() <= 5 << 20);
        assert!(map.bytes().iter().all(|&byte| byte == 7));
    }
}
