//! `speed` and `import` beyond the happy path: opponents, interruption, a full disk, and parts that must add up.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const TINY: [&str; 4] = ["-m", "synthetic:bitnet-tiny", "-t", "1"];

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
    command.args(args).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    command
}

fn speed(args: &[&str]) -> Output {
    command(&["speed"]).args(args).output().expect("the program starts")
}

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn read(path: &Path) -> Vec<Value> {
    records(&std::fs::read_to_string(path).expect("records"))
}

fn of_kind<'r>(records: &'r [Value], kind: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["kind"] == kind).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that answers as llama-bench does, or does what `body` says instead.
#[cfg(unix)]
fn fake(folder: &Path, name: &str, body: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let script = r#"#!/bin/sh
while [ $# -gt 1 ]; do
    case $1 in -m) m=$2 ;; -t) t=$2 ;; -p) p=$2 ;; -n) n=$2 ;; -d) d=$2 ;; esac
    shift 2
done
BODY
printf '{"build_commit": "abc1234", "build_number": 7, "backends": "CPU", "cpu_info": "Fake", "model_filename": "%s", ' "$m"
printf '"model_type": "bitnet 2B TQ2_0", "n_threads": %s, "n_prompt": %s, "n_gen": %s, "n_depth": %s, ' "$t" "$p" "$n" "${d:-0}"
printf '"test_time": "2026-01-31T00:00:00Z", "avg_ns": 1000000, "samples_ns": [ 1000000 ], "samples_ts": [ 1.0 ]}\n'
"#;
    let path = folder.join(name);
    std::fs::write(&path, script.replace("BODY", body)).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path.display().to_string()
}

/// Speculation is a row of its own with the same output, in the same rounds; what the cache keeps is on record.
#[test]
fn speculation_stands_beside_plain_decoding_and_agrees_with_it() {
    let out = speed(&[&TINY[..], &["-w", "pp8,tg24", "-r", "2", "--speculate", "4", "-o", "jsonl"]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let records = records(&text(&out.stdout));
    let find = |workload: &str| records.iter().find(|record| record["workload"] == workload).expect(workload);
    let (plain, drafted) = (find("tg24"), find("tg24+draft4"));
    assert_eq!(records.len(), 3, "prefill has nothing to draft");
    assert_eq!((&plain["kv"], plain.get("drafted")), (&Value::from("f16"), None));
    assert_eq!(plain["output_checksum"], drafted["output_checksum"]);
    assert_eq!(plain["group"], drafted["group"]);
    assert!(plain["refused"].is_null() && drafted["refused"].is_null(), "{plain} {drafted}");
    let count = |name: &str| drafted[name].as_u64().expect("a count");
    // Warm-up and two rounds, of one or both of which there was a twin.
    let tokens = count("draft_passes") + count("drafts_accepted");
    assert!(tokens % 24 == 0 && tokens >= 72, "{drafted}");
    for wrong in [["--speculate", "0"], ["--speculate", "x"], ["--kv", "int3"]] {
        assert_eq!(speed(&[&TINY[..], &wrong[..]].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

/// Rounding keys and values is on record, makes fewer bytes, and is nothing that a claim is judged by.
#[test]
fn keys_and_values_in_int8_are_named() {
    let of = |kv: &str| {
        let out = speed(&[&TINY[..], &["-w", "tg8", "-r", "1", "--kv", kv, "-o", "jsonl"]].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        records(&text(&out.stdout)).remove(0)
    };
    let (half, rounded) = (of("f16"), of("int8"));
    let bytes = |record: &Value| record["bytes_per_token_parts"]["kv"].as_u64().expect("bytes");
    assert!(rounded["kv"] == "int8" && bytes(&rounded) < bytes(&half), "{rounded}");
    assert!(half["fmas_per_token"].as_u64() > rounded["fmas_per_token"].as_u64(), "attention is of integers");
    let claims = command(&["claims", "--quick", "--kv", "int8"]).output().expect("the program starts");
    assert_eq!(claims.status.code(), Some(2));
    assert!(text(&claims.stderr).contains("possible values: f32, f16]"), "{}", text(&claims.stderr));
}

/// All tokens of all sequences count, and weights are read once a pass.
#[test]
fn sequences_are_decoded_together() {
    let out = speed(&[&TINY[..], &["-w", "tg6,tg6x8@d9", "-r", "2", "--speculate", "4", "-o", "jsonl"]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let records = records(&text(&out.stdout));
    assert_eq!(records.len(), 3, "a batch is not drafted for");
    let batch = records.iter().find(|record| record["workload"] == "tg6x8@d9").expect("the batch");
    let one = records.iter().find(|record| record["workload"] == "tg6").expect("one sequence");
    let shown = ["n_gen", "n_parallel", "n_depth", "tokens_per_sample"];
    assert_eq!(shown.map(|name| batch[name].as_u64()), [6, 8, 9, 48].map(Some));
    assert_eq!(shown.map(|name| one[name].as_u64()), [6, 1, 0, 6].map(Some));
    let linear = |record: &Value| record["bytes_per_token_parts"]["linear"].as_u64().expect("bytes");
    assert_eq!(linear(one) / 8, linear(batch));
    let refused = speed(&[&TINY[..], &["-w", "tg6x8", "--opponent", "llama-bench=x:y.gguf"]].concat());
    assert_eq!((refused.status.code(), text(&refused.stderr).lines().count()), (Some(1), 1));
    assert!(text(&refused.stderr).contains("tg6x8: llama-bench decodes one sequence at a time"), "{refused:?}");
}

#[cfg(unix)]
#[test]
fn an_opponent_runs_in_the_same_rounds() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let calls = folder.path().join("calls");
    let program = fake(folder.path(), "llama-bench", &format!("echo \"$p $n ${{d:-0}} $t\" >> {}", calls.display()));
    let opponent = format!("llama-bench={program}:models/m.gguf");
    let file = folder.path().join("records.jsonl");
    let mut args = vec!["-w", "pp8,tg4@d8", "-r", "4", "-o", "jsonl", "--opponent", &opponent];
    args.extend(["--records", file.to_str().expect("UTF-8")]);
    args.extend(TINY);
    let output = speed(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = records(&text(&output.stdout));
    assert_eq!(lines.len(), 4, "two contenders in two workloads");
    for (pair, workload) in lines.chunks(2).zip(["pp8", "tg4@d8"]) {
        for record in pair {
            assert_eq!((&record["workload"], &record["n_threads"]), (&workload.into(), &1.into()));
            assert_eq!(record["samples_round"], serde_json::json!([0, 1, 2, 3]));
            assert_eq!(record["group"], pair[0]["group"]);
            assert!(record["refused"].is_null(), "{record}");
        }
        assert_eq!(pair[1]["model"], "m.gguf");
        assert_eq!((&pair[1]["opponent"]["build"], &pair[1]["weights"]), (&"abc1234 (7)".into(), &"ternary".into()));
        assert_eq!(pair[1]["samples_tokens_per_s"][0], if workload == "pp8" { 8000.0 } else { 4000.0 });
        let places = |record: &Value| record["samples_position"].as_array().expect("positions").clone();
        assert!(places(&pair[0]).iter().zip(places(&pair[1])).all(|(a, b)| *a != b), "one place each");
    }
    // One call of warm-up and one a round, with the workload asked for; the twin of the fastest may add one a round.
    let calls = std::fs::read_to_string(calls).expect("calls");
    assert!(calls.lines().filter(|line| *line == "8 0 0 1").count() >= 5, "{calls}");
    assert!(calls.lines().filter(|line| *line == "0 4 8 1").count() >= 5, "{calls}");
    assert_eq!(of_kind(&read(&file), "noise").len(), 2);
}

#[cfg(unix)]
#[test]
fn an_opponent_that_fails_is_a_row_with_the_reason() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let crash = fake(folder.path(), "crash", "echo loading; echo 'error: no such model' >&2; exit 3");
    let garbage = fake(folder.path(), "garbage", "echo '| model | t/s |'; exit 0");
    let other = fake(folder.path(), "other", "n=99");
    for (program, reason) in [
        ("/no/such/llama-bench", "No such file"),
        (&crash, "no such model"),
        (&garbage, "not llama-bench's JSON"),
        (&other, "printed no result for tg4 with 1 threads"),
    ] {
        let opponent = format!("llama-bench={program}:m.gguf");
        let mut args = vec!["-w", "tg4", "-r", "3", "-o", "jsonl", "--opponent", &opponent];
        args.extend(TINY);
        let output = speed(&args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let lines = records(&text(&output.stdout));
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["refused"], lines[0]["samples_ns"].as_array().map(Vec::len)), (&Value::Null, Some(3)));
        let refused = lines[1]["refused"].as_str().expect("a reason");
        assert!(refused.contains(reason) && refused.contains(program), "{refused}");
        assert_eq!((&lines[1]["model"], &lines[1]["workload"]), (&"m.gguf".into(), &"tg4".into()));
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with("ternbench: 1 of 2 results do not count: ") && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_whole_records_and_says_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("records.jsonl");
    let file_name = file.to_str().expect("UTF-8");
    let mut child = command(&["speed", "-w", "tg1,tg400", "-r", "100", "--records", file_name])
        .args(TINY)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(300);
    let first_group_done = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains(r#""kind":"noise""#));
    while !first_group_done() {
        assert!(std::time::Instant::now() < deadline, "the first group never ended");
        assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(text(&output.stderr), "ternbench: interrupted; the records written so far are complete\n");
    let records = read(&file);
    let speeds = of_kind(&records, "speed");
    assert_eq!(speeds[0]["samples_ns"].as_array().map(Vec::len), Some(100));
    assert_eq!(speeds[0]["protocol"]["stopped"], "repetitions");
    if let Some(cut) = speeds.get(1) {
        assert_eq!(cut["protocol"]["stopped"], "interrupted");
        assert!(cut["samples_ns"].as_array().is_some_and(|samples| (3..100).contains(&samples.len())), "{cut}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line_and_no_half_record() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let program = env!("CARGO_BIN_EXE_ternbench");
    // A limit on the size of files stands in for the end of the disk: it, too, cuts a write in the middle.
    for redirect in ["--records FILE > /dev/null", "-o jsonl > FILE"] {
        let file = folder.path().join("records.jsonl");
        let redirect = redirect.replace("FILE", &file.display().to_string());
        let run = format!(
            "trap '' XFSZ; ulimit -f 2; exec {program} speed -m synthetic:bitnet-tiny -t 1 -w tg1,tg2,tg3 -r 40 {redirect}"
        );
        let output = Command::new("bash").args(["-c", &run]).output().expect("bash");
        assert_eq!(output.status.code(), Some(1), "{run}: {output:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("ternbench: writing ") && stderr.lines().count() == 1, "{stderr}");
        let written = std::fs::read_to_string(&file).expect("what was written before");
        assert!(written.is_empty() || written.ends_with('\n'), "half a record: {written}");
        assert!(written.len() <= 2048 && records(&written).len() < 8, "{written}");
        std::fs::remove_file(&file).expect("removes");
    }
    let mut full = command(&["speed", "-w", "tg1", "-r", "1"]);
    let device = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = full.args(TINY).stdout(device).output().expect("starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(text(&output.stderr).lines().count(), 1, "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_parts_of_memory_add_up_to_what_is_resident() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("records.jsonl");
    let args = ["-m", "synthetic:bitnet-2b4t-4layer", "-t", "2", "-w", "pp32", "-r", "1"];
    let output = speed(&[&args[..], &["--records", file.to_str().expect("UTF-8")]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let records = read(&file);
    let memory = of_kind(&records, "memory")[0];
    let bytes = |name: &str| memory[name].as_f64().unwrap_or_else(|| panic!("{name}: {memory}"));
    let owned = ["packed_bytes", "embedding_bytes", "vector_bytes", "kv_bytes", "scratch_bytes"].map(bytes);
    let accounted = owned.iter().sum::<f64>() - bytes("weights_mapped_bytes") + bytes("resident_file_bytes");
    let resident = bytes("resident_bytes");
    assert!((resident - accounted).abs() <= 0.02 * resident, "{accounted} of {resident} accounted for: {memory}");
    assert!(bytes("peak_rss_bytes") >= resident);
    let load = of_kind(&records, "load")[0];
    let first = |name: &str| load[name][0].as_u64().unwrap_or_else(|| panic!("{name}: {load}"));
    assert!(first("first_token_ns") > first("samples_ns"));
    assert_eq!(load["first_token_n_prompt"], 32);
}

#[test]
fn every_record_says_how_it_was_made() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("records.jsonl");
    let file = file.to_str().expect("UTF-8");
    let args = ["-w", "tg2@d4", "--precision", "0.9", "--seed", "7", "-o", "csv", "--records", file];
    let output = speed(&[&args[..], &TINY].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("workload,title,model,"), "{}", text(&output.stdout));
    let records = read(Path::new(file));
    let proofs = of_kind(&records, "verify");
    assert!(proofs.len() == 1 && proofs[0]["ok"] == true, "proved before it was timed");
    let speed = of_kind(&records, "speed")[0];
    assert_eq!(proofs[0]["kernel"], speed["kernel"]);
    assert_eq!((&speed["protocol"]["seed"], &speed["protocol"]["precision"]), (&7.into(), &0.9.into()));
    assert!(["narrow", "repetitions"].contains(&speed["protocol"]["stopped"].as_str().expect("a reason")));
    assert!(speed["samples_ns"].as_array().is_some_and(|samples| samples.len() >= 10));
    assert!(!speed["output_checksum"].as_str().expect("a checksum").is_empty());
    assert!(speed["energy"].is_string());
    let parts = speed["bytes_per_token_parts"].as_object().expect("parts");
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["embedding", "kv", "linear", "lm_head", "norms"]);
    assert_eq!(
        parts.values().filter_map(Value::as_u64).sum::<u64>(),
        speed["bytes_per_token"].as_u64().expect("bytes")
    );
    let noise = of_kind(&records, "noise")[0];
    assert_eq!(noise["first_ns"].as_array().map(Vec::len), speed["samples_ns"].as_array().map(Vec::len));
}

#[test]
fn a_screened_head_gives_the_whole_heads_results_and_says_what_it_read() {
    let run = |head: &str| {
        let output = speed(&[&["-w", "tg24", "-r", "3", "-o", "jsonl", "--head", head][..], &TINY].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        records(&text(&output.stdout)).remove(0)
    };
    let (full, screened) = (run("full"), run("screened"));
    assert_eq!(full["output_checksum"], screened["output_checksum"]);
    assert_eq!((&full["head"], &screened["head"]), (&"full".into(), &"screened".into()));
    assert!(full.get("head_rescored_share").is_none(), "{full}");
    let bytes = |record: &Value| record["bytes_per_token_parts"]["lm_head"].as_f64().expect("bytes");
    let share = |name: &str| screened[name].as_f64().expect("a share");
    // What was read is the copy (5.25 bits a weight and 16 bytes a row), the rows rescored, and the whole head where it was read.
    let copy = 0.33 * bytes(&full) + 512.0 * 16.0;
    assert!(bytes(&screened) >= share("head_whole_share") * bytes(&full), "{screened}");
    let most = (share("head_whole_share") + share("head_rescored_share")) * bytes(&full) + copy;
    assert!(bytes(&screened) <= 1.01 * most, "{screened}: {most}");
}

/// Q8_0 by int8 inputs is held against the int8 peak, which it may reach; by floats against that of floats.
#[test]
fn blocks_are_held_against_the_limit_of_what_they_are_multiplied_by() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (model, all) = (path("q8_0.gguf"), path("all.jsonl"));
    let converted = command(&["model", "convert", "--type", "q8_0", "synthetic:bitnet-tiny@f16", &model]).output();
    let converted = converted.expect("the program starts");
    assert!(converted.status.success(), "{}", text(&converted.stderr));
    let out =
        speed(&["-m", &model, "-t", "1", "-w", "pp8", "-r", "1", "--activations", "rounded,f32", "--records", &all]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let records = read(Path::new(&all));
    let speeds = of_kind(&records, "speed");
    for rounded in [true, false] {
        let kernel = |record: &Value| record["kernel"].as_str().expect("a name").ends_with("-int8");
        let speed = speeds.iter().find(|speed| kernel(speed) == rounded).expect("both kinds");
        let limit = |name: &str| speed["limits"][name].as_f64().expect("a limit");
        let before = speed["macs_per_s_before"].as_array().expect("samples").iter().filter_map(Value::as_f64);
        let (slower, faster): (Vec<f64>, Vec<f64>) = before.partition(|sample| *sample < limit("macs_per_s"));
        assert!(!faster.is_empty() && slower.len() <= faster.len(), "{slower:?}, {faster:?}");
        // Both follow the clock of the run, so their ratio is that of the probes.
        let of_floats = limit("macs_per_s") / limit("f32_fmas_per_s");
        assert_eq!(rounded, (of_floats - 1.0).abs() > 1e-6, "{of_floats}");
    }
}

#[test]
fn suites_are_listed_and_tried_without_measuring() {
    let list = speed(&["--list"]);
    assert!(list.status.success() && text(&list.stdout).contains("quick"), "{list:?}");
    let dry = speed(&["--suite", "quick", "-t", "1,2", "--dry-run"]);
    let plan = text(&dry.stdout);
    assert!(
        dry.status.success()
            && plan.contains("pp32: 5 rounds")
            && plan.lines().any(|line| line.contains("@f16, ") && line.contains("-f16-") && line.ends_with(", 2t")),
        "{plan}"
    );
    assert_eq!(plan.lines().filter(|line| line.contains("synthetic:bitnet-2b4t-4layer,")).count(), 4, "{plan}");
    let unknown = speed(&["--suite", "no-such"]);
    assert!(unknown.status.code() == Some(1) && text(&unknown.stderr).contains("quick"), "{unknown:?}");
    assert_eq!(speed(&[]).status.code(), Some(2), "neither a model nor a suite");
    assert_eq!(speed(&["-m", "x", "--opponent", "vllm=x"]).status.code(), Some(2));
}

#[test]
fn saved_results_are_imported_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let row = r#"{"build_commit": "abc", "cpu_info": "Other CPU", "model_filename": "m/x.gguf", "model_type": "llama 1B F16", "n_threads": 4,
        "n_prompt": 512, "n_gen": 0, "test_time": "2025-01-31T00:00:00Z", "samples_ns": [ 1000000000, 2000000000 ]}"#
        .replace('\n', " ");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path.display().to_string()
    };
    let (lines, array) = (file("a.jsonl", &format!("{row}\n{row}\n")), file("b.json", &format!("[{row}]")));
    let output = command(&["import", &lines, &array]).output().expect("starts");
    assert!(output.status.success(), "{output:?}");
    let imported = records(&text(&output.stdout));
    assert_eq!(imported.len(), 3);
    for record in &imported {
        assert_eq!((&record["cpu"], &record["host_id"]), (&"Other CPU".into(), &"imported".into()));
        assert_eq!((&record["workload"], &record["weights"]), (&"pp512".into(), &"f16".into()));
        assert_eq!(record["samples_tokens_per_s"], serde_json::json!([512.0, 256.0]));
        assert_eq!((&record["opponent"]["how"], &record["time"]), (&"imported".into(), &"2025-01-31T00:00:00Z".into()));
    }
    let bad = file("c.jsonl", &format!("{row}\nllama_model_loader: oops\n"));
    let records = folder.path().join("records.jsonl");
    let output =
        command(&["import", &lines, &bad, "--records", records.to_str().expect("UTF-8")]).output().expect("starts");
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("c.jsonl") && stderr.contains("line 2"), "{stderr}");
    assert!(!records.exists());
}
