#!/usr/bin/env bash
# Runs the kernels' tests with AddressSanitizer: a read or write outside of a buffer, which sums alone may not show, ends the run.
#   scripts/test-asan.sh [TEST NAME PARTS...]
# TERNBENCH_TEST_KERNELS and TERNBENCH_TEST_EVERY choose kernels and shapes; by default every 17th shape, of all kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
# An unstable option, which RUSTC_BOOTSTRAP opens. With --target, build scripts and macros stay without the sanitizer.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$PWD/target/asan
export TERNBENCH_TEST_EVERY=${TERNBENCH_TEST_EVERY-17} PROPTEST_CASES=${PROPTEST_CASES-16}
# To build in two thirds of the time: dependencies, which hardly run, without optimisation, and the kernels in units that are optimised once.
config=(--config 'profile.release.package."*".opt-level=0' --config 'profile.release.lto="off"'
  --config 'profile.release.package.ternbench-kernels.codegen-units=16')
cargo test --release "${config[@]}" --package ternbench-kernels --lib --tests --target "$(rustc -vV | sed -n 's/^host: //p')" -- "$@"
