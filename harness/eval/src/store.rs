//! Items on disk: nothing finished is ever lost, and the finished file is the same bytes however it came about.
//!
//! While a run goes on, each line is appended to `items-TASK.jsonl.part` as soon as its item is finished, in the order of
//! finishing. At the end all lines, sorted by index, become `items-TASK.jsonl` in one rename. A run that is resumed reads the
//! part file, drops a line that was cut off, and does the rest. A shard's file is `items-TASK.shard-I-of-N.jsonl`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::EvalError;
use crate::items::Line;

/// The share of the items that a process does: every `count`-th, from item `index - 1` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    /// Reads `I/N`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(format!("'{text}' is no shard: 1/3, 2/3 and 3/3 are the shards of three")),
        }
    }

    /// Whether item `index` is in it.
    pub fn has(self, index: usize) -> bool {
        index % self.count == self.index - 1
    }

    /// What its files have in their names.
    pub fn suffix(self) -> String {
        format!(".shard-{}-of-{}", self.index, self.count)
    }
}

/// The file of a task's items in `folder`.
pub fn items_path(folder: &Path, task: &str, shard: Option<Shard>) -> PathBuf {
    folder.join(format!("items-{task}{}.jsonl", shard.map(Shard::suffix).unwrap_or_default()))
}

/// The lines of a finished file.
pub fn read(path: &Path) -> Result<Vec<Line>, EvalError> {
    let text = crate::dataset::read_text(path).map_err(|error| match error {
        EvalError::NoData { path } => EvalError::data(&path, "not found: is the run finished?"),
        other => other,
    })?;
    lines(path, &text)
}

fn lines(path: &Path, text: &str) -> Result<Vec<Line>, EvalError> {
    let line = |(i, line)| Line::parse(line).map_err(|reason| EvalError::line(path, i + 1, reason));
    text.lines().enumerate().map(line).collect()
}

/// The items of a run in the making.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    part: PathBuf,
    file: File,
    done: BTreeMap<usize, String>,
}

/// Where the items of `path` are until all are there.
fn part_of(path: &Path) -> PathBuf {
    path.with_extension("jsonl.part")
}

impl Store {
    /// Results that are there already are in the way, unless `resume`.
    pub(crate) fn check(path: &Path, resume: bool) -> Result<(), EvalError> {
        match [path, &part_of(path)].into_iter().find(|path| !resume && path.exists()) {
            Some(existing) => Err(EvalError::OutputExists { path: existing.to_owned() }),
            None => Ok(()),
        }
    }

    /// Starts the file `path`, and its folder; or goes on with what an earlier run left, if `resume`. Without it, results that
    /// are there already are never touched.
    pub fn open(path: PathBuf, resume: bool) -> Result<Self, EvalError> {
        let part = part_of(&path);
        let output = |path: &Path| {
            let path = path.to_owned();
            move |source| EvalError::Output { path, source }
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(output(folder))?;
        }
        Self::check(&path, resume)?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(&part).map_err(output(&part))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(EvalError::data(&part, "another process is writing it")),
            Err(TryLockError::Error(source)) => return Err(EvalError::Output { path: part, source }),
        }
        let mut store = Self { path, part, file, done: BTreeMap::new() };
        if store.path.exists() {
            // Finished before, perhaps of fewer items.
            for line in read(&store.path)? {
                store.done.insert(line.index, line.raw);
            }
        }
        store.read_part()?;
        Ok(store)
    }

    /// Reads what an earlier run left, and cuts off a line that it did not finish.
    fn read_part(&mut self) -> Result<(), EvalError> {
        let output = |source| EvalError::Output { path: self.part.clone(), source };
        let bytes = std::fs::read(&self.part).map_err(output)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            self.file.set_len(whole as u64).map_err(output)?;
            self.file.seek(SeekFrom::End(0)).map_err(output)?;
        }
        let text = String::from_utf8(bytes[..whole].to_vec())
            .map_err(|_| EvalError::data(&self.part, "not UTF-8: it is damaged; remove it and start again"))?;
        for line in lines(&self.part, &text)? {
            self.done.insert(line.index, line.raw);
        }
        Ok(())
    }

    /// What is on disk, by index.
    pub fn done(&self) -> &BTreeMap<usize, String> {
        &self.done
    }

    /// Where the finished file is going to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one item. It is with the operating system when this returns: killing the process cannot lose it.
    pub fn write(&mut self, index: usize, item: &impl Serialize) -> Result<Line, EvalError> {
        let output = |source| EvalError::Output { path: self.part.clone(), source };
        let raw = serde_json::to_string(item).map_err(|error| output(error.into()))?;
        self.file.write_all(format!("{raw}\n").as_bytes()).map_err(output)?;
        let line = Line::parse(&raw).map_err(|reason| EvalError::data(&self.part, reason))?;
        self.done.insert(index, raw);
        Ok(line)
    }

    /// Makes the finished file. All at once: whoever sees it sees all of it.
    pub fn finish(self) -> Result<(), EvalError> {
        write_sorted(&self.path, self.done.values())?;
        std::fs::remove_file(&self.part).map_err(|source| EvalError::Output { path: self.part, source })
    }
}

/// Writes lines to `path` by way of a temporary file and a rename.
pub(crate) fn write_sorted<'l>(path: &Path, lines: impl Iterator<Item = &'l String>) -> Result<(), EvalError> {
    let output = |source| EvalError::Output { path: path.to_owned(), source };
    let temporary = path.with_extension("jsonl.new");
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut file = File::create(&temporary).map_err(output)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(output)?;
    std::fs::rename(&temporary, path).map_err(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Item {
        index: usize,
        text: &'static str,
    }

    fn write(store: &mut Store, index: usize) {
        store.write(index, &Item { index, text: "a\nb" }).unwrap();
    }

    #[test]
    fn lines_are_on_disk_at_once_and_sorted_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = items_path(&folder.path().join("new/deep"), "t", None);
        let mut store = Store::open(path.clone(), false).unwrap();
        let part = path.with_extension("jsonl.part");
        write(&mut store, 2);
        write(&mut store, 0);
        let line = |i| format!("{{\"index\":{i},\"text\":\"a\\nb\"}}\n");
        assert_eq!(std::fs::read_to_string(&part).unwrap(), line(2) + &line(0));
        let error = Store::open(path.clone(), true).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        store.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(0) + &line(2));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = Store::open(path.clone(), false).unwrap_err().to_string();
        assert!(error.contains("items-t.jsonl: there already") && error.contains("--resume"), "{error}");
        // A finished file can be gone on with.
        let mut store = Store::open(path.clone(), true).unwrap();
        assert_eq!(store.done().keys().collect::<Vec<_>>(), [&0, &2]);
        write(&mut store, 1);
        store.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(0) + &line(1) + &line(2));
    }

    #[test]
    fn a_line_that_was_cut_off_is_dropped_wherever_the_cut_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = items_path(folder.path(), "t", Some(Shard { index: 1, count: 2 }));
        let part = path.with_extension("jsonl.part");
        let mut store = Store::open(path.clone(), false).unwrap();
        write(&mut store, 0);
        write(&mut store, 2);
        drop(store);
        let whole = std::fs::read(&part).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&part, &whole[..cut]).unwrap();
            let mut store = Store::open(path.clone(), true).unwrap();
            let expected = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(store.done().len(), expected, "cut at {cut}");
            (expected..2).for_each(|i| write(&mut store, 2 * i));
            assert_eq!(std::fs::read(&part).unwrap(), whole, "cut at {cut}");
        }
        std::fs::write(&part, "{\"index\":0\n").unwrap();
        assert!(Store::open(path, true).unwrap_err().to_string().contains("jsonl.part:1:"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut store = Store { path: "full".into(), part: "full".into(), file, done: BTreeMap::new() };
        let error = store.write(0, &Item { index: 0, text: "" }).unwrap_err().to_string();
        assert!(error.starts_with("full: cannot write results: "), "{error}");
        assert!(store.done().is_empty());
    }

    #[test]
    fn shards_are_parsed_and_cover_everything_once() {
        let shard = Shard::parse("2/3").unwrap();
        assert_eq!((shard, shard.suffix().as_str()), (Shard { index: 2, count: 3 }, ".shard-2-of-3"));
        for bad in ["0/3", "4/3", "1", "a/b", "1/0", ""] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
        for i in 0..10 {
            assert_eq!((1..=3).filter(|&index| Shard { index, count: 3 }.has(i)).count(), 1);
        }
    }
}
