//! What tests that need files from outside the repository share.

use std::io::Write;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

/// The workspace's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of golden vectors and data: TERNBENCH_SHARED, or `shared` beside the workspace. Without it the test is skipped.
pub fn shared(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TERNBENCH_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    present(test, "shared", folder.join("golden/refs")).then_some(folder)
}

/// Whether `path` is there. If not the test is skipped visibly, and fails where TERNBENCH_REQUIRE lists `what`.
pub fn present(test: &str, what: &str, path: PathBuf) -> bool {
    if path.exists() {
        return true;
    }
    let required = std::env::var("TERNBENCH_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|required| required.trim() == what),
        "TERNBENCH_REQUIRE has '{what}', but {} is not there",
        path.display()
    );
    // Not eprintln!, which the test harness would swallow.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {} is not there", path.display());
    false
}

/// The lines of a JSONL file.
pub fn read_lines<T: DeserializeOwned>(path: PathBuf) -> Vec<T> {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
