//! The one error of an evaluation. Every message is one line: what, where, and what to do.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an evaluation could not start or go on.
#[derive(Debug, Error)]
pub enum EvalError {
    /// A data or task file could not be opened or read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A data file that is not there.
    #[error(
        "{}: not found; fetch the data with scripts/fetch-data, or say where it is with --data DIR or TERNBENCH_DATA",
        path.display()
    )]
    NoData {
        /// The file.
        path: PathBuf,
    },
    /// A data file as a whole is not what it should be.
    #[error("{}: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// One line of a data file is not what it should be.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A task definition is wrong, or does not fit its data.
    #[error("task {task}: {reason}")]
    Task {
        /// The task's name, or the file it was read from.
        task: String,
        /// What is wrong.
        reason: String,
    },
    /// An item cannot be evaluated.
    #[error("task {task}, item {index}: {reason}")]
    Item {
        /// The task's name.
        task: String,
        /// The item, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// The model or its tokenizer failed, or gave what no model should.
    #[error("model: {0}")]
    Model(String),
    /// Results could not be written.
    #[error("{}: cannot write results: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The generator has not so many different items.
    #[error("{n} different {what} were asked for, the templates give about {found}: ask for fewer")]
    Exhausted {
        /// The kind of item.
        what: &'static str,
        /// How many were asked for.
        n: usize,
        /// How many were found.
        found: usize,
    },
    /// The output folder already holds results of this task.
    #[error("{}: there already; results are never overwritten: go on with --resume, or choose another --out", path.display())]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
}

impl EvalError {
    pub(crate) fn data(path: &Path, reason: impl ToString) -> Self {
        Self::Data { path: path.to_owned(), reason: one_line(reason) }
    }

    pub(crate) fn line(path: &Path, line: usize, reason: impl ToString) -> Self {
        Self::Line { path: path.to_owned(), line, reason: one_line(reason) }
    }

    /// What a model or tokenizer said.
    pub fn model(reason: impl ToString) -> Self {
        Self::Model(one_line(reason))
    }

    pub(crate) fn task(task: &str, reason: impl ToString) -> Self {
        Self::Task { task: task.to_owned(), reason: one_line(reason) }
    }

    /// Says which item failed; errors that already name a place of their own stay as they are.
    pub(crate) fn at(self, task: &str, index: usize) -> Self {
        let reason = match self {
            Self::Model(_) => self.to_string(),
            Self::Task { reason, .. } => reason,
            other => return other,
        };
        Self::Item { task: task.to_owned(), index, reason }
    }
}

/// Messages of parsers span lines; ours do not.
fn one_line(text: impl ToString) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
