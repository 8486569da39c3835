//! The whole way from a frozen file of records to tables, plots and a report.
//!
//! `tests/data/records.jsonl` is SYNTHETIC: its numbers were made up, by [`make_frozen_records`], to look like a run.
//! After a wanted change of the report: `cargo test -p ternbench-report --test report -- --ignored`, then read the diff.

use std::path::{Path, PathBuf};

use ternbench_measure::git::GitState;
use ternbench_measure::record::*;
use ternbench_measure::rng::Rng;
use ternbench_measure::{Host, RecordFile};
use ternbench_report::{Document, Run, Verdict, export, frame, html, judge, markdown, sections, table};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn frozen() -> Vec<Record> {
    let file = RecordFile::read(&data("records.jsonl")).expect("the frozen records");
    assert_eq!(file.damaged, []);
    file.records
}

fn host() -> Host {
    Host {
        host_id: "synthetic-0".into(),
        hostname: "synthetic".into(),
        cpu: "Synthetic Test CPU".into(),
        arch: "x86_64".into(),
        features: ["avx2", "fma", "avx512vnni"].map(str::to_owned).into(),
        physical_cores: Some(2),
        logical_cores: 2,
        cache_bytes: [("L1d".to_owned(), 32 << 10), ("L2".to_owned(), 512 << 10), ("L3".to_owned(), 32 << 20)].into(),
        memory_bytes: Some(24 << 30),
        memory_available_bytes: Some(22 << 30),
        os: "Linux".into(),
        os_kernel: "6.0".into(),
        virtualised: Some(true),
        load_average: Some(0.1),
        ..Host::default()
    }
}

fn document() -> Document {
    let run = Run { records: frozen(), host: Some(host()), ..Run::default() };
    Document::new(&run).expect("a document")
}

/// The page without its plots, which are compared by eye.
fn page() -> String {
    html::report(&Document { plots: Vec::new(), ..document() }).expect("a page").replace("<tr>", "\n<tr>")
}

fn compare(new: &str, frozen: &str) {
    let old = std::fs::read_to_string(data(frozen)).expect("the frozen report");
    for (number, (new, old)) in new.lines().zip(old.lines()).enumerate() {
        assert_eq!(new, old, "{frozen}, line {}", number + 1);
    }
    assert_eq!(new.lines().count(), old.lines().count());
}

#[test]
fn the_reports_are_the_frozen_ones() {
    compare(&markdown::report(&document()), "report.md");
    compare(&page(), "report.html");
}

#[test]
fn the_page_needs_no_network_and_escapes_what_records_say() {
    let mut records = frozen();
    if let Some(Body::Speed(speed)) =
        records.iter_mut().map(|record| &mut record.body).find(|b| matches!(b, Body::Speed(_)))
    {
        speed.model.model = "<script>alert(1)</script>".into();
        speed.model.shape = None;
        speed.refused = Some("a < b & \"c\"".into());
    }
    let document = Document::new(&Run { records, ..Run::default() }).expect("a document");
    let page = html::report(&document).expect("a page");
    assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert(1)"), "not escaped");
    assert!(page.contains("a &lt; b &amp; &quot;c&quot;"));
    let links = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!links.contains("http:") && !links.contains("https:") && !links.contains("@import"), "it asks the network");
    assert_eq!(page.matches("<svg").count(), document.plots.len());
}

#[test]
fn verdicts_of_the_frozen_records() {
    let ledger = judge(&Run { records: frozen(), ..Run::default() });
    let verdict = |id: &str| ledger.rows.iter().find(|row| row.id == id).expect("a row").finding.verdict;
    assert_eq!(verdict("twice-as-fast"), Verdict::Reproduced);
    assert_eq!(verdict("less-memory"), Verdict::Reproduced);
    assert_eq!(verdict("less-memory (0.4 GB)"), Verdict::NotReproduced);
    assert_eq!(verdict("lossless (I2_S)"), Verdict::Reproduced);
    assert_eq!(verdict("params-2b"), Verdict::Reproduced);
    assert_eq!(verdict("latency-29ms"), Verdict::NotComparable);
    assert_eq!(verdict("arm-1.37-5.07"), Verdict::NotComparable);
    assert_eq!(verdict("gsm8k-beats-1b"), Verdict::NotMeasured);
    let narrow = table::ledger(&ledger, table::Output::Terminal(100));
    assert!(narrow.lines().all(|line| line.chars().count() <= 100), "{narrow}");
    let plain = table::ledger(&ledger, table::Output::Plain);
    assert_eq!(plain.lines().count(), ledger.rows.len() + 1);
}

#[test]
fn an_opponent_is_neither_exact_nor_lossy() {
    let csv = export::write(&sections::speed(&frame::speed_rows(&frozen()).expect("rows")), export::Format::Csv);
    let csv = String::from_utf8(csv.expect("CSV")).expect("UTF-8");
    let theirs: Vec<&str> = csv.lines().filter(|line| line.contains("llama-bench")).collect();
    assert!(matches!(theirs[..], [row] if row.contains(",llama-bench (not checked),unknown,not checked,")), "{csv}");
    let report = markdown::report(&document());
    assert!(report.lines().filter(|line| line.contains("| llama-bench")).all(|line| line.contains("(not checked)")));
}

#[test]
fn the_report_shows_noise_memory_loading_and_energy() {
    let report = markdown::report(&document());
    for (row, why) in [
        ("| yes | 0.8 % |", "the A/A run"),
        ("| 1.209 | 1.214 | 0.4 % | 1.228 |", "parts, what the system counted, what is unexplained, and the peak"),
        ("| 2.31 | 2.28 to 2.45 | 3 | 3.02 | 2.99 to 3.16 | 3 | 128 |", "loading and the first token"),
        ("| 0.008 | 0.020 | 0.028 | 0.028 | 0.084 | 0.00027 | 0.191 | 0.304 |", "joules by the formula"),
    ] {
        assert!(report.contains(row), "{why}: {row}\n{report}");
    }
}

#[test]
fn refused_results_enter_no_table() {
    let rows = frame::speed_rows(&frozen()).expect("rows");
    assert!(rows.iter().all(|row| row.kernel != "avx512vnni-i2s-impossible"));
    assert!(markdown::report(&document()).contains("impossible: 162.0 tok/s"));
}

#[test]
fn plots_are_drawn_as_svg_and_png() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let document = document();
    document.save(folder.path(), true).expect("writes");
    let names: Vec<&str> = document.plots.iter().map(|plot| plot.name.as_str()).collect();
    let expected = [
        "speed-tg128",
        "speed-pp128",
        "scaling-tg128",
        "scaling-pp128",
        "latency-depth",
        "roofline",
        "memory",
        "bytes-per-token",
        "accuracy-piqa",
        "roofline-kernels-t2",
        "heat-m1-t2-cold",
    ];
    assert_eq!(names, expected);
    for name in names {
        let svg = std::fs::read_to_string(folder.path().join(format!("{name}.svg"))).expect("an SVG");
        assert!(svg.starts_with("<svg") && svg.contains("prefers-color-scheme:dark"), "{name}");
        let png = std::fs::read(folder.path().join(format!("{name}.png"))).expect("a PNG");
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{name}");
    }
    for table in [
        "speed",
        "side-by-side",
        "kernels-by-shape",
        "ranking-of-kernels",
        "noise",
        "memory",
        "loading",
        "accuracy",
        "energy-by-formula",
        "claims",
    ] {
        let csv = std::fs::read_to_string(folder.path().join(format!("{table}.csv"))).expect("a CSV");
        assert!(csv.lines().count() > 1, "{table}");
        let parquet = std::fs::read(folder.path().join(format!("{table}.parquet"))).expect("Parquet");
        assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"), "{table}");
    }
}

#[test]
#[ignore = "rewrites the frozen report"]
fn freeze_the_report() {
    std::fs::write(data("records.jsonl"), make_frozen_records()).expect("writes");
    std::fs::write(data("report.md"), markdown::report(&document())).expect("writes");
    std::fs::write(data("report.html"), page()).expect("writes");
}

/// A run of made-up numbers near those of a 2-core machine.
fn make_frozen_records() -> String {
    let git = GitState { commit: "0000000000000000000000000000000000000000".into(), dirty: false };
    let host = host();
    let context = RunContext {
        run_id: "2026-01-31-synthetic-test-data".into(),
        ternbench_version: "0.0.0".into(),
        git,
        host_id: host.host_id,
        cpu: host.cpu,
        arch: host.arch,
    };
    let mut rng = Rng::new(1);
    let mut bodies: Vec<Body> = Vec::new();
    let peaks = [(1_usize, 28e9, 232e9), (2, 33e9, 466e9)];
    for (n_threads, bandwidth, macs) in peaks {
        let probe = |name: &str, instructions: &str, per_s: f64| Probe {
            name: name.into(),
            instructions: instructions.into(),
            n_threads,
            work_per_sample: per_s as u64,
            samples_ns: vec![1_040_000_000, 1_000_000_000, 1_010_000_000],
        };
        bodies.push(probe(Probe::BANDWIDTH, "64-byte loads", bandwidth).into());
        bodies.push(probe(Probe::MACS, "vpdpbusd zmm", macs).into());
    }
    let kernels = [("avx512vnni-i2s-dpbusd", 1.0), ("avx2-i2s-maddubs", 0.93), ("scalar-i2s-shift", 0.12)];
    let code =
        |kernel: &str| Code { kernel: kernel.into(), isa: kernel.split('-').next().unwrap_or("").into(), exact: true };
    let model = |shape: &str, weights: &str| Model {
        model: format!("synthetic:{shape}"),
        model_hash: "0".repeat(64),
        architecture: if weights == "ternary" { "bitnet" } else { "llama" }.into(),
        shape: Some(shape.into()),
        weights: weights.into(),
    };
    for (kernel, _) in kernels {
        let shapes = vec![[2560, 2560, 1], [640, 2560, 1], [6912, 2560, 1], [2560, 6912, 1]];
        bodies.push(
            Verify { code: code(kernel), layout: "i2s".into(), shapes, cases: 32, ok: true, ..Verify::default() }
                .into(),
        );
        let reference_kernel = "scalar-i8-naive".into();
        let agreement = Agreement {
            model: model("bitnet-2b4t", "ternary"),
            reference_kernel,
            code: code(kernel),
            layout: "i2s".into(),
            ..Agreement::default()
        };
        bodies.push(Agreement { n_prompts: 4, n_tokens: 64, ..agreement }.into());
    }
    // Shape, decode tok/s with two threads, bytes and MACs a token, packed and embedding bytes.
    let baselines = [
        ("llama-3.2-1b", 11.3, 2_471_000_000_u64, 1_235_000_000_u64, 1_946_000_000_u64, 525_000_000_u64),
        ("gemma-3-1b", 13.9, 2_000_000_000, 1_000_000_000, 1_395_000_000, 604_000_000),
        ("qwen2.5-1.5b", 9.2, 3_087_000_000, 1_543_000_000, 2_620_000_000, 467_000_000),
        ("smollm2-1.7b", 8.5, 3_422_000_000, 1_711_000_000, 3_221_000_000, 201_000_000),
        ("minicpm-2b", 5.3, 5_448_000_000, 2_724_000_000, 4_883_000_000, 566_000_000),
    ];
    let mut speed =
        |model: Model, code: Code, n_threads: usize, prefill: bool, group: &str, base: f64, work: (u64, u64)| {
            let mut noise = || 1.0 + (rng.below(4001) as f64 - 2000.0) / 100_000.0;
            let (_, bandwidth_bytes_per_s, macs_per_s) = peaks[n_threads - 1];
            let samples = Samples {
                tokens: 128,
                ns: (0..5).map(|_| (128e9 / (base * noise())) as u64).collect(),
                rounds: (0..5).collect(),
                positions: vec![0, 1, 0, 1, 0],
            };
            let mut speed = Speed {
                model,
                code,
                n_threads,
                workload: if prefill { "pp128" } else { "tg128" }.into(),
                n_prompt: if prefill { 128 } else { 0 },
                n_gen: if prefill { 0 } else { 128 },
                group: group.into(),
                samples,
                bytes_per_token: if prefill { work.0 / 128 } else { work.0 },
                macs_per_token: work.1,
                bytes_per_token_parts: [("linear", work.0 / 10 * 7), ("lm_head", work.0 / 10 * 2), ("kv", work.0 / 10)]
                    .map(|(part, bytes)| (part.to_owned(), if prefill { bytes / 128 } else { bytes }))
                    .into(),
                limits: Limits { bandwidth_bytes_per_s, macs_per_s, cache_bytes: 32 << 20, ..Limits::default() },
                output_checksum: "0".repeat(16),
                ..Speed::default()
            };
            speed.check_limits();
            Body::from(speed)
        };
    for (shape, decode, bytes, macs, packed, embedding) in baselines {
        for n_threads in [1, 2] {
            let scale = if n_threads == 1 { 0.62 } else { 1.0 };
            let group = format!("{shape}-t{n_threads}");
            for prefill in [false, true] {
                let group = format!("{group}-{}", if prefill { "pp128" } else { "tg128" });
                let base = if prefill { 9.0e10 / macs as f64 * scale } else { decode * scale };
                bodies.push(speed(
                    model(shape, "f16"),
                    code("avx2-f16-fma"),
                    n_threads,
                    prefill,
                    &group,
                    base,
                    (bytes, macs),
                ));
                for (kernel, share) in kernels.iter().take(if shape == "llama-3.2-1b" { 3 } else { 1 }) {
                    let base = if prefill { 134.0 } else { 24.2 } * share * scale;
                    bodies.push(speed(
                        model("bitnet-2b4t", "ternary"),
                        code(kernel),
                        n_threads,
                        prefill,
                        &group,
                        base,
                        (1_178_000_000, 2_412_000_000),
                    ));
                }
            }
        }
        let memory = Memory {
            model: model(shape, "f16"),
            kernel: "avx2-f16-fma".into(),
            n_threads: 2,
            workload: "pp128+tg128".into(),
            ..Memory::default()
        };
        let memory = Memory {
            stored_bytes: packed + embedding,
            stored_embedding_bytes: embedding,
            packed_bytes: packed,
            embedding_bytes: embedding,
            ..memory
        };
        bodies.push(
            Memory {
                kv_bytes: 30_000_000,
                scratch_bytes: 12_000_000,
                peak_rss_bytes: packed + embedding + 60_000_000,
                peak_was_reset: true,
                ..memory
            }
            .into(),
        );
    }
    bodies.push(speed(
        model("bitnet-2b4t", "ternary"),
        code("avx512vnni-i2s-impossible"),
        2,
        false,
        "alone",
        162.0,
        (1_178_000_000, 2_412_000_000),
    ));
    if let Some(Body::Speed(speed)) = bodies.last_mut() {
        speed.samples.ns = vec![128_000_000_000 / 162; 5];
        speed.refused = None;
        speed.check_limits();
    }
    for depth in [512_u64, 2048] {
        let rate = 24.2 / (1.0 + depth as f64 / 8000.0);
        let work = (1_178_000_000 + depth * 76_800, 2_412_000_000);
        let kernel = code("avx512vnni-i2s-dpbusd");
        bodies.push(speed(model("bitnet-2b4t", "ternary"), kernel, 2, false, &format!("depth {depth}"), rate, work));
        if let Some(Body::Speed(speed)) = bodies.last_mut() {
            speed.workload = format!("tg128@d{depth}");
            speed.n_depth = depth;
        }
    }
    for (n, k) in [(2560_usize, 2560_usize), (6912, 2560)] {
        for (kernel, share) in kernels {
            let ns = (n * k) as f64 / (70.0 * share);
            let kernel = Kernel {
                code: code(kernel),
                n,
                k,
                m: 1,
                n_threads: 2,
                cache: "cold".into(),
                group: format!("{n}x{k} m1"),
                pack_ns: vec![1_000_000],
                prepare_ns: vec![2_000; 5],
                compute_ns: [1.0, 1.02, 0.99, 1.01, 1.05].map(|noise| (ns * noise) as u64).into(),
                samples_round: (0..5).collect(),
                packed_bytes: (n * k / 4) as u64,
                limits: Limits {
                    bandwidth_bytes_per_s: 33e9,
                    macs_per_s: 466e9,
                    cache_bytes: 32 << 20,
                    ..Limits::default()
                },
                output_checksum: "0".repeat(16),
                ..Kernel::default()
            };
            bodies.push(kernel.into());
        }
    }
    let real = Model { model: "tiny-llama.gguf".into(), shape: None, ..model("tiny", "q4_1") };
    let accuracy = Accuracy {
        model: real.clone(),
        code: code("avx2-q4_1-fma"),
        task: "piqa@1".into(),
        n: 1838,
        n_total: 1838,
        correct: [("acc".to_owned(), 1190), ("acc_norm".to_owned(), 1201)].into(),
        ..Accuracy::default()
    };
    bodies.push(accuracy.into());
    let memory = Memory { model: real, kernel: "avx2-q4_1-fma".into(), n_threads: 2, ..Memory::default() };
    bodies
        .push(Memory { packed_bytes: 66_000_000, peak_rss_bytes: 107_000_000, peak_was_reset: true, ..memory }.into());
    let twin = Noise {
        model: model("bitnet-2b4t", "ternary"),
        code: code("avx512vnni-i2s-dpbusd"),
        n_threads: 2,
        workload: "tg128".into(),
        group: "alone".into(),
        first_ns: vec![5_010_000_000, 4_990_000_000, 5_030_000_000, 5_000_000_000, 4_960_000_000],
        second_ns: vec![5_000_000_000; 5],
        protocol: None,
    };
    bodies.push(twin.into());
    let ternary = Memory {
        model: model("bitnet-2b4t", "ternary"),
        kernel: "avx512vnni-i2s-dpbusd".into(),
        n_threads: 2,
        workload: "pp128+tg128".into(),
        stored_bytes: 1_187_801_280,
        stored_embedding_bytes: 656_670_720,
        packed_bytes: 521_011_200,
        embedding_bytes: 656_670_720,
        kv_bytes: 20_000_000,
        scratch_bytes: 9_000_000,
        n_params_linear: 2_084_044_800,
        vector_bytes: 1_800_000,
        resident_bytes: 1_214_000_000,
        resident_file_bytes: 400_000,
        peak_rss_bytes: 1_228_000_000,
        peak_was_reset: true,
        ..Memory::default()
    };
    bodies.push(ternary.into());
    let load = Load {
        model: model("bitnet-2b4t", "ternary"),
        kernel: "avx512vnni-i2s-dpbusd".into(),
        n_threads: 2,
        samples_ns: vec![2_310_000_000, 2_280_000_000, 2_450_000_000],
        first_token_ns: vec![3_020_000_000, 2_990_000_000, 3_160_000_000],
        first_token_n_prompt: 128,
        n_params_linear: 2_084_044_800,
        n_params: 2_412_380_160,
        ..Load::default()
    };
    bodies.push(load.into());
    let code = Code { kernel: "llama-bench".into(), isa: "unknown".into(), exact: false };
    let theirs = Model { model: "Llama-3.2-1B-f16.gguf".into(), shape: None, ..model("llama", "f16") };
    bodies.push(speed(theirs, code, 2, false, "llama-3.2-1b-t2-tg128", 12.1, (0, 0)));
    if let Some(Body::Speed(speed)) = bodies.last_mut() {
        speed.limits = Limits::default();
        speed.opponent =
            Some(Opponent { program: "llama-bench".into(), how: "interleaved".into(), ..Opponent::default() });
    }
    let mut text = String::new();
    for body in bodies {
        let record =
            Record { time: "2026-01-31T12:00:00Z".into(), build_profile: "release".into(), ..context.record(body) };
        text += &serde_json_line(&record);
    }
    text
}

/// Through the writer that runs use.
fn serde_json_line(record: &Record) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("one.jsonl");
    ternbench_measure::RecordWriter::open(&path).and_then(|mut writer| writer.append(record)).expect("writes");
    std::fs::read_to_string(path).expect("reads")
}
