//! Other programs as contenders: llama-bench of llama.cpp, bitnet.cpp or ik_llama.cpp, and reading what it printed.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use ternbench_measure::{interrupt, record};

use crate::workload::Workload;

/// A program that is stuck for so long is ended and reported.
const TIMEOUT: Duration = Duration::from_secs(600);

/// `--opponent llama-bench=PATH:MODEL.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opponent {
    path: PathBuf,
    model: PathBuf,
}

impl FromStr for Opponent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix("llama-bench=").and_then(|rest| rest.rsplit_once(':'));
        match parts {
            Some((path, model)) if !path.is_empty() && !model.is_empty() => {
                Ok(Self { path: path.into(), model: model.into() })
            }
            _ => Err(format!("'{text}' is no opponent: expected llama-bench=PATH:MODEL.gguf")),
        }
    }
}

impl fmt::Display for Opponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), file_name(&self.model.display().to_string()))
    }
}

impl Opponent {
    /// One repetition in a process of its own: it loads the model, warms up and times itself. On the CPU, with `n_threads`.
    ///
    /// # Errors
    /// When it cannot be started, fails, hangs, or prints what is not the result that was asked for.
    pub fn run(&self, workload: Workload, n_threads: usize) -> Result<Row> {
        let Workload { n_prompt, n_gen, depth, .. } = workload;
        let mut command = Command::new(&self.path);
        command.arg("-m").arg(&self.model);
        for (flag, value) in [("-t", n_threads), ("-p", n_prompt), ("-n", n_gen), ("-r", 1), ("-ngl", 0)] {
            command.arg(flag).arg(value.to_string());
        }
        if depth > 0 {
            // Older builds do not have this flag: only asked for where it is needed.
            command.arg("-d").arg(depth.to_string());
        }
        let (status, stdout, stderr) = output(command.args(["-o", "json"]), TIMEOUT)
            .with_context(|| format!("cannot run {}", self.path.display()))?;
        let said = last_line(&stderr);
        ensure!(status.success(), "{} failed ({status}){said}", self.path.display());
        let rows = parse(&stdout).with_context(|| format!("{} printed nonsense{said}", self.path.display()))?;
        let asked = |row: &Row| {
            let same = [row.n_prompt, row.n_gen, row.n_depth] == [n_prompt, n_gen, depth].map(|n| n as u64);
            same && row.n_threads == n_threads
        };
        match rows.into_iter().find(asked) {
            Some(row) => Ok(row),
            None => bail!("{} printed no result for {workload} with {n_threads} threads", self.path.display()),
        }
    }

    /// The record of its runs, without samples; `row` is what it said last, `None` when it never did.
    pub fn speed_record(&self, row: Option<&Row>, workload: Workload, n_threads: usize) -> record::Speed {
        let unknown = Row { model_filename: self.model.display().to_string(), ..Row::default() };
        let mut speed = row.unwrap_or(&unknown).speed_record("interleaved");
        let Workload { n_prompt, n_gen, depth, .. } = workload;
        (speed.n_prompt, speed.n_gen, speed.n_depth) = (n_prompt as u64, n_gen as u64, depth as u64);
        (speed.workload, speed.n_threads) = (workload.to_string(), n_threads);
        speed
    }
}

/// One result as llama-bench prints it. What a build does not print is empty or zero.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Row {
    pub build_commit: String,
    pub build_number: u64,
    pub cpu_info: String,
    pub backends: String,
    pub model_filename: String,
    pub model_type: String,
    pub n_threads: usize,
    pub n_prompt: u64,
    pub n_gen: u64,
    pub n_depth: u64,
    pub test_time: String,
    pub avg_ns: u64,
    pub samples_ns: Vec<u64>,
}

impl Row {
    /// The time of the one repetition that was asked for.
    pub fn total_ns(&self) -> Result<u64> {
        let ns = self.samples_ns().first().copied().unwrap_or(0);
        ensure!(ns > 0, "llama-bench printed no time");
        Ok(ns)
    }

    /// The times of every repetition, or their mean where a build prints nothing else.
    pub fn samples_ns(&self) -> Vec<u64> {
        let mean = (self.avg_ns > 0).then_some(self.avg_ns);
        if self.samples_ns.is_empty() { mean.into_iter().collect() } else { self.samples_ns.clone() }
    }

    /// What was run, as llama-bench's own tables call it. `pp512+tg128` is one run of both.
    pub fn workload(&self) -> String {
        let part = |what: &str, n: u64| (n > 0).then(|| format!("{what}{n}"));
        let parts: Vec<String> = part("pp", self.n_prompt).into_iter().chain(part("tg", self.n_gen)).collect();
        let depth = if self.n_depth > 0 { format!("@d{}", self.n_depth) } else { String::new() };
        parts.join("+") + &depth
    }

    /// The result as a record, without samples. What code ran is not known, so it never counts as exact, and what it read is not
    /// known either, so no limit can refuse it.
    pub fn speed_record(&self, how: &str) -> record::Speed {
        record::Speed {
            model: record::Model {
                model: file_name(&self.model_filename).to_owned(),
                architecture: self.model_type.split(' ').next().unwrap_or_default().to_owned(),
                weights: weights(&self.model_type),
                ..record::Model::default()
            },
            code: record::Code { kernel: "llama-bench".into(), isa: "unknown".into(), exact: false },
            n_threads: self.n_threads,
            workload: self.workload(),
            n_prompt: self.n_prompt,
            n_gen: self.n_gen,
            n_parallel: 1,
            n_depth: self.n_depth,
            opponent: Some(record::Opponent {
                program: "llama-bench".into(),
                build: match (self.build_commit.as_str(), self.build_number) {
                    (commit, 0) => commit.to_owned(),
                    (commit, number) => format!("{commit} ({number})"),
                },
                backends: self.backends.clone(),
                model_type: self.model_type.clone(),
                how: how.to_owned(),
            }),
            ..record::Speed::default()
        }
    }
}

/// Reads what llama-bench prints with `-o jsonl` or `-o json`. Errors name the line.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let trimmed = text.trim_start();
    let rows: Vec<Row> = if trimmed.starts_with('[') {
        serde_json::from_str(trimmed).context("not the JSON that llama-bench prints")?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let row = |(i, line): (usize, &str)| {
            let shown: String = line.chars().take(40).collect();
            serde_json::from_str(line).with_context(|| format!("line {}: not llama-bench's JSON: '{shown}'", i + 1))
        };
        lines.map(row).collect::<Result<_>>()?
    };
    ensure!(!rows.is_empty(), "no result");
    for row in &rows {
        ensure!(row.n_prompt + row.n_gen > 0, "a result without n_prompt and n_gen");
        let in_range =
            row.n_prompt.max(row.n_gen).max(row.n_depth) < 1 << 32 && row.samples_ns.iter().all(|&ns| ns > 0);
        ensure!(in_range, "a result with a time of zero or an impossible length");
    }
    Ok(rows)
}

/// The type of the linear weights in llama.cpp's description of a model, such as `llama 1B F16` or `bitnet 2B I2_S - 2 bpw ternary`.
fn weights(model_type: &str) -> String {
    const TERNARY: [&str; 7] = ["I2_S", "TL1", "TL2", "TQ1_0", "TQ2_0", "IQ1_BN", "IQ2_BN"];
    const DENSE: [&str; 3] = ["F16", "BF16", "F32"];
    let mut words = model_type.split(' ');
    let known = words.find_map(|word| match word {
        _ if TERNARY.contains(&word) => Some("ternary".to_owned()),
        _ if DENSE.contains(&word) || word.starts_with('Q') || word.starts_with("IQ") => Some(word.to_lowercase()),
        _ => None,
    });
    known.unwrap_or_else(|| "unknown".into())
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// `: ` and the last line that says something, cut to a readable length.
fn last_line(stderr: &str) -> String {
    let line = stderr.lines().rev().find(|line| !line.trim().is_empty());
    line.map_or(String::new(), |line| format!(": {}", line.trim().chars().take(160).collect::<String>()))
}

/// Runs a program to its end, to `timeout` or to Ctrl-C, and collects what it printed.
fn output(command: &mut Command, timeout: Duration) -> Result<(ExitStatus, String, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child, timeout);
    if status.is_err() {
        // Gone already, or not ours to end: the first error is the one to report. Its pipes are left to their threads.
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = status?;
    let text = |reader: JoinHandle<Vec<u8>>| {
        reader.join().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    Ok((status, text(stdout), text(stderr)))
}

fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        interrupt::check()?;
        ensure!(start.elapsed() < timeout, "no answer in {} s", timeout.as_secs());
        // It times itself: how soon its end is seen does not matter, and looking seldom leaves it the cores.
        thread::sleep(Duration::from_millis(20));
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is what there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"build_commit": "abc1234", "build_number": 4242, "cpu_info": "Some CPU", "backends": "CPU",
        "model_filename": "models/bitnet/ggml-model-i2_s.gguf", "model_type": "bitnet 2B I2_S - 2 bpw ternary", "n_threads": 2,
        "n_prompt": 0, "n_gen": 16, "test_time": "2026-01-31T00:00:00Z", "avg_ns": 15, "samples_ns": [ 10, 20 ]}"#;

    #[test]
    fn both_formats_are_read() {
        let line = LINE.replace('\n', " ");
        for text in [line.clone(), format!("{line}\n{line}\n"), format!("[{LINE}]"), format!("\n[\n{LINE},\n{LINE}]\n")]
        {
            let rows = parse(&text).expect("rows");
            assert_eq!((rows[0].workload().as_str(), rows[0].samples_ns()), ("tg16", vec![10, 20]));
        }
        let speed = parse(&line).expect("row")[0].speed_record("imported");
        assert_eq!((speed.model.model.as_str(), speed.model.weights.as_str()), ("ggml-model-i2_s.gguf", "ternary"));
        assert_eq!(speed.opponent.expect("an opponent").build, "abc1234 (4242)");
        assert!(!speed.code.exact);
        let mean_only = parse(&line.replace("[ 10, 20 ]", "[]")).expect("row");
        assert_eq!(mean_only[0].samples_ns(), [15]);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, word) in [
            ("", "no result"),
            ("llama_model_load: error", "line 1"),
            ("{}", "n_prompt"),
            ("[1]", "llama-bench"),
            (r#"{"n_gen": 4, "samples_ns": [0]}"#, "zero"),
            (r#"{"n_gen": 18446744073709551615, "n_prompt": 0}"#, "impossible"),
        ] {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn weights_are_told_from_llama_cpps_descriptions() {
        for (text, expected) in [
            ("llama 1B F16", "f16"),
            ("bitnet 2B I2_S - 2 bpw ternary", "ternary"),
            ("llama 7B TQ2_0 - 2.06 bpw ternary", "ternary"),
            ("qwen2 1.5B Q4_K - Medium", "q4_k"),
            ("gemma3 1B BF16", "bf16"),
            ("", "unknown"),
        ] {
            assert_eq!(weights(text), expected, "{text}");
        }
    }

    #[test]
    fn opponents_are_a_path_and_a_model() {
        let opponent: Opponent = "llama-bench=/opt/llama.cpp/llama-bench:m.gguf".parse().expect("an opponent");
        assert_eq!(opponent.to_string(), "/opt/llama.cpp/llama-bench m.gguf");
        for bad in ["", "llama-bench=", "llama-bench=x", "llama-bench=:m", "vllm=x:y"] {
            assert!(bad.parse::<Opponent>().expect_err(bad).contains("llama-bench=PATH:MODEL.gguf"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = output(Command::new("sleep").arg("60"), Duration::from_millis(50)).expect_err("hangs");
        assert_eq!(error.to_string(), "no answer in 0 s");
    }
}
