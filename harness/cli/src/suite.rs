//! Suites, `datasets/suites/NAME.toml`: what `speed` measures, as data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::open;
use crate::workload::Workload;

/// A suite. What it leaves out is as when `speed` gets no flag for it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// What it is for, in a line.
    pub title: String,
    /// MODELs as on the command line.
    pub models: Vec<String>,
    /// Kernels; `all` means every one that runs here.
    #[serde(default)]
    pub kernels: Vec<String>,
    /// Numbers of threads.
    #[serde(default)]
    pub threads: Vec<usize>,
    /// Workloads: `pp512`, `tg128`, `tg128@d512`.
    #[serde(default)]
    pub workloads: Vec<String>,
    /// Rounds.
    pub repetitions: Option<u32>,
    /// See `--precision`.
    pub precision: Option<f64>,
}

/// The folder of suites.
pub fn folder() -> PathBuf {
    open::datasets().join("suites")
}

/// The names of all suites, sorted.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).into_iter().flatten().flatten();
    let toml = |path: PathBuf| (path.extension()? == "toml").then(|| path.file_stem()?.to_str().map(str::to_owned))?;
    let mut names: Vec<String> = entries.filter_map(|entry| toml(entry.path())).collect();
    names.sort();
    names
}

/// The suite of this name, or in this file.
pub fn find(name: &str) -> Result<Suite> {
    let path = if name.ends_with(".toml") { PathBuf::from(name) } else { folder().join(format!("{name}.toml")) };
    if !path.is_file() {
        bail!("no suite is called '{name}'; there are: {}, or name a .toml file", names().join(", "));
    }
    read(&path)
}

fn read(path: &Path) -> Result<Suite> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let suite: Suite = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        anyhow::anyhow!("{}: line {line}: {}", path.display(), error.message())
    })?;
    if suite.models.is_empty() {
        bail!("{}: a suite needs at least one model", path.display());
    }
    let threads = suite.threads.iter().try_for_each(|&n| open::check_threads(n));
    let workloads = suite.workloads.iter().try_for_each(|name| name.parse::<Workload>().map(drop));
    threads.and(workloads).with_context(|| path.display().to_string())?;
    Ok(suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_can_be_read_and_names_models_that_exist() {
        let names = names();
        assert!(names.iter().any(|name| name == "quick"), "{names:?}");
        for name in names {
            let suite = find(&name).expect("a suite");
            for model in &suite.models {
                open::source(model, Default::default()).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            }
        }
    }

    #[test]
    fn mistakes_name_the_file_and_the_line() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("s.toml");
        for (text, word) in [
            ("title = \"x\"\nmodels = []", "at least one model"),
            ("title = \"x\"\nmodels = [\"m\"]\nkernel = []", "line 3"),
            ("title", "line 1"),
            ("title = \"x\"\nmodels = [\"m\"]\nthreads = [1, 0]", "0 threads"),
            ("title = \"x\"\nmodels = [\"m\"]\nworkloads = [\"tg1@dx\"]", "tg1@dx"),
        ] {
            std::fs::write(&path, text).expect("writes");
            let error = format!("{:#}", find(&path.display().to_string()).expect_err(text));
            assert!(error.contains("s.toml") && error.contains(word), "{error}");
        }
        assert!(find("no-such").expect_err("none").to_string().contains("quick"));
    }
}
