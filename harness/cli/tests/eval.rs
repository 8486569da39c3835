//! `ternbench eval` as people and batch systems use it: killed at any moment, in shards, on a full disk, and compared.

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

const TASKS: &str =
    "piqa,gsm8k_zeroshot,datasets/tasks/examples/mmlu_style.toml,datasets/tasks/examples/arithmetic.toml";
const NAMES: [&str; 4] = ["piqa", "gsm8k_zeroshot", "mmlu_style", "arithmetic"];

/// A folder for results, with a tokenizer for synthetic weights: every byte is a token.
struct Setup {
    folder: TempDir,
    tokenizer: PathBuf,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    common::write_byte_tokenizer(&tokenizer);
    Setup { folder, tokenizer }
}

impl Setup {
    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run of a small synthetic model into the folder `out`.
    fn eval(&self, out: &str, extra: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
        command.current_dir(common::root());
        command.args(["eval", "-m", "synthetic:bitnet-tiny", "-t", "2", "--task", TASKS, "--limit", "12"]);
        command.args(["--max-new-tokens", "24", "--tokenizer"]).arg(&self.tokenizer);
        command.arg("--out").arg(self.out(out)).args(extra);
        command.env_remove("TERNBENCH_DATA").env_remove("TERNBENCH_KERNEL").stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// The items of every task.
    fn items(&self, out: &str) -> Vec<String> {
        let read = |name: &&str| {
            let path = self.out(out).join(format!("items-{name}.jsonl"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        NAMES.iter().map(read).collect()
    }

    fn whole(&self, out: &str, extra: &[&str]) -> Vec<String> {
        assert!(self.eval(out, extra).status().unwrap().success());
        self.items(out)
    }
}

#[test]
fn batches_and_shards_give_the_same_bytes() {
    let setup = setup();
    let expected = setup.whole("whole", &[]);
    assert_eq!(expected.iter().map(|items| items.lines().count()).collect::<Vec<_>>(), [12, 12, 8, 8]);
    let variants: [(&str, &[&str]); 3] = [
        ("one", &["--batch", "1"]),
        ("eight", &["--batch", "8", "--pass-tokens", "50"]),
        ("tight", &["--kv-gb", "0.006"]),
    ];
    for (out, extra) in variants {
        assert!(setup.whole(out, extra) == expected, "{out}");
    }
    for count in [1, 3] {
        let out = format!("shards-{count}");
        for index in 1..=count {
            let shard = format!("{index}/{count}");
            assert!(setup.eval(&out, &["--shard", &shard]).status().unwrap().success());
        }
        let mut merge = Command::new(env!("CARGO_BIN_EXE_ternbench"));
        let output = merge.args(["eval", "merge"]).arg(setup.out(&out)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(setup.items(&out) == expected, "{count} shards");
        let records = |out: &str| {
            let text = std::fs::read_to_string(setup.out(out).join("records.jsonl")).unwrap();
            let one = |line| {
                let record: Value = serde_json::from_str(line).unwrap();
                ["task", "n", "n_total", "correct", "model_hash", "kernel"].map(|field| record[field].to_string())
            };
            let mut records: Vec<_> = text.lines().map(one).collect();
            records.sort();
            records
        };
        assert_eq!(records(&out), records("whole"));
    }
}

/// At 20 moments spread over runs, and in between the run goes on.
#[test]
fn killed_runs_go_on_and_end_the_same() {
    let setup = setup();
    let start = std::time::Instant::now();
    let expected = setup.whole("whole", &[]);
    let whole = start.elapsed();
    let mut seed = 7u64;
    let (mut kills, mut resumed) = (0, 0);
    let mut round = 0;
    while kills < 20 {
        let out = format!("round-{round}");
        let mut child = setup.eval(&out, &["--resume"]).spawn().unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(whole.mul_f64(0.6 * (seed >> 33) as f64 / f64::from(1u32 << 31)) + Duration::from_millis(1));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        let left = |name: &&str| setup.out(&out).join(format!("items-{name}.jsonl.part")).exists();
        resumed += usize::from(NAMES.iter().any(left));
        if NAMES.iter().all(|name| setup.out(&out).join(format!("items-{name}.jsonl")).exists()) {
            assert!(setup.items(&out) == expected, "{out}");
            round += 1;
        }
    }
    assert!(resumed > 0, "some kills must have hit a run at work");
    assert!(setup.whole(&format!("round-{round}"), &["--resume"]) == expected);
}

/// A file system without room, here as a limit on the size of files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line_and_no_loss() {
    let setup = setup();
    let expected = setup.whole("whole", &[]);
    let run = setup.eval("full", &[]);
    let mut shell = Command::new("bash");
    shell.current_dir(run.get_current_dir().unwrap());
    shell.args(["-c", "trap '' XFSZ; ulimit -f 3; exec \"$@\"", "bash"]).arg(run.get_program()).args(run.get_args());
    let output = shell.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.trim_end().lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("items-piqa.jsonl.part: cannot write results"), "{stderr}");
    assert!(setup.whole("full", &["--resume"]) == expected);
}

#[test]
fn runs_are_compared_item_by_item() {
    let setup = setup();
    let expected = setup.whole("a", &[]);
    setup.whole("b", &["-k", "scalar-i8-naive"]);
    let compare = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
        command.current_dir(common::root()).args(["eval", "compare"]);
        let output = command.arg(setup.out("a")).arg(setup.out("b")).args(extra).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // Another exact kernel, the same answers.
    let same: Value = serde_json::from_str(&compare(&["--task", "piqa", "-o", "json"]).0).unwrap();
    assert_eq!((&same["n"], &same["n_not_identical"], &same["differing"]), (&json!(12), &json!(0), &json!([])));
    // Turn the verdict of item 2 in B.
    let turned: Vec<String> = expected[0]
        .lines()
        .map(|line| {
            let item: Value = serde_json::from_str(line).unwrap();
            let acc = item["acc"].as_u64().unwrap();
            if item["index"] == 2 {
                line.replace(&format!("\"acc\":{acc}"), &format!("\"acc\":{}", 1 - acc))
            } else {
                line.to_owned()
            }
        })
        .collect();
    std::fs::write(setup.out("b").join("items-piqa.jsonl"), turned.join("\n") + "\n").unwrap();
    let page = setup.out("page.html");
    let (text, _) = compare(&["--task", "piqa", "--html", page.to_str().unwrap()]);
    assert!(text.contains("McNemar p 1.0000") && text.contains("\n#2\nQuestion: "), "{text}");
    assert!(text.contains("gap of the right one") && text.contains("1 of 12 items differ in a verdict"), "{text}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("\"runs\":[") && page.starts_with("<!doctype html>"));
    let (_, stderr) = compare(&[]);
    assert!(stderr.contains("several tasks: say which with --task"), "{stderr}");
}
