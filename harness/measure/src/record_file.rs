//! Files of records: appended line by line, so that a run killed half-way leaves every record it finished.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::record::{Record, SCHEMA};

/// Why records could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordFileError {
    /// The system said no.
    #[error("{doing} {}: {}", path.display(), why(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record that JSON cannot hold.
    #[error("a record cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// One clear line for the errors that people meet.
pub(crate) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotFound => "no such file or folder".into(),
        _ => error.to_string(),
    }
}

/// Appends records to a file.
#[derive(Debug)]
pub struct RecordWriter {
    path: PathBuf,
    file: File,
}

impl RecordWriter {
    /// Opens a file for appending, and makes it if it is not there. Half a line at its end, left by a kill, is closed off.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, RecordFileError> {
        let io = |doing| move |source| RecordFileError::Io { doing, path: path.to_owned(), source };
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path).map_err(io("opening"))?;
        let length = file.metadata().map_err(io("opening"))?.len();
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(length - 1)).and_then(|_| file.read_exact(&mut last)).map_err(io("reading"))?;
            if last != *b"\n" {
                file.write_all(b"\n").map_err(io("writing"))?;
            }
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes to standard output, with the same care: where that is a file, a record that did not fit is taken back.
    ///
    /// # Errors
    /// When there is no standard output.
    pub fn stdout() -> Result<Self, RecordFileError> {
        let path = PathBuf::from("standard output");
        match stdout_file() {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(RecordFileError::Io { doing: "opening", path, source }),
        }
    }

    /// Appends one record in one write and hands it to the system. A record that did not fit on the disk is taken back.
    ///
    /// # Errors
    /// When it cannot be written, the disk being full above all.
    pub fn append(&mut self, record: &Record) -> Result<(), RecordFileError> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let io = |source| RecordFileError::Io { doing: "writing", path: self.path.clone(), source };
        // A device such as /dev/full has no length to go back to.
        let before = self.file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
        let result = self.file.write_all(&line).and_then(|()| self.file.flush());
        if let (Err(_), Some(length)) = (&result, before) {
            // The first error is the one to report; if this fails too, readers skip the half line.
            let _ = self.file.set_len(length);
        }
        result.map_err(io)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Standard output without Rust's line buffer, which would write half a record and forget it.
#[cfg(unix)]
fn stdout_file() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn stdout_file() -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    Ok(io::stdout().as_handle().try_clone_to_owned()?.into())
}

/// A line that is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {reason}", file.display())]
pub struct Damaged {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What a file of records held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordFile {
    /// The records that can be read.
    pub records: Vec<Record>,
    /// The lines that cannot.
    pub damaged: Vec<Damaged>,
}

impl RecordFile {
    /// Reads a file; damaged lines are listed, not fatal.
    ///
    /// # Errors
    /// When the file itself cannot be read.
    pub fn read(path: &Path) -> Result<Self, RecordFileError> {
        let io = |source| RecordFileError::Io { doing: "reading", path: path.to_owned(), source };
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        let mut result = Self::default();
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes).map_err(io)? == 0 {
                break;
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match parse(&bytes) {
                Ok(record) => result.records.push(record),
                Err(reason) => result.damaged.push(Damaged { file: path.to_owned(), line, reason }),
            }
        }
        Ok(result)
    }
}

/// Reads one line.
fn parse(line: &[u8]) -> Result<Record, String> {
    let newer = |schema: u32| format!("schema {schema} is newer than this ternbench, which reads up to {SCHEMA}");
    #[derive(serde::Deserialize)]
    struct Version {
        schema: Option<u32>,
    }
    let version: Version = serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof => "cut off before the end of the record".to_owned(),
        _ => format!("not a record: {}", short(&error)),
    })?;
    match version.schema {
        None => return Err("not a record: it has no schema number".into()),
        Some(schema) if schema > SCHEMA => return Err(newer(schema)),
        Some(_) => {}
    }
    serde_json::from_slice(line).map_err(|error| format!("not a record of schema {SCHEMA}: {}", short(&error)))
}

/// serde_json's message without "at line 1 column 2": the line is another one here.
fn short(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::record::*;

    fn context() -> RunContext {
        let host = Host { host_id: "h".into(), cpu: "C".into(), arch: "x86_64".into(), ..Host::default() };
        RunContext::new("run", &host)
    }

    fn speed() -> Speed {
        Speed {
            model: Model { model: "synthetic:bitnet-2b4t".into(), weights: "ternary".into(), ..Model::default() },
            code: Code { kernel: "avx2-i2s-maddubs".into(), isa: "avx2".into(), exact: true },
            n_threads: 2,
            workload: "tg128".into(),
            n_gen: 128,
            group: "g".into(),
            samples: Samples {
                tokens: 128,
                ns: vec![8_000_000_000, 6_400_000_001],
                rounds: vec![0, 1],
                positions: vec![1, 0],
            },
            bytes_per_token: 1_178_000_000,
            macs_per_token: 2_412_000_000,
            limits: Limits { bandwidth_bytes_per_s: 28.25e9, macs_per_s: 1e12, ..Limits::default() },
            output_checksum: "abc".into(),
            ..Speed::default()
        }
    }

    #[test]
    fn every_kind_survives_the_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("records.jsonl");
        let bodies: Vec<Body> = vec![
            Probe { samples_ns: vec![2, 1], work_per_sample: 100, ..Probe::default() }.into(),
            Verify { shapes: vec![[1, 2, 3]], ok: true, ..Verify::default() }.into(),
            speed().into(),
            Speed {
                protocol: Some(Protocol { precision: Some(0.01), stopped: "narrow".into(), ..Protocol::default() }),
                opponent: Some(Opponent { program: "llama-bench".into(), ..Opponent::default() }),
                samples_joules: vec![1.5],
                head: Some(Head { head: "screened".into(), head_rescored_share: Some(0.5), head_whole_share: 0.25 }),
                kv: "f16".into(),
                drafts: Some(Drafts { drafted: 3, drafts_accepted: 2, draft_passes: 1 }),
                bytes_per_token_parts: [("kv".to_owned(), 7)].into(),
                ..speed()
            }
            .into(),
            Noise { first_ns: vec![1, 2], second_ns: vec![2, 1], ..Noise::default() }.into(),
            Load { trits: Some(TritCount { minus: 1, zero: 2, plus: 3, other: 0 }), ..Load::default() }.into(),
            Memory { peak_rss_bytes: u64::MAX, ..Memory::default() }.into(),
            Kernel { compute_ns: vec![1], ..Kernel::default() }.into(),
            Agreement { n_tokens: 5, ..Agreement::default() }.into(),
            Accuracy {
                correct: [("acc".to_owned(), 3)].into(),
                by_steps: [(1, [2, 3]), (10, [0, 1])].into(),
                nll_sum: Some(0.1 + 0.2),
                ..Accuracy::default()
            }
            .into(),
            Gate { model: Model { model: "m".into(), ..Model::default() }, ..Gate::default() }.into(),
            Claim { id: "less-memory".into(), ..Claim::default() }.into(),
        ];
        let context = context();
        let records: Vec<Record> = bodies.into_iter().map(|body| context.record(body)).collect();
        let mut writer = RecordWriter::open(&path).expect("opens");
        for record in &records {
            writer.append(record).expect("writes");
        }
        let read = RecordFile::read(&path).expect("reads");
        assert_eq!(read.damaged, []);
        assert_eq!(read.records, records);
    }

    /// A report without its records cannot be checked, nor one with records that cannot be read.
    #[test]
    fn the_committed_runs_can_be_read_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results/reference");
        let mut runs = 0;
        for run in std::fs::read_dir(folder).expect("committed runs") {
            let read = RecordFile::read(&run.expect("a folder").path().join("records.jsonl")).expect("reads");
            assert_eq!(read.damaged, []);
            runs += 1;
        }
        assert!(runs > 0);
    }

    #[test]
    fn a_speed_record_reads_like_llama_bench() {
        let json: serde_json::Value = serde_json::to_value(context().record(speed())).expect("serialises");
        assert_eq!(json["kind"], "speed");
        assert_eq!(json["model"], "synthetic:bitnet-2b4t");
        assert_eq!(json["kernel"], "avx2-i2s-maddubs");
        assert_eq!(json["n_threads"], 2);
        assert_eq!(json["workload"], "tg128");
        assert_eq!(json["samples_tokens_per_s"][0], 16.0);
        assert_eq!(json["schema"], 1);
    }

    #[test]
    fn damaged_lines_are_named_and_the_rest_is_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("records.jsonl");
        let good = serde_json::to_string(&context().record(speed())).expect("serialises");
        let half = &good[..good.len() / 2];
        let dream = good.replace(r#""speed""#, r#""dream""#);
        let lines = ["", "[1]", "{}", r#"{"schema":2,"kind":"dream"}"#, &dream, "\u{1}"].join("\n");
        std::fs::write(&path, format!("{good}\n{lines}\n{good}\n{half}")).expect("writes");
        let read = RecordFile::read(&path).expect("reads");
        assert_eq!(read.records.len(), 2);
        let found: Vec<(usize, &str)> = read.damaged.iter().map(|d| (d.line, d.reason.as_str())).collect();
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 9]);
        assert_eq!(found[1].1, "not a record: it has no schema number");
        assert_eq!(found[2].1, "schema 2 is newer than this ternbench, which reads up to 1");
        assert!(found[3].1.contains("unknown variant `dream`"), "{found:?}");
        assert_eq!(found[5].1, "cut off before the end of the record");
        assert!(read.damaged[5].to_string().ends_with("records.jsonl:9: cut off before the end of the record"));

        // A writer that comes back after a kill does not glue its record to the half line.
        RecordWriter::open(&path).and_then(|mut writer| writer.append(&context().record(speed()))).expect("appends");
        let again = RecordFile::read(&path).expect("reads");
        assert_eq!((again.records.len(), again.damaged.len()), (3, 6));
    }

    #[test]
    fn random_damage_never_panics_and_never_costs_a_whole_line_more() {
        let good = serde_json::to_vec(&context().record(speed())).expect("serialises");
        let mut rng = crate::rng::Rng::new(7);
        for _ in 0..2000 {
            let mut bytes = good.clone();
            let at = rng.below(bytes.len());
            bytes[at] = rng.below(256) as u8;
            let _ = parse(&bytes);
            let _ = parse(&good[..rng.below(good.len())]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_one_clear_line() {
        let error =
            RecordWriter::open(Path::new("/dev/full")).and_then(|mut writer| writer.append(&context().record(speed())));
        assert_eq!(error.expect_err("full").to_string(), "writing /dev/full: the disk is full");
    }

    #[test]
    fn an_impossible_speed_is_refused_with_its_reason() {
        let mut slow = speed();
        slow.check_limits();
        assert_eq!(slow.refused, None);
        let mut fast = speed();
        fast.samples.ns = vec![128 * 1_000_000_000 / 162];
        fast.check_limits();
        assert!(fast.refused.expect("refused").starts_with("impossible: 162.0 tok/s needs 190.8 GB/s"));
    }
}
