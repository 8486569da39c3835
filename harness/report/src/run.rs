//! A finished run, read back: its folder's records and host, or a lone file of records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ternbench_measure::record::Body;
use ternbench_measure::run_dir::{RECORDS, read_host};
use ternbench_measure::{Host, Record, RecordFile};

use crate::pairing::Pairing;

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
    /// The items files that are there, by the index of their accuracy record.
    pub items: BTreeMap<usize, PathBuf>,
    /// Scores of one task, paired by items; empty where nobody did.
    pub pairings: Vec<Pairing>,
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
        Ok(Self { damaged, ..Self::new(folder.clone(), records, read_host(&folder)) })
    }

    /// A run of these records, with the items files that lie where they say, as seen from here or from the run's folder.
    pub fn new(folder: PathBuf, records: Vec<Record>, host: Option<Host>) -> Self {
        let items = records.iter().enumerate().filter_map(|(index, record)| match &record.body {
            Body::Accuracy(accuracy) => Some((index, items_file(&folder, &accuracy.items_file)?)),
            _ => None,
        });
        Self { items: items.collect(), folder, records, host, ..Self::default() }
    }

    /// Several runs as one, in the folder and with the host of the first. Comparisons never pair samples of different runs.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read_all(paths: &[PathBuf]) -> Result<Self, RunError> {
        let mut runs = paths.iter().map(|path| Self::read(path)).collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut all = runs.next().unwrap_or_default();
        for run in runs {
            let before = all.records.len();
            all.items.extend(run.items.into_iter().map(|(index, path)| (before + index, path)));
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

/// Where an items file is: beside the records, in a folder beside them, or where its record says. A run may have been moved.
fn items_file(folder: &Path, recorded: &str) -> Option<PathBuf> {
    let recorded = Path::new(recorded);
    let name = recorded.file_name()?;
    let parent = recorded.parent().and_then(Path::file_name).unwrap_or_default();
    let places = [folder.join(parent).join(name), folder.join(name), recorded.to_owned()];
    places.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use ternbench_measure::record::Accuracy;

    use super::*;
    use crate::claims::test_records::records;

    #[test]
    fn items_are_found_beside_the_records_of_a_run_that_was_moved() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let of = |items_file: &str| Accuracy { items_file: items_file.into(), ..Accuracy::default() }.into();
        let here = folder.path().join("items-piqa.jsonl");
        std::fs::write(&here, "").expect("writes");
        std::fs::create_dir(folder.path().join("model")).expect("makes");
        let below = folder.path().join("model/items-piqa.jsonl");
        std::fs::write(&below, "").expect("writes");
        let made = records([
            of("/gone/run/items-piqa.jsonl"),
            of("/gone/model/items-piqa.jsonl"),
            of("x/items-a.jsonl"),
            of(""),
        ]);
        let run = Run::new(folder.path().to_owned(), made, None);
        assert_eq!(run.items, [(0, here), (1, below)].into());
    }
}
