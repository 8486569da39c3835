//! Any trits, packed and unpacked by every layout, are the same trits; and no byte of a packed matrix is out of place for `unpack`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ternbench_kernels::TernaryMatrix;
use ternbench_kernels::layout::LAYOUTS;

// Bytes 0 and 1: the shape. The others: the trits, in turn, as often as it takes.
fuzz_target!(|data: &[u8]| {
    let [n, k, trits @ ..] = data else { return };
    let (n, k) = (usize::from(*n) + 1, usize::from(*k) * 2 + 1);
    if trits.is_empty() {
        return;
    }
    let trits: Vec<i8> = trits.iter().cycle().take(n * k).map(|byte| (byte % 3) as i8 - 1).collect();
    let w = TernaryMatrix::new(n, k, trits, 1.0).expect("trits");
    for (name, pack, unpack) in LAYOUTS {
        assert!(unpack(&pack(&w)) == w.trits(), "{name}: {n} x {k}");
    }
});
