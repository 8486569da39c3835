#!/usr/bin/env bash
# Runs the kernels' tests on an emulated CPU with AVX2 and nothing newer (qemu, Haswell): what an instruction of AVX-512 or
# AVX-VNNI in an AVX2 kernel would crash. The arguments go to cargo test.
#   scripts/test-haswell.sh [TEST NAME PARTS...]
# TERNBENCH_TEST_KERNELS and TERNBENCH_TEST_EVERY choose kernels and shapes; by default every 97th shape, of all kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-x86_64 > /dev/null || { echo "test-haswell.sh: error: needs: apt-get install qemu-user" >&2; exit 2; }

export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="qemu-x86_64 -cpu Haswell"
export TERNBENCH_TEST_EVERY=${TERNBENCH_TEST_EVERY-97} PROPTEST_CASES=${PROPTEST_CASES-8}
# All that this CPU has: a skipped AVX2 kernel is a failure.
export TERNBENCH_REQUIRE=avx2,fma,f16c
cargo test --release --package ternbench-kernels --lib --tests -- "$@"
