//! Which commit of ternbench ran: asked of git at run time, so that an incremental build cannot record an old answer.

use std::path::Path;
use std::process::{Command, Stdio};

/// A commit, and whether the work tree had changes on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitState {
    /// The full hash, or `unknown` outside a checkout of ternbench.
    pub commit: String,
    /// Whether tracked files were changed.
    pub dirty: bool,
}

/// The commit of the checkout of ternbench that holds the current directory or the executable.
pub fn state() -> GitState {
    let here = std::env::current_dir().ok();
    let exe = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    here.into_iter()
        .chain(exe)
        .find_map(|folder| state_of(&folder))
        .unwrap_or(GitState { commit: "unknown".into(), dirty: false })
}

/// The commit of the checkout that holds `folder`, if it is one of ternbench and not of some other project.
fn state_of(folder: &Path) -> Option<GitState> {
    let top = git(folder, &["rev-parse", "--show-toplevel"])?;
    if !Path::new(&top).join("harness/measure/Cargo.toml").is_file() {
        return None;
    }
    let commit = git(folder, &["rev-parse", "--verify", "HEAD"])?;
    let dirty = git(folder, &["status", "--porcelain", "--untracked-files=no"]).is_none_or(|out| !out.is_empty());
    Some(GitState { commit, dirty })
}

fn git(folder: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_checkout_of_ternbench_there_is_no_commit() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(state_of(folder.path()), None);
        let state = state();
        assert!(state.commit == "unknown" || state.commit.len() >= 40, "{state:?}");
    }
}
