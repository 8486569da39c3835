//! The folder of one run: `results/runs/<date>-<host>-<slug>/` with `records.jsonl`, `host.json` and what reports add.
//! A run never writes into the folder of another.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::host::{Host, slug};
use crate::record_file::{RecordFileError, RecordWriter, why};

/// Name of the file of records.
pub const RECORDS: &str = "records.jsonl";
/// Name of the machine's description.
pub const HOST: &str = "host.json";

/// Why a run's folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The system said no.
    #[error("{doing} {}: {}", path.display(), why(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A description that JSON cannot hold.
    #[error("host.json cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordFileError),
}

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    run_id: String,
}

impl RunDir {
    /// Makes `<root>/<date>-<hostname>-<slug>`, or with `-2`, `-3` … at its end where that is there already, and writes
    /// `host.json` into it. `date` is `2026-01-31`: see [`crate::clock::today`].
    ///
    /// # Errors
    /// When the folder cannot be made or written to.
    pub fn create(root: &Path, date: &str, name: &str, host: &Host) -> Result<Self, RunDirError> {
        let io = |path: &Path, source| RunDirError::Io { doing: "making", path: path.to_owned(), source };
        std::fs::create_dir_all(root).map_err(|source| io(root, source))?;
        let base = format!("{date}-{}-{}", slug(&host.hostname), slug(name));
        let mut run_id = base.clone();
        for number in 2.. {
            let path = root.join(&run_id);
            // Making the last folder on its own fails if it is there, even when two runs start at once.
            match std::fs::create_dir(&path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => run_id = format!("{base}-{number}"),
                Err(error) => return Err(io(&path, error)),
            }
        }
        let run = Self { path: root.join(&run_id), run_id };
        run.write(HOST, format!("{}\n", serde_json::to_string_pretty(host)?).as_bytes())?;
        Ok(run)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's name.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// A writer of the run's records.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn records(&self) -> Result<RecordWriter, RunDirError> {
        Ok(RecordWriter::open(&self.path.join(RECORDS))?)
    }

    /// Writes a file of the run whole or not at all: into a file beside it, which then takes its name.
    ///
    /// # Errors
    /// When it cannot be written; an older file of that name is then as it was.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, RunDirError> {
        let path = self.path.join(name);
        write_atomic(&path, contents)?;
        Ok(path)
    }
}

/// Writes a file whole or not at all. What is there and no plain file, a device, a pipe, is written to.
///
/// # Errors
/// When it cannot be written.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<(), RunDirError> {
    let io = |source| RunDirError::Io { doing: "writing", path: path.to_owned(), source };
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut to| to.write_all(contents))
            .map_err(io);
    }
    // A link stays one.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let result = std::fs::File::create(&beside)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    if result.is_err() {
        // Nothing to add to the first error.
        let _ = std::fs::remove_file(&beside);
    }
    result.map_err(io)
}

/// Reads the `host.json` of a run's folder; `None` where there is none that can be read.
pub fn read_host(folder: &Path) -> Option<Host> {
    serde_json::from_str(&std::fs::read_to_string(folder.join(HOST)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_never_takes_the_folder_of_another() {
        let root = tempfile::tempdir().expect("temporary folder");
        let host = Host { hostname: "Box.local".into(), ..Host::default() };
        let runs: Vec<RunDir> = (0..3)
            .map(|_| RunDir::create(&root.path().join("runs"), "2026-01-31", "Claims quick", &host).expect("makes"))
            .collect();
        let names: Vec<&str> = runs.iter().map(RunDir::run_id).collect();
        assert_eq!(
            names,
            [
                "2026-01-31-box-local-claims-quick",
                "2026-01-31-box-local-claims-quick-2",
                "2026-01-31-box-local-claims-quick-3"
            ]
        );
        assert_eq!(read_host(runs[2].path()), Some(host));
        assert!(runs[0].records().expect("opens").path().ends_with("records.jsonl"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let root = tempfile::tempdir().expect("temporary folder");
        let run = RunDir::create(root.path(), "2026-01-31", "x", &Host::default()).expect("makes");
        run.write("report.md", b"one").expect("writes");
        let path = run.write("report.md", b"two").expect("writes");
        assert_eq!(std::fs::read(path).expect("reads"), b"two");
        assert_eq!(std::fs::read_dir(run.path()).expect("reads").count(), 2);
        let error = run.write("no/such/folder", b"x").expect_err("no folder").to_string();
        assert!(error.ends_with("no such file or folder"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn links_stay_links_and_devices_devices() {
        let root = tempfile::tempdir().expect("temporary folder");
        let (file, link) = (root.path().join("file"), root.path().join("link"));
        std::fs::write(&file, "old").expect("writes");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        write_atomic(&link, b"new").expect("writes");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).expect("reads"), b"new");
        // A link to the device, so that a mistake replaces no more than the link.
        let full = root.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &full).expect("links");
        assert!(write_atomic(&full, b"x").is_err(), "the disk is full");
        assert!(full.is_symlink() && !std::fs::metadata("/dev/full").expect("there").is_file());
    }

    #[test]
    fn a_root_that_is_a_file_is_one_clear_line() {
        let root = tempfile::NamedTempFile::new().expect("temporary file");
        let error = RunDir::create(root.path(), "2026-01-31", "x", &Host::default()).expect_err("a file").to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
