//! Every kernel that runs here gives the oracle's sums, on any shape, trits, activations and range of rows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ternbench_kernels::{Prepared, QuantizedActivations, Team, TernaryMatrix, oracle, registry};

// Bytes 0 to 3: n, k (two bytes), m; byte 4: where the range of rows starts. Of the rest, a byte gives a trit by its remainder,
// and an activation as it is.
fuzz_target!(|data: &[u8]| {
    let [n, k, more_k, m, start, rest @ ..] = data else { return };
    let (n, k, m) = (usize::from(*n) + 1, usize::from(*k) + 8 * usize::from(*more_k) + 1, usize::from(*m) % 40 + 1);
    // Small enough for thousands of runs a minute.
    if rest.is_empty() || n * k * m > 1 << 18 {
        return;
    }
    let trits = rest.iter().cycle().take(n * k).map(|byte| (byte % 3) as i8 - 1).collect();
    let values = rest.iter().rev().cycle().take(m * k).map(|byte| byte.cast_signed().max(-127)).collect();
    let w = TernaryMatrix::new(n, k, trits, 1.0).expect("trits");
    let x = QuantizedActivations { m, k, values, scales: vec![1.0; m] };
    let expected = oracle::gemm(&w, &x);
    for kernel in registry::supported() {
        let info = kernel.info();
        let packed = kernel.pack(&w);
        let mut prepared = Prepared::default();
        kernel.prepare(&Team::alone(), &x, &mut prepared);
        let n_tiles = n.div_ceil(info.row_tile);
        let rows = usize::from(*start) % n_tiles * info.row_tile..n_tiles * info.row_tile;
        let mut acc = vec![0x5EED_5EED; m * rows.len()];
        kernel.compute(&packed, &prepared, rows.clone(), &mut acc);
        for (at, &got) in acc.iter().enumerate() {
            let (token, row) = (at / rows.len(), rows.start + at % rows.len());
            let want = if row < n { expected[token * n + row] } else { 0 };
            assert!(
                got.wrapping_sub(want).unsigned_abs() <= info.exactness.allowed(k),
                "{}: {n} x {k}, {m} tokens: token {token}, row {row} is {got}, not {want}",
                info.name
            );
        }
    }
});
