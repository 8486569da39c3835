#!/usr/bin/env bash
# Fuzzes: every target of every fuzz/ folder, with libFuzzer and AddressSanitizer, one after the other.
#   scripts/fuzz.sh [SECONDS PER TARGET [TARGET NAME PARTS...]]        default: 60 seconds, all targets
# Inputs that find new code are kept in target/fuzz/corpus and are where the next run starts. An input that fails is kept in
# target/fuzz/artifacts; run the program that is printed with its path to see the failure again.
set -euo pipefail
case ${1:-60} in
  -h | --help) sed -n '2,5s/^# \?//p' "$0"; exit 0 ;;
  *[!0-9]*) echo "fuzz.sh: error: '$1' is no number of seconds (see --help)" >&2; exit 2 ;;
esac
seconds=${1:-60}
shift || true
cd "$(dirname "$0")/.."
root=$PWD

# What cargo-fuzz would pass, but for a single unit of code, which takes longer to build. The sanitizer and the coverage pass are
# unstable options, which RUSTC_BOOTSTRAP opens.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$root/target/fuzz
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"

wanted() {
  local part
  [ $# -gt 1 ] || return 0
  for part in "${@:2}"; do case $1 in *"$part"*) return 0 ;; esac; done
  return 1
}

ran=0
for folder in $(git ls-files --cached --others --exclude-standard '*fuzz/Cargo.toml' | xargs -r -n 1 dirname); do
  for source in "$folder"/fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    wanted "$name" "$@" || continue
    echo "== fuzz $name for $seconds s"
    (cd "$folder" && cargo build --release --quiet --target "$target" --bin "$name")
    program=$CARGO_TARGET_DIR/$target/release/$name
    mkdir -p "$CARGO_TARGET_DIR/corpus/$name" "$CARGO_TARGET_DIR/artifacts/$name"
    "$program" -max_total_time="$seconds" -print_final_stats=1 -rss_limit_mb=4096 \
      -artifact_prefix="$CARGO_TARGET_DIR/artifacts/$name/" "$CARGO_TARGET_DIR/corpus/$name" 2>&1 |
      { grep -vE '^(#|INFO:|Done|$|stat::(average|new|slowest|peak)|[[:space:]]*NEW_FUNC|.*# Uses:)' || true; } &&
      ran=$((ran + 1)) || { echo "fuzz.sh: error: $name failed; again: $program INPUT" >&2; exit 1; }
  done
done
[ $ran -gt 0 ] || { echo "fuzz.sh: error: no such target" >&2; exit 2; }
