//! A finished run, read back: its folder's records and host, or a lone file of records.

use std::path::{Path, PathBuf};

use ternbench_measure::run_dir::{RECORDS, read_host};
use ternbench_measure::{Host, Record, RecordFile};

/// What a run left behind.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The folder: where reports go.
    pub folder: PathBuf,
    /// The records that can be read.
    pub records: Vec<Record>,
    /// The machine, where `host.json` says.
    pub host: Option<Host>,
    /// One line for each record that cannot be read.
    pub damaged: Vec<String>,
}

/// Why a run could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file could not.
    #[error("{0}; give the folder of a run, or its records.jsonl")]
    File(#[from] ternbench_measure::record_file::RecordFileError),
    /// There is nothing to report.
    #[error("{} holds no record{why}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The first damaged line, if that is the reason.
        why: String,
    },
}

impl Run {
    /// Reads a run from its folder or from its file of records.
    ///
    /// # Errors
    /// When the file cannot be read or holds no record.
    pub fn read(path: &Path) -> Result<Self, RunError> {
        let file = if path.is_dir() { path.join(RECORDS) } else { path.to_owned() };
        let RecordFile { records, damaged } = RecordFile::read(&file)?;
        let damaged: Vec<String> = damaged.iter().map(ToString::to_string).collect();
        if records.is_empty() {
            let why = damaged.first().map_or(String::new(), |line| format!(" that can be read ({line})"));
            return Err(RunError::Empty { path: file, why });
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Ok(Self { host: read_host(&folder), folder, records, damaged })
    }

    /// Several runs as one, in the folder and with the host of the first. Comparisons never pair samples of different runs.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read_all(paths: &[PathBuf]) -> Result<Self, RunError> {
        let mut runs = paths.iter().map(|path| Self::read(path)).collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut all = runs.next().unwrap_or_default();
        for run in runs {
            all.records.extend(run.records);
            all.damaged.extend(run.damaged);
        }
        Ok(all)
    }

    /// The machine on one line.
    pub fn machine(&self) -> String {
        let cpu = || self.records.first().map_or(String::new(), |record| record.cpu.clone());
        self.host.as_ref().map_or_else(cpu, Host::summary)
    }
}
