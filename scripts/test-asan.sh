#!/usr/bin/env bash
# Runs the kernels' tests with AddressSanitizer: a read or write outside of a buffer, which sums alone may not show, ends the run.
#   scripts/test-asan.sh [TEST NAME PARTS...]
# TERNBENCH_TEST_KERNELS and TERNBENCH_TEST_EVERY choose kernels and shapes; by default every 17th shape, of all kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
# An unstable option, which RUSTC_BOOTSTRAP opens. With --target, build scripts and macros stay without the sanitizer.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$PWD/target/asan
export TERNBENCH_TEST_EVERY=${TERNBENCH_TEST_EVERY-17} PROPTEST_CASES=${PROPTEST_CASES-16}
# Dependencies without optimisation: they hardly run, and cost half the time to build.
cargo test --release --config 'profile.release.package."*".opt-level=0' --package ternbench-kernels --lib --tests --target "$(rustc -vV | sed -n 's/^host: //p')" -- "$@"
