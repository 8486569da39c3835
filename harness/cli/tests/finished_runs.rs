//! The commands over finished runs, on the frozen records of the report crate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    // The frozen run holds a refused record on purpose, so it fails even against itself; a regression adds to that.
    let check = |run: &str, baseline: &str, tolerance: &str| {
        let output = ternbench(&["check", run, "--baseline", baseline, "--tolerance", tolerance]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").matches("% slower").count()
    };
    assert_eq!(check(run, run, "5"), 0);
    assert_eq!(check(slow, run, "5"), changed.lines().count() - 1);
    assert_eq!(check(slow, run, "30"), 0);
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
