//! Written files appear whole or not at all: bytes go to a temporary neighbour, which is renamed at the end.
//!
//! They are written in pieces that fill huge pages, each at once and in its place: Linux then caches them so, and can map them in
//! such pages. With smaller or displaced pieces it cannot, and with 4 KB pages a map is slower to make and to read.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::LoadError;

/// What the system said about `path`, in words for what happens most.
pub(crate) fn write_error(path: &Path, error: std::io::Error) -> LoadError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            LoadError::file(path, "the disk is full: free some space or name another place; nothing was kept")
        }
        _ => LoadError::io(path, error),
    }
}

/// Refuses a target that exists, unless `force`.
pub(crate) fn check_target(target: &Path, force: bool) -> Result<(), LoadError> {
    if target.symlink_metadata().is_err() || force && !target.is_dir() {
        return Ok(());
    }
    if !force {
        return Err(LoadError::file(target, "exists already: say --force to replace it"));
    }
    // A folder is replaced only when nothing but a model is lost with it.
    let entries = std::fs::read_dir(target).map_err(|error| LoadError::io(target, error))?;
    let plain = entries.flatten().all(|entry| entry.file_type().is_ok_and(|ty| ty.is_file()));
    if plain && target.join("config.json").is_file() {
        return Ok(());
    }
    Err(LoadError::file(target, "is a folder with more than a model in it, which --force does not replace"))
}

/// The temporary neighbour of `target`.
fn neighbour(target: &Path, what: &str) -> Result<PathBuf, LoadError> {
    let name = target.file_name().ok_or_else(|| LoadError::file(target, "is not a name that can be written to"))?;
    Ok(target.with_file_name(format!(".{}.{what}-{}", name.to_string_lossy(), std::process::id())))
}

/// What a huge page holds.
const PIECE: usize = 2 << 20;

/// A file in the making.
pub(crate) struct PartialFile {
    file: File,
    /// Less than a piece, not yet written.
    pending: Vec<u8>,
    temporary: PathBuf,
    target: PathBuf,
    named: PathBuf,
    bytes: u64,
    whole: bool,
}

impl PartialFile {
    pub(crate) fn create(target: &Path) -> Result<Self, LoadError> {
        Self::create_as(target, target)
    }

    /// The same inside a [`PartialFolder`]; errors name the folder's target.
    fn create_as(target: &Path, named: &Path) -> Result<Self, LoadError> {
        let temporary = neighbour(target, "part")?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(|error| write_error(named, error))?;
        let pending = Vec::with_capacity(PIECE);
        let (target, named) = (target.to_owned(), named.to_owned());
        Ok(Self { file, pending, temporary, target, named, bytes: 0, whole: false })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        self.bytes += bytes.len() as u64;
        self.append(bytes).map_err(|error| write_error(&self.named, error))
    }

    fn append(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        if !self.pending.is_empty() {
            let (first, rest) = bytes.split_at(bytes.len().min(PIECE - self.pending.len()));
            self.pending.extend_from_slice(first);
            bytes = rest;
            if self.pending.len() < PIECE {
                return Ok(());
            }
            self.file.write_all(&self.pending)?;
            self.pending.clear();
        }
        let (pieces, rest) = bytes.split_at(bytes.len() / PIECE * PIECE);
        self.file.write_all(pieces)?;
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What errors name.
    pub(crate) fn named(&self) -> &Path {
        &self.named
    }

    /// Makes the file appear. Returns its length.
    pub(crate) fn finish(mut self) -> Result<u64, LoadError> {
        let done = self.file.write_all(&self.pending).and_then(|()| self.file.sync_all());
        let done = done.and_then(|()| std::fs::rename(&self.temporary, &self.target));
        done.map_err(|error| write_error(&self.named, error))?;
        self.whole = true;
        Ok(self.bytes)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// A folder in the making: files are written into a temporary one.
pub(crate) struct PartialFolder {
    temporary: PathBuf,
    target: PathBuf,
    whole: bool,
}

impl PartialFolder {
    pub(crate) fn create(target: &Path) -> Result<Self, LoadError> {
        let temporary = neighbour(target, "part")?;
        std::fs::create_dir(&temporary).map_err(|error| write_error(target, error))?;
        Ok(Self { temporary, target: target.to_owned(), whole: false })
    }

    /// A file in the folder, written piece by piece.
    pub(crate) fn file(&self, name: &str) -> Result<PartialFile, LoadError> {
        PartialFile::create_as(&self.temporary.join(name), &self.target)
    }

    /// A small file in the folder.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), LoadError> {
        std::fs::write(self.temporary.join(name), bytes).map_err(|error| write_error(&self.target, error))
    }

    /// Makes the folder appear, in the place of an older one where there is one.
    pub(crate) fn finish(mut self) -> Result<(), LoadError> {
        let old = neighbour(&self.target, "old")?;
        let io = |error| write_error(&self.target, error);
        let replaces = self.target.exists();
        if replaces {
            std::fs::rename(&self.target, &old).map_err(io)?;
        }
        std::fs::rename(&self.temporary, &self.target).map_err(io)?;
        self.whole = true;
        if replaces {
            std::fs::remove_dir_all(&old).map_err(io)?;
        }
        Ok(())
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_make_one_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let target = folder.path().join("file");
        let lens = [1, PIECE - 1, PIECE, 5, 3 * PIECE + 7, 0, PIECE - 12, 9];
        let mut expected = Vec::new();
        let mut out = PartialFile::create(&target).expect("created");
        for (i, len) in lens.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|at| (at / 3 + i) as u8).collect();
            out.write(&bytes).expect("written");
            expected.extend(bytes);
        }
        assert!(!target.exists());
        assert_eq!(out.finish().expect("written"), expected.len() as u64);
        assert!(std::fs::read(&target).expect("there") == expected);
    }
}
