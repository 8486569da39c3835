#!/usr/bin/env bash
# Runs the kernels' tests on an emulated CPU with AVX2 and nothing newer (qemu, Haswell): what an instruction of AVX-512 or
# AVX-VNNI in an AVX2 kernel would crash. The arguments go to the test programs, which are those of cargo test --release --workspace.
#   scripts/test-haswell.sh [TEST NAME PARTS...]
# TERNBENCH_TEST_KERNELS and TERNBENCH_TEST_EVERY choose kernels and shapes; by default every 97th shape, of those for AVX2. Without arguments
# tests of the screen that run the same code as another one are left out: their numbers are compared, for AVX2 too, where nothing is emulated.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-x86_64 > /dev/null || { echo "test-haswell.sh: error: needs: apt-get install qemu-user" >&2; exit 2; }

# The whole workspace, though one package is asked for: alone it would be built again, with fewer features of its dependencies.
messages=$(cargo test --release --workspace --no-run --message-format=json-render-diagnostics)
mapfile -t programs < <(sed -n 's|^.*/kernels#.*"executable":"\([^"]*\)".*$|\1|p' <<< "$messages")
[ ${#programs[@]} -gt 0 ] || { echo "test-haswell.sh: error: cargo named no test program of kernels/" >&2; exit 1; }

export TERNBENCH_TEST_KERNELS=${TERNBENCH_TEST_KERNELS-avx2} TERNBENCH_TEST_EVERY=${TERNBENCH_TEST_EVERY-97} PROPTEST_CASES=${PROPTEST_CASES-8}
[ $# -gt 0 ] || for test in gaussian_rows_in_f32 gaussian_rows_in_bf16 wide_rows_have_few_candidates the_most_columns \
    a_common_direction_and_outlier_columns rows_that_sit_on_the_bound bytes_have_a_residual_of_their_own \
    ties_go_to_the_smaller_index huge_range_zero_rows_and_tiny_numbers; do
    set -- "$@" --skip "screen::tests::$test"
done
# All that this CPU has: a skipped AVX2 kernel is a failure.
export TERNBENCH_REQUIRE=avx2,fma,f16c
cd kernels # as under cargo
for program in "${programs[@]}"; do
    echo "== $(basename "$program")"
    # Without what qemu does not emulate and would warn of, thread by thread.
    qemu-x86_64 -cpu Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm "$program" "$@"
done
