//! Every kernel of the lists on the layer shapes of BitNet b1.58 2B4T, one thread, verified against the oracle before it is
//! timed. `cargo bench -p ternbench-kernels -- avx2` times a part.
//!
//! The caches are warm here: for speed from memory, with a clock that knows about noise, run `ternbench bench`.
#![allow(missing_docs, reason = "criterion's macros")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ternbench_kernels::dense::{Activations, DENSE_KERNELS};
use ternbench_kernels::verify::{Random, activations, matrix};
use ternbench_kernels::{AlignedBytes, DenseMatrix, DenseType, Exactness, Pool, Prepared, Team, oracle};

/// `n x k`: q and o; k and v; gate and up; down.
const SHAPES: [(usize, usize); 4] = [(2560, 2560), (640, 2560), (6912, 2560), (2560, 6912)];
const TOKENS: [usize; 2] = [1, 128];
/// Rows whose sums are compared with the oracle's before timing.
const VERIFIED_ROWS: usize = 64;

fn ternary(criterion: &mut Criterion) {
    let mut random = Random::new(1);
    for (n, k) in SHAPES {
        let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
        let head = matrix(VERIFIED_ROWS, k, |row, column| w.row(row)[column]);
        for m in TOKENS {
            // About as many large values as in a model, on which a kernel's time may depend.
            let x = activations(m, k, |_, _| (18.0 * random.normal()).clamp(-127.0, 127.0) as i8);
            let expected = oracle::gemm(&head, &x);
            let mut group = criterion.benchmark_group(format!("{n}x{k}, m = {m}"));
            group.throughput(Throughput::Elements((n * k * m) as u64));
            for kernel in support::ternary_kernels() {
                let info = kernel.info();
                // The plain loops take seconds for a batch and are nobody's choice.
                if info.isa() == "scalar" && m > 1 {
                    continue;
                }
                let packed = kernel.pack(&w);
                let mut prepared = Prepared::default();
                kernel.prepare(&Team::alone(), &x, &mut prepared);
                let n_rows = n.next_multiple_of(info.row_tile);
                let mut acc = vec![0; m * n_rows];
                kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
                let got = acc.chunks_exact(n_rows).flat_map(|acc| &acc[..VERIFIED_ROWS]);
                assert!(
                    got.eq(&expected) || info.exactness != Exactness::Exact,
                    "{} is wrong on {n} x {k}, m = {m}: not timed",
                    info.name
                );
                group.bench_function(BenchmarkId::from_parameter(info.name), |bencher| {
                    bencher.iter(|| kernel.compute(&packed, black_box(&prepared), 0..n_rows, black_box(&mut acc)));
                });
            }
        }
    }
}

fn dense(criterion: &mut Criterion) {
    let (n, k) = SHAPES[0];
    let pool = Pool::new(1).expect("one thread");
    for entry in DENSE_KERNELS.iter().filter(|entry| entry.info.features.len() > 1) {
        let Ok(kernel) = entry.kernel() else { continue };
        let ty = kernel.info().ty;
        let mut data = AlignedBytes::zeroed(n * ty.row_bytes(k).expect("whole blocks"));
        // Small bytes are finite, positive numbers in every type.
        let bytes_per_weight = if ty == DenseType::F32 { 4 } else { 2 };
        data.iter_mut()
            .enumerate()
            .filter(|(i, _)| i % bytes_per_weight == 1)
            .for_each(|(i, byte)| *byte = (i * 37 % 61) as u8);
        let w = DenseMatrix::new(n, k, ty, data.into()).expect("n whole rows");
        for m in TOKENS {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut y = vec![0.0; m * n];
            let mut group = criterion.benchmark_group(format!("{n}x{k}, m = {m}"));
            group.throughput(Throughput::Elements((n * k * m) as u64));
            let mut prepared = AlignedBytes::zeroed(0);
            pool.run(|team| kernel.prepare(team, &x, m, k, &mut prepared));
            kernel.compute(&w, &x, &prepared, m, 0..n, &mut y);
            let mut row = vec![0.0; k];
            w.dequantize_row(n - 1, &mut row);
            let products = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, norm) = products.fold((0.0, 0.0), |(sum, norm), p| (sum + p, norm + p.abs()));
            // Int8 rounds the input.
            let tolerance = if kernel.info().activations == Activations::Rounded { 1e-2 } else { 1e-4 };
            assert!(
                (f64::from(y[n - 1]) - sum).abs() <= norm * tolerance,
                "{} is wrong: not timed",
                kernel.info().name
            );
            group.bench_function(BenchmarkId::from_parameter(kernel.info().name), |bencher| {
                bencher.iter(|| kernel.compute(&w, black_box(&x), &prepared, m, 0..n, black_box(&mut y)));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = ternary, dense
}
criterion_main!(benches);
