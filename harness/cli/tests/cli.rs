//! The program as other programs and careless people use it: stable output, one clear line for each mistake.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn ternbench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ternbench"))
        .args(args)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .expect("the program starts")
}

fn stdout(args: &[&str]) -> String {
    let output = ternbench(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).expect("JSON")
}

/// The single line of standard error, after checking the exit code.
fn complaint(args: &[&str]) -> String {
    let output = ternbench(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("ternbench: "), "{stderr}");
    stderr
}

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/bitnet-tiny128");
    folder.join(name).display().to_string()
}

fn write(folder: &tempfile::TempDir, name: &str, contents: &[u8]) -> String {
    let path: PathBuf = folder.path().join(name);
    std::fs::write(&path, contents).expect("a temporary file");
    path.display().to_string()
}

/// `| head`, and a full disk.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_no_panic() {
    let commands: [&[&str]; 4] = [
        &["kernels", "list"],
        &["completions", "bash"],
        &["model", "inspect", "-m", "synthetic:bitnet-tiny"],
        &["speed", "--list"],
    ];
    for args in commands {
        let run = |stdout: Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
            command.args(args).stdout(stdout).stderr(Stdio::piped()).spawn().expect("the program starts")
        };
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
        let output = run(full.into()).wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.trim_end().lines().count()), (Some(1), 1), "{args:?}: {stderr}");
        let mut child = run(Stdio::piped());
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{args:?}");
    }
}

/// Two models that differ, told to nobody: the exit code is all that is left to say so.
#[test]
fn a_reader_that_has_gone_changes_no_exit_code() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
    command.args(["model", "verify", "synthetic:bitnet-tiny", &fixture("i2_s.gguf")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ends").code(), Some(1));
}

#[test]
fn logits_are_the_same_bits_on_every_kernel_and_position() {
    let kernels = json(&["kernels", "list", "-o", "json"]);
    let supported = kernels.as_array().unwrap().iter().filter(|k| k["supported"] == true && k["exactness"] == "exact");
    let model = fixture("i2_s.gguf");
    let logits = |extra: &[&str]| {
        let mut args = vec!["model", "logits", "-m", &model, "--ids", "1,2,3", "-o", "json"];
        args.extend(extra);
        json(&args)["logits"].as_array().unwrap().clone()
    };
    let all = logits(&["--all-positions"]);
    assert_eq!((all.len(), all[0].as_array().unwrap().len()), (3, 512));
    assert_eq!(logits(&[]), all[2..]);
    for kernel in supported {
        assert_eq!(logits(&["--all-positions", "--kernel", kernel["name"].as_str().unwrap()]), all, "{kernel}");
    }
}

#[test]
fn kernels_are_listed_and_proved() {
    let kernels = json(&["kernels", "list", "-o", "json"]);
    let kernels = kernels.as_array().unwrap();
    assert_eq!(kernels.iter().filter(|k| k["default"] == true).count(), 1);
    for key in ["name", "isa", "layout", "bits_per_weight", "exactness", "source"] {
        assert!(kernels.iter().all(|k| !k[key].is_null()), "{key}");
    }
    let proofs = json(&["kernels", "verify", "--shapes", "bitnet-tiny", "-o", "json"]);
    let proofs = proofs.as_array().unwrap();
    assert_eq!(proofs.len(), kernels.len());
    assert!(proofs.iter().all(|p| p["ok"] == true || p["skipped"].is_string()), "{proofs:?}");
}

#[test]
fn speed_records_can_be_read_back() {
    let text = stdout(&[
        "speed",
        "-m",
        "synthetic:bitnet-tiny",
        "-m",
        "synthetic:llama-tiny",
        "-k",
        "scalar-i8-naive,auto",
        "-t",
        "1,2",
        "-p",
        "16",
        "-n",
        "8",
        "-r",
        "3",
        "--activations",
        "f32",
        "-o",
        "jsonl",
    ]);
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a record a line")).collect();
    // Two ternary and one dense contender, on two numbers of threads, in two workloads.
    assert_eq!(records.len(), 12);
    for record in &records {
        assert_eq!(record["kind"], "speed");
        assert_eq!(record["samples_tokens_per_s"].as_array().unwrap().len(), 3);
        assert!(record["model"].is_string() && record["kernel"].is_string() && record["model_hash"].is_string());
        assert!(["pp16", "tg8"].contains(&record["workload"].as_str().unwrap()));
        assert!([1, 2].contains(&record["n_threads"].as_i64().unwrap()));
    }
    let checksums = |model: &str, workload: &str| {
        let of = records.iter().filter(|r| r["model"] == model && r["workload"] == workload);
        of.map(|r| r["output_checksum"].to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(
        checksums("synthetic:bitnet-tiny", "tg8").len(),
        1,
        "every kernel and thread count makes the same tokens"
    );
}

#[test]
fn models_are_inspected() {
    let model = json(&["model", "inspect", "-m", "synthetic:bitnet-tiny", "-o", "json"]);
    assert_eq!(model["config"]["hidden"], 256);
    assert!((model["zero_share"].as_f64().unwrap() - 1.0 / 3.0).abs() < 0.01);
    assert!(stdout(&["model", "inspect", "-m", &fixture("packed-offline")]).contains("at 2.00 bits a weight"));
}

#[test]
fn every_mistake_gets_one_line_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("i2_s.gguf")).unwrap();
    let cut = write(&folder, "cut.gguf", &whole[..whole.len() / 2]);
    let empty = write(&folder, "empty.gguf", b"");
    let nothing = folder.path().join("no-data");
    let nothing = nothing.to_str().unwrap();
    let too_many = vec!["1"; 5000].join(",");
    let cases: [(&[&str], &[&str]); 17] = [
        (&["model", "inspect", "-m", "nowhere.gguf"], &["nowhere.gguf"]),
        (&["model", "inspect", "-m", &cut], &["cut.gguf"]),
        (&["model", "inspect", "-m", &empty], &["empty.gguf"]),
        (&["model", "inspect", "-m", "synthetic:gpt-9"], &["gpt-9", "bitnet-2b4t"]),
        (&["model", "inspect", "-m", "synthetic:bitnet-tiny@q9"], &["q9"]),
        (&["model", "logits", "-m", "synthetic:bitnet-tiny", "--ids", "512"], &["512"]),
        (&["model", "logits", "-m", "synthetic:bitnet-tiny", "--ids", &too_many], &["5000", "context"]),
        (&["model", "logits", "-m", "synthetic:bitnet-tiny", "--ids", "1", "-k", "tl9"], &["tl9", "scalar-i8-naive"]),
        (&["generate", "-m", "synthetic:bitnet-tiny", "-p", "x"], &["tokenizer"]),
        (&["eval", "-m", &fixture("i2_s.gguf"), "--task", "piqq"], &["piqq"]),
        // Data that is not there shows before a model is loaded.
        (&["eval", "-m", "nowhere.gguf", "--task", "piqa", "--data", nothing], &["no-data", "valid.jsonl"]),
        (&["eval", "-m", "nowhere.gguf", "--task", "piqa,piqa"], &["two tasks", "piqa"]),
        (&["claims", "-m", &fixture("i2_s.gguf"), "--limit", "2", "--data", nothing], &["no-data", "valid.jsonl"]),
        (&["eval", "--via", "http://127.0.0.1:1", "--batch", "100000"], &["100000", "1024"]),
        (&["speed", "-m", "synthetic:bitnet-tiny", "-w", "tg1", "-t", "60000", "--dry-run"], &["60000", "1024"]),
        (&["claims", "--baseline", "synthetic:none"], &["none"]),
        (&["speed", "-m", "synthetic:bitnet-tiny", "-p", "0", "-n", "0"], &["-p"]),
    ];
    for (args, words) in cases {
        let line = complaint(args);
        assert!(words.iter().all(|word| line.contains(word)), "{args:?}: {line}");
    }
    let refused: [&[&str]; 6] = [
        &["speed", "--no-such-flag"],
        &["eval", "-m", "nowhere.gguf", "--limit", "0"],
        &["kernels", "bench", "--budget", "nan"],
        &["speed", "-m", "synthetic:bitnet-tiny", "--budget=-1"],
        &["tasks", "generate", "--out", nothing, "--drills", "18446744073709551615"],
        &["tasks", "generate", "--out", nothing, "--train", "18446744073709551615,1,1"],
    ];
    for args in refused {
        assert_eq!(ternbench(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&["completions", shell]).contains("ternbench"));
    }
}

#[test]
fn models_are_converted_verified_and_synthesised() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (start, gguf, packed) = (fixture("packed-offline"), path("a.gguf"), path("b"));
    stdout(&["model", "convert", &start, &gguf, "--type", "i2_s", "--embedding-type", "f32"]);
    stdout(&["model", "convert", &gguf, &packed, "--type", "i2_s", "--embedding-type", "f32"]);
    assert!(complaint(&["model", "convert", &start, &gguf, "--type", "f16"]).contains("--force"));
    assert!(complaint(&["model", "convert", &start, &path("c"), "--type", "q8_0"]).contains("Q8_0"));
    for other in [&gguf, &packed] {
        let text = stdout(&["model", "verify", &start, other]);
        assert!(text.contains("24 of 24 tensors agree"), "{text}");
    }
    assert_eq!(json(&["model", "verify", &start, &gguf, "-o", "json"])["agree"], true);

    // One trit of the first matrix: the last byte of its codes.
    let mut bytes = std::fs::read(&gguf).unwrap();
    let file = json(&["model", "inspect", "-m", &gguf, "-o", "json"]);
    let tensors = file["tensors"].as_array().unwrap();
    assert_eq!((tensors.len(), &file["parts"]["linear"]["I2_S"]["matrices"]), (24, &Value::from(14)));
    let before: u64 = tensors.iter().take(2).map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    let all: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap().next_multiple_of(32)).sum();
    assert_eq!(tensors[1]["name"], "blk.0.attn_q.weight");
    let at = bytes.len() - all as usize + before as usize - 33;
    bytes[at] = if bytes[at] & 3 == 0 { bytes[at] | 1 } else { bytes[at] & !3 };
    let changed = write(&folder, "changed.gguf", &bytes);
    let output = ternbench(&["model", "verify", &start, &changed]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("layer 0 Q: 1 trits"), "{text}");

    let synthetic = path("synthetic.gguf");
    stdout(&["model", "synth", "bitnet-tiny", &synthetic]);
    let text = stdout(&["model", "verify", "synthetic:bitnet-tiny", &synthetic]);
    assert!(text.contains("logits within"), "{text}");
    // The vocabulary begins with the bytes; no merge of this small one makes " b".
    assert_eq!(json(&["model", "tokenize", "-m", &synthetic, "--text", "a b"])["ids"], serde_json::json!([97, 32, 98]));
    if cfg!(target_os = "linux") {
        let text = complaint(&["model", "tokenize", "-m", &synthetic, "--text-file", "/dev/zero"]);
        assert!(text.contains("/dev/zero: more than 64 MiB"), "{text}");
    }
    let output = ternbench(&["generate", "-m", &synthetic, "-p", "the", "-n", "4"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("like noise"), "{stderr}");
    let layouts = json(&["model", "inspect", "-m", &synthetic, "--check-layout", "-o", "json"]);
    assert_eq!(layouts.as_array().unwrap().len(), 3);
    assert!(layouts.as_array().unwrap().iter().all(|layout| layout["noise"] == true), "{layouts}");
}

/// A start from kept weights says the same as one without; damage costs a warning and nothing else.
#[test]
fn packed_weights_are_kept_beside_the_model_when_asked_for() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let twin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/twins/twin-ternary.gguf");
    let model = folder.path().join("twin.gguf").display().to_string();
    // Not I2_S: there the twin, which knows no English, would be taken for a layout read wrongly, and not be kept.
    stdout(&["model", "convert", &twin.display().to_string(), &model, "--type", "tq2_0"]);
    let kept = folder.path().join("twin.gguf.i2s.packed");
    let run = |more: &[&str]| {
        let args = ["generate", "-m", &model, "-p", "Question: Ann has 3 eggs", "-n", "16", "-k", "scalar-i2s-unpack"];
        let output = ternbench(&[&args, more].concat());
        assert!(output.status.success(), "{output:?}");
        (output.stdout, String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (plain, _) = run(&[]);
    assert!(!kept.exists(), "nothing is written unasked");
    for _ in 0..2 {
        let (text, notes) = run(&["--packed", "--head", "screened"]);
        assert_eq!(text, plain);
        assert!(kept.exists() && !notes.contains("warning"), "{notes}");
    }
    assert_eq!(run(&["--packed", "--speculate", "4", "--kv", "f32"]).0, plain);
    let mut bytes = std::fs::read(&kept).expect("kept");
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&kept, &bytes).expect("writable");
    let (text, notes) = run(&["--packed"]);
    assert_eq!(text, plain);
    assert!(notes.contains("warning") && notes.contains("twin.gguf.i2s.packed"), "{notes}");
    assert!(!run(&["--packed"]).1.contains("warning"), "it was made again");
}
