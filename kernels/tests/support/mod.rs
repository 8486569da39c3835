//! What the tests and benches of this crate share: the kernels to run, and inputs that find mistakes.
#![allow(dead_code, reason = "every test uses a part")]

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;

use ternbench_kernels::kernel::Unsupported;
use ternbench_kernels::registry::{Entry, KERNELS};
use ternbench_kernels::{QuantizedActivations, TernaryKernel, TernaryMatrix};

/// The ternary kernels that run here. Others are skipped visibly, see [`skip`].
pub fn ternary_kernels() -> Vec<&'static dyn TernaryKernel> {
    runnable(KERNELS, |entry| entry.info.name)
}

/// The kernels of a list that run here.
pub fn runnable<I, K: ?Sized>(
    list: &'static [Entry<I, K>],
    name: impl Fn(&Entry<I, K>) -> &'static str,
) -> Vec<&'static K> {
    let kernels = list.iter().filter_map(|entry| entry.kernel().map_err(|reason| skip(name(entry), &reason)).ok());
    kernels.collect()
}

/// Reports a skipped kernel, past the test harness's capture. `TERNBENCH_REQUIRE` lists kernels and CPU features, separated by
/// commas, whose absence is a failure: `TERNBENCH_REQUIRE=avx512vnni cargo test`.
fn skip(name: &str, reason: &Unsupported) {
    static SKIPPED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let first_time = SKIPPED.lock().is_ok_and(|mut names| names.insert(name.to_owned()));
    if first_time {
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
    }
    let required = std::env::var("TERNBENCH_REQUIRE").unwrap_or_default();
    for item in required.split(',').map(str::trim) {
        let missing = match reason {
            Unsupported::MissingFeatures(features) => features.iter().any(|feature| feature.name() == item),
            Unsupported::OtherArchitecture(_) => false,
        };
        assert!(item != name && !missing, "TERNBENCH_REQUIRE={required} demands {name}, but {reason}");
    }
}

/// A small seeded generator (xorshift64*), so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub fn matrix(n: usize, k: usize, mut trit: impl FnMut(usize, usize) -> i8) -> TernaryMatrix {
    TernaryMatrix::new(n, k, (0..n * k).map(|i| trit(i / k, i % k)).collect(), 0.75).unwrap()
}

pub fn activations(m: usize, k: usize, mut value: impl FnMut(usize, usize) -> i8) -> QuantizedActivations {
    let values = (0..m * k).map(|i| value(i / k, i % k)).collect();
    QuantizedActivations { m, k, values, scales: (0..m).map(|token| 1.0 + token as f32 / 8.0).collect() }
}

/// Maps any number into -127..=127.
pub fn legal(i: usize) -> i8 {
    ((i % 255) as i16 - 127) as i8
}

/// Inputs of a shape, each with a name: extremes that overflow narrow sums, lone spikes that expose a wrong place, cycles
/// whose prime lengths fit no tile, and random ones.
pub fn inputs(n: usize, k: usize, m: usize) -> Vec<(&'static str, TernaryMatrix, QuantizedActivations)> {
    let mut weights = Random::new((n * 1_000_003 + k * 1009 + m) as u64);
    let mut values = Random::new((m * 999_983 + k) as u64);
    let ones = |trit| matrix(n, k, |_, _| trit);
    let sign = |i: usize| if i.is_multiple_of(2) { 1 } else { -1 };
    // One non-zero weight a row, one non-zero activation a token, moved so that all columns meet over the rows.
    let spikes = matrix(n, k, |row, column| i8::from(column == row * 7 % k));
    let spiked = activations(m, k, |token, column| if column == token * 7 % k { -127 } else { 0 });
    vec![
        ("all +1 by +127", ones(1), activations(m, k, |_, _| 127)),
        ("all +1 by -127", ones(1), activations(m, k, |_, _| -127)),
        ("all -1 by +127", ones(-1), activations(m, k, |_, _| 127)),
        ("all -1 by -127", ones(-1), activations(m, k, |_, _| -127)),
        ("alternating", matrix(n, k, |row, k| sign(row + k)), activations(m, k, |token, k| 127 * sign(token + k))),
        ("spikes in the weights", spikes.clone(), activations(m, k, |token, k| legal(token * 31 + k * 17))),
        ("spikes in the activations", matrix(n, k, |row, k| ((row * 5 + k * 3) % 7 % 3) as i8 - 1), spiked.clone()),
        ("spikes in both", spikes, spiked),
        (
            "prime cycles",
            matrix(n, k, |row, k| ((row * 13 + k) % 11 % 3) as i8 - 1),
            activations(m, k, |token, k| legal((token * 29 + k) % 251)),
        ),
        ("random", matrix(n, k, |_, _| weights.below(3) as i8 - 1), activations(m, k, |_, _| legal(values.below(255)))),
    ]
}
