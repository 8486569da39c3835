//! The commands over finished runs, on the frozen records of the report crate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn ternbench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ternbench")).args(args).output().expect("the program starts")
}

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../report/tests/data/records.jsonl")
}

fn stdout(args: &[&str]) -> String {
    let output = ternbench(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The frozen run with every sample of one kernel so many percent longer.
fn slower(kernel: &str, percent: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let text = std::fs::read_to_string(frozen()).expect("the frozen records");
    let lines = text.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("a record");
        if record["kernel"] == kernel {
            for key in ["samples_ns", "compute_ns"] {
                for ns in record[key].as_array_mut().into_iter().flatten() {
                    *ns = (ns.as_u64().expect("a time") * (100 + percent) / 100).into();
                }
            }
        }
        format!("{record}\n")
    });
    std::fs::write(folder.path().join("records.jsonl"), lines.collect::<String>()).expect("writes");
    folder
}

/// A run of the frozen records that pass, in a folder of its own.
fn only(keep: impl Fn(&serde_json::Value) -> bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let text = std::fs::read_to_string(frozen()).expect("the frozen records");
    let kept = |line: &&str| keep(&serde_json::from_str(line).expect("a record"));
    let lines: String = text.lines().filter(kept).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.path().join("records.jsonl"), lines).expect("writes");
    folder
}

#[test]
fn a_report_is_written_with_its_records() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (run, out) = (frozen(), folder.path().join("report"));
    let (run, out) = (run.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    let said = stdout(&["report", run, "--out", out, "--no-png"]);
    assert!(said.contains("report.html") && said.contains(" reproduced, "), "{said}");
    for name in ["report.md", "report.html", "records.jsonl", "speed.csv", "speed.parquet", "roofline.svg"] {
        assert!(Path::new(out).join(name).is_file(), "{name}");
    }
    assert!(!Path::new(out).join("roofline.png").exists());
    // The copy of the records says the same.
    assert_eq!(
        stdout(&["report", run, "--table", "claims", "-o", "csv"]),
        stdout(&["report", out, "--table", "claims", "-o", "csv"])
    );
    assert_eq!(ternbench(&["report", run, "--table", "claims", "--judge"]).status.code(), Some(3));
}

#[test]
fn tables_come_in_every_format() {
    let run = frozen();
    let run = run.to_str().expect("UTF-8");
    let json: serde_json::Value = serde_json::from_str(&stdout(&["cmp", run, "-o", "json"])).expect("JSON");
    let pairs = json.as_array().expect("an array");
    assert!(pairs.iter().all(|pair| pair["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0)), "{json}");
    let models = stdout(&["cmp", run, "--by", "model", "--base", "llama", "-o", "csv"]);
    assert!(models.lines().skip(1).all(|line| line.contains("Llama")) && models.lines().count() > 1, "{models}");
    let places = stdout(&["rank", run, "-o", "jsonl"]);
    let first: serde_json::Value = serde_json::from_str(places.lines().next().expect("a place")).expect("JSON");
    assert_eq!((&first["place"], &first["kernel"]), (&1.into(), &"avx512vnni-i2s-dpbusd".into()));
    assert!(stdout(&["report", run, "--table", "speed", "-o", "md"]).starts_with("| workload | model |"));
    assert!(ternbench(&["report", run, "--table", "samples", "-o", "parquet"]).stdout.starts_with(b"PAR1"));
}

#[test]
fn a_regression_is_found_and_fails_the_check() {
    let (run, slow) = (frozen(), slower("avx2-i2s-maddubs", 15));
    let (run, slow) = (run.to_str().expect("UTF-8"), slow.path().to_str().expect("UTF-8"));
    let changed = stdout(&["diff", run, slow, "--changed", "-o", "csv"]);
    assert!(changed.lines().count() > 2, "{changed}");
    assert!(
        changed.lines().skip(1).all(|line| line.contains("avx2-i2s-maddubs") && line.ends_with("slower")),
        "{changed}"
    );
    assert_eq!(stdout(&["diff", run, run, "--changed", "-o", "csv"]).lines().count(), 1, "nothing changed");
    // The frozen run holds a refused record: no worse than the baseline, which holds it too.
    let check = |run: &str, baseline: &str, tolerance: &str| {
        let output = ternbench(&["check", run, "--baseline", baseline, "--tolerance", tolerance]);
        let n_slower = String::from_utf8(output.stdout).expect("UTF-8").matches("% slower").count();
        (output.status.code(), n_slower)
    };
    assert_eq!(check(run, run, "5"), (Some(0), 0));
    assert_eq!(check(slow, run, "5"), (Some(1), changed.lines().count() - 1));
    assert_eq!(check(slow, run, "30"), (Some(0), 0));
    let counted = only(|record| record["refused"].is_null());
    let counted = counted.path().to_str().expect("UTF-8");
    assert_eq!(check(run, counted, "5"), (Some(1), 0), "refused, and the baseline has nothing of it");
}

#[test]
fn exit_codes_of_diff_and_check() {
    let (run, slow) = (only(|record| record["refused"].is_null()), slower("avx2-i2s-maddubs", 15));
    let (run, slow) = (run.path().to_str().expect("UTF-8"), slow.path().to_str().expect("UTF-8"));
    let code = |args: &[&str]| ternbench(args).status.code();
    assert_eq!(code(&["diff", run, slow]), Some(0), "a difference is no failure");
    assert_eq!(code(&["diff", run, "/nowhere"]), Some(1));
    assert_eq!(code(&["diff", run]), Some(2));
    assert_eq!(code(&["diff", run, slow, "--noise", "x"]), Some(2));
    assert_eq!(code(&["check", run, "--baseline", run]), Some(0));
    assert_eq!(code(&["check", slow, "--baseline", run]), Some(1));
    let mut unread = Command::new(env!("CARGO_BIN_EXE_ternbench"));
    unread.args(["check", slow, "--baseline", run]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut unread = unread.spawn().expect("the program starts");
    drop(unread.stdout.take());
    assert_eq!(unread.wait().expect("ends").code(), Some(1), "a reader that has gone changes nothing");
    assert_eq!(code(&["check", run, "--baseline", "/nowhere"]), Some(1));
    assert_eq!(code(&["check", run]), Some(2));
    assert_eq!(code(&["check", run, "--baseline", run, "--tolerance", "-5"]), Some(2));
    // Half of the contenders are gone: a problem, unless that is allowed.
    let part = only(|record| record["refused"].is_null() && record["n_threads"] != 1);
    let part = part.path().to_str().expect("UTF-8");
    assert_eq!(code(&["check", part, "--baseline", run]), Some(1));
    assert_eq!(code(&["check", part, "--baseline", run, "--allow-missing"]), Some(0));
}

#[test]
fn the_noise_floor_is_the_worst_of_either_run_or_said_to_be_missing() {
    let quiet = only(|record| record["kind"] != "noise");
    let (run, quiet) = (frozen(), quiet.path().to_str().expect("UTF-8").to_owned());
    let run = run.to_str().expect("UTF-8");
    for (before, after) in [(run, quiet.as_str()), (quiet.as_str(), run)] {
        assert!(stdout(&["diff", before, after]).contains("noise floor: 0.8 %, that of the worst A/A run"));
    }
    let said = stdout(&["diff", &quiet, &quiet]);
    assert!(said.contains("no noise floor was measured"), "{said}");
    assert!(stdout(&["cmp", &quiet]).contains("no noise floor was measured"));
    assert!(stdout(&["diff", run, &quiet, "--noise", "20"]).contains("20.0 %, as given"));
}

/// A run with three scores of 40 items: `a` has every item right that `b` has, and six more; `c` has no items file.
fn scored() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let text = std::fs::read_to_string(frozen()).expect("the frozen records");
    let mut record: serde_json::Value = text
        .lines()
        .find(|line| line.contains(r#""accuracy""#))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .expect("a score");
    let mut lines = String::new();
    for (model, right) in [("a", 30_u32), ("b", 24), ("c", 20)] {
        record["model"] = format!("{model}.gguf").into();
        record["n"] = 40.into();
        record["n_total"] = 40.into();
        record["correct"] = serde_json::json!({ "acc": right, "acc_norm": right, "acc_bytes": right });
        record["items_file"] = format!("/gone/{model}/items-piqa.jsonl").into();
        lines += &format!("{record}\n");
        let item = |index: u32| {
            let acc = u8::from(index < right);
            format!(
                r#"{{"task":"piqa","task_version":1,"index":{index},"prompt_sha256":"{index}","acc":{acc},"acc_norm":{acc},"acc_bytes":{acc}}}"#
            ) + "\n"
        };
        if model != "c" {
            std::fs::create_dir(folder.path().join(model)).expect("makes");
            let items: String = (0..40).map(item).collect();
            std::fs::write(folder.path().join(model).join("items-piqa.jsonl"), items).expect("writes");
        }
    }
    std::fs::write(folder.path().join("records.jsonl"), lines).expect("writes");
    folder
}

#[test]
fn scores_are_paired_by_items_where_both_runs_have_them() {
    let folder = scored();
    let run = folder.path().to_str().expect("UTF-8");
    let report = || {
        stdout(&["report", run, "--no-png"]);
        std::fs::read_to_string(folder.path().join("report.md")).expect("a report")
    };
    let markdown = report();
    // Six of 40 are 15 points; 2 / 2^6 = 0.03125.
    let row = markdown.lines().find(|line| line.starts_with("| piqa@1 | acc_norm |")).expect("a pair");
    assert!(row.contains("a.gguf q4_1") && row.contains("b.gguf q4_1") && row.contains("| 15.0 |"), "{row}");
    assert!(row.contains("| 40 | 6 | 0 | 0.0313 |") && row.contains(" to "), "{row}");
    let pairs = markdown.lines().filter(|line| line.starts_with("| piqa@1 | acc_norm |"));
    assert_eq!(pairs.count(), 1, "c has no items: {markdown}");
    // Items that do not give the score of their record pair with nothing.
    let items = folder.path().join("b/items-piqa.jsonl");
    let changed = std::fs::read_to_string(&items).expect("items").replacen(r#""acc":1"#, r#""acc":0"#, 1);
    std::fs::write(&items, changed).expect("writes");
    let markdown = report();
    assert!(
        markdown.contains("not paired: ") && markdown.contains("has 23 items right by acc, the record 24"),
        "{markdown}"
    );
}

#[test]
fn mistakes_are_one_line() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let empty = folder.path().join("records.jsonl");
    std::fs::write(&empty, "").expect("writes");
    let empty = empty.to_str().expect("UTF-8");
    for (args, word) in
        [(["report", "/nowhere/run"], "nowhere"), (["cmp", empty], "no record"), (["rank", empty], "no record")]
    {
        let output = ternbench(&args);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr.trim_end().lines().count() == 1 && stderr.contains(word), "{args:?}: {stderr}");
    }
}
