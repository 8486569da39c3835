//! Records made up for tests.

use ternbench_measure::host::Host;
use ternbench_measure::record::{Body, Code, Kernel, Limits, Model, Record, RunContext, Samples, Speed};

/// Records on a made-up x86-64 machine.
pub(crate) fn records(bodies: impl IntoIterator<Item = Body>) -> Vec<Record> {
    records_on("Some CPU", "x86_64", bodies)
}

/// Records on a made-up machine.
pub(crate) fn records_on(cpu: &str, arch: &str, bodies: impl IntoIterator<Item = Body>) -> Vec<Record> {
    let host = Host { host_id: "h".into(), cpu: cpu.into(), arch: arch.into(), ..Host::default() };
    let context = RunContext::new("run", &host);
    bodies.into_iter().map(|body| context.record(body)).collect()
}

/// A model by name.
pub(crate) fn model(name: &str, weights: &str) -> Model {
    Model {
        model: name.into(),
        model_hash: "0".into(),
        architecture: "bitnet".into(),
        shape: None,
        weights: weights.into(),
    }
}

/// The kernel that runs such weights.
pub(crate) fn code(weights: &str) -> Code {
    let kernel = if weights == "ternary" { "avx2-i2s-maddubs" } else { "avx2-f16-fma" };
    Code { kernel: kernel.into(), isa: "avx2".into(), exact: true }
}

/// `tg128` at these speeds, one per round.
pub(crate) fn speed(name: &str, weights: &str, n_threads: usize, group: &str, tokens_per_s: &[f64]) -> Speed {
    Speed {
        model: model(name, weights),
        code: code(weights),
        n_threads,
        workload: "tg128".into(),
        n_gen: 128,
        group: group.into(),
        samples: Samples {
            tokens: 128,
            ns: tokens_per_s.iter().map(|speed| (128e9 / speed) as u64).collect(),
            rounds: (0..tokens_per_s.len() as u32).collect(),
            positions: vec![0; tokens_per_s.len()],
        },
        bytes_per_token: if weights == "ternary" { 1_178_000_000 } else { 2_470_000_000 },
        macs_per_token: 2_400_000_000,
        limits: Limits { bandwidth_bytes_per_s: 33e9, macs_per_s: 466e9, ..Limits::default() },
        output_checksum: "0".into(),
        ..Speed::default()
    }
}

/// A kernel on an n x k matrix with m tokens and two threads, at these times.
pub(crate) fn kernel(name: &str, n: usize, k: usize, m: usize, compute_ns: &[u64]) -> Kernel {
    Kernel {
        code: Code { kernel: name.into(), isa: "avx2".into(), exact: true },
        n,
        k,
        m,
        n_threads: 2,
        cache: "cold".into(),
        group: format!("{n}x{k} m{m}"),
        compute_ns: compute_ns.to_vec(),
        samples_round: (0..compute_ns.len() as u32).collect(),
        packed_bytes: (n * k / 4) as u64,
        limits: Limits { bandwidth_bytes_per_s: 33e9, macs_per_s: 466e9, ..Limits::default() },
        ..Kernel::default()
    }
}
