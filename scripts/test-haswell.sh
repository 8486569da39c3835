#!/usr/bin/env bash
# Runs the kernels' tests on an emulated CPU with AVX2 and nothing newer (qemu, Haswell): what an instruction of AVX-512 or
# AVX-VNNI in an AVX2 kernel would crash. The arguments go to the test programs, which are those of cargo test --release --workspace.
#   scripts/test-haswell.sh [TEST NAME PARTS...]
# TERNBENCH_TEST_KERNELS and TERNBENCH_TEST_EVERY choose kernels and shapes; by default every 97th shape, of all kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-x86_64 > /dev/null || { echo "test-haswell.sh: error: needs: apt-get install qemu-user" >&2; exit 2; }

# The whole workspace, though one package is asked for: alone it would be built again, with fewer features of its dependencies.
messages=$(cargo test --release --workspace --no-run --message-format=json-render-diagnostics)
mapfile -t programs < <(sed -n 's|^.*/kernels#.*"executable":"\([^"]*\)".*$|\1|p' <<< "$messages")
[ ${#programs[@]} -gt 0 ] || { echo "test-haswell.sh: error: cargo named no test program of kernels/" >&2; exit 1; }

export TERNBENCH_TEST_EVERY=${TERNBENCH_TEST_EVERY-97} PROPTEST_CASES=${PROPTEST_CASES-8}
# All that this CPU has: a skipped AVX2 kernel is a failure.
export TERNBENCH_REQUIRE=avx2,fma,f16c
cd kernels # as under cargo
for program in "${programs[@]}"; do
    echo "== $(basename "$program")"
    # Without what qemu does not emulate and would warn of, thread by thread.
    qemu-x86_64 -cpu Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm "$program" "$@"
done
