//! What the tests and benches of this crate share: the kernels to run, and inputs that find mistakes.
#![allow(dead_code, reason = "every test uses a part")]

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, OnceLock};

use ternbench_kernels::dense::DENSE_KERNELS;
use ternbench_kernels::kernel::Unsupported;
use ternbench_kernels::registry::{Entry, KERNELS};
use ternbench_kernels::verify;
use ternbench_kernels::{QuantizedActivations, TernaryKernel, TernaryMatrix};

/// What the environment asks of the tests. Read here, nowhere else.
struct Asked {
    /// `TERNBENCH_REQUIRE`: kernels and CPU features whose absence is a failure, separated by commas.
    required: Vec<String>,
    /// `TERNBENCH_TEST_KERNELS`: test only kernels with one of these, separated by commas, in their name.
    kernels: Vec<String>,
    /// `TERNBENCH_TEST_EVERY`: test every so-manieth shape only, for emulators. A prime meets every size of each dimension.
    every: usize,
}

fn asked() -> &'static Asked {
    static ASKED: OnceLock<Asked> = OnceLock::new();
    ASKED.get_or_init(|| {
        let list = |name: &str| {
            let value = std::env::var(name).unwrap_or_default();
            value.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
        };
        let every = std::env::var("TERNBENCH_TEST_EVERY").map_or(1, |every| {
            every.parse().ok().filter(|&every| every > 0).expect("TERNBENCH_TEST_EVERY is a number above 0")
        });
        let kernels: Vec<String> = list("TERNBENCH_TEST_KERNELS");
        let known = || KERNELS.iter().map(|e| e.info.name).chain(DENSE_KERNELS.iter().map(|e| e.info.name));
        for part in &kernels {
            assert!(
                known().any(|name| name.contains(part)),
                "TERNBENCH_TEST_KERNELS: no kernel's name contains '{part}'"
            );
        }
        Asked { required: list("TERNBENCH_REQUIRE"), kernels, every }
    })
}

/// The cases to test: all, or as many as `TERNBENCH_TEST_EVERY` leaves. The first is always one of them, so it is the most
/// telling one.
pub fn sample<T>(cases: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    cases.into_iter().step_by(asked().every)
}

/// The ternary kernels that run here. Others are skipped visibly, see [`skip`].
pub fn ternary_kernels() -> Vec<&'static dyn TernaryKernel> {
    runnable(KERNELS, |entry| entry.info.name)
}

/// The kernels of a list that run here, less those that `TERNBENCH_TEST_KERNELS` leaves out.
pub fn runnable<I, K: ?Sized>(
    list: &'static [Entry<I, K>],
    name: impl Fn(&Entry<I, K>) -> &'static str,
) -> Vec<&'static K> {
    let wanted = |name: &str| asked().kernels.is_empty() || asked().kernels.iter().any(|part| name.contains(part));
    let entries = list.iter().filter(|entry| wanted(name(entry)));
    entries.filter_map(|entry| entry.kernel().map_err(|reason| skip(name(entry), &reason)).ok()).collect()
}

/// Reports a skipped kernel, past the test harness's capture, or fails where `TERNBENCH_REQUIRE` demands it.
fn skip(name: &str, reason: &Unsupported) {
    static SKIPPED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let first_time = SKIPPED.lock().is_ok_and(|mut names| names.insert(name.to_owned()));
    if first_time {
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
    }
    for item in &asked().required {
        let missing = match reason {
            Unsupported::MissingFeatures(features) => features.iter().any(|feature| feature.name() == item),
            Unsupported::OtherArchitecture(_) => false,
        };
        assert!(item != name && !missing, "TERNBENCH_REQUIRE demands {item}: {name} was skipped, {reason}");
    }
}

/// The cases of a shape as tuples: name, weights, activations.
pub fn inputs(n: usize, k: usize, m: usize) -> Vec<(&'static str, TernaryMatrix, QuantizedActivations)> {
    verify::cases(n, k, m).map(|case| (case.name, case.w, case.x)).collect()
}
