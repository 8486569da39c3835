//! What the tests and benches of this crate share: the kernels to run, and inputs that find mistakes.
#![allow(dead_code, reason = "every test uses a part")]

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;

use ternbench_kernels::kernel::Unsupported;
use ternbench_kernels::registry::{Entry, KERNELS};
use ternbench_kernels::verify;
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

/// The cases of a shape as tuples: name, weights, activations.
pub fn inputs(n: usize, k: usize, m: usize) -> Vec<(&'static str, TernaryMatrix, QuantizedActivations)> {
    verify::cases(n, k, m).map(|case| (case.name, case.w, case.x)).collect()
}
