//! Every environment variable that ternbench reads, in one place.
//!
//! Flags on the command line win over these. `TERNBENCH_REQUIRE` is read by the kernels' tests alone.

use std::path::PathBuf;

/// Kernel to force: `TERNBENCH_KERNEL`.
pub const KERNEL: &str = "TERNBENCH_KERNEL";
/// Folder with the evaluation data: `TERNBENCH_DATA`.
pub const DATA: &str = "TERNBENCH_DATA";
/// Folder that runs are written under: `TERNBENCH_RESULTS`.
pub const RESULTS: &str = "TERNBENCH_RESULTS";
/// Number of threads: `TERNBENCH_THREADS`.
pub const THREADS: &str = "TERNBENCH_THREADS";
/// Folder for what can be made again (tuning tables, packed weights): `TERNBENCH_CACHE`; otherwise `ternbench` in the user's cache folder.
pub const CACHE: &str = "TERNBENCH_CACHE";
/// No colours when set to anything but nothing (<https://no-color.org>).
pub const NO_COLOR: &str = "NO_COLOR";
/// Terminal width, where the terminal cannot be asked.
pub const COLUMNS: &str = "COLUMNS";

/// A variable with a value that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    /// Not a number of threads.
    #[error("{THREADS}={0}: expected a number of threads, 1 or more")]
    Threads(String),
}

/// The environment, read once at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env {
    /// [`KERNEL`].
    pub kernel: Option<String>,
    /// [`DATA`].
    pub data: Option<PathBuf>,
    /// [`RESULTS`].
    pub results: Option<PathBuf>,
    /// [`THREADS`].
    pub threads: Option<usize>,
    /// [`CACHE`], or the user's cache folder where there is one.
    pub cache: Option<PathBuf>,
    /// [`NO_COLOR`].
    pub no_color: bool,
    /// [`COLUMNS`].
    pub columns: Option<u16>,
}

impl Env {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// When a variable has a value that makes no sense.
    pub fn read() -> Result<Self, EnvError> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads an environment given as a function; a variable set to nothing counts as not set.
    ///
    /// # Errors
    /// When a variable has a value that makes no sense.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, EnvError> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let threads = match get(THREADS) {
            None => None,
            Some(text) => match text.parse() {
                Ok(n) if n > 0 => Some(n),
                _ => return Err(EnvError::Threads(text)),
            },
        };
        Ok(Self {
            kernel: get(KERNEL),
            data: get(DATA).map(PathBuf::from),
            results: get(RESULTS).map(PathBuf::from),
            threads,
            cache: get(CACHE).map(PathBuf::from).or_else(|| {
                let home = || get("HOME").map(|home| PathBuf::from(home).join(".cache"));
                get("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).map(|folder| folder.join("ternbench"))
            }),
            no_color: get(NO_COLOR).is_some(),
            columns: get(COLUMNS).and_then(|text| text.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_nonsense_is_named() {
        let env = Env::from_lookup(|name| match name {
            KERNEL => Some("scalar-i8-naive".into()),
            THREADS => Some("2".into()),
            NO_COLOR => Some(String::new()),
            "HOME" => Some("/home/a".into()),
            _ => None,
        })
        .expect("valid");
        assert_eq!(env.cache, Some(PathBuf::from("/home/a/.cache/ternbench")));
        assert_eq!(env.kernel.as_deref(), Some("scalar-i8-naive"));
        assert_eq!(env.threads, Some(2));
        assert!(!env.no_color);
        let error = Env::from_lookup(|name| (name == THREADS).then(|| "many".into())).expect_err("nonsense");
        assert_eq!(error.to_string(), "TERNBENCH_THREADS=many: expected a number of threads, 1 or more");
    }
}
