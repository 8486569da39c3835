#!/usr/bin/env bash
# Runs the kernels' tests for aarch64 on an x86-64 Debian machine, under qemu's user mode. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/test-arm.sh [--all | --setup | --build] [CARGO TEST ARGUMENTS...]

Builds tests of ternbench-kernels for aarch64 and runs them under qemu: the conformance and guard tests of the aarch64 kernels, ternary and
dense, on a CPU that has all they need (max). A kernel that the CPU should run and does not is a failure. On an aarch64 machine it
runs them natively.

  --all     every test, the portable kernels' too, on three CPUs: cortex-a72 (NEON), neoverse-n1 (+ dotprod), max (+ i8mm)
  --setup   only install the toolchain and print its version
  --build   build the tests, do not run them

environment:
  ARM_CPUS          the qemu CPUs, instead of those
  ARM_PACKAGE       the crate, default ternbench-kernels
  XDG_CACHE_HOME    the toolchain goes to $XDG_CACHE_HOME/ternbench-arm (default ~/.cache), about 0.8 GB
  TERNBENCH_TEST_KERNELS, TERNBENCH_TEST_EVERY   choose kernels and shapes; by default every 31st shape

Where rustup has the target (rustup target add aarch64-unknown-linux-gnu) that is used, and only the linker and qemu
come from Debian. Else a Rust of Debian's own is unpacked into the cache beside yours, never installed; this needs
Debian 12 or newer. Packages are installed with apt-get, through sudo where you are not root.

examples:
  scripts/test-arm.sh
  scripts/test-arm.sh edge                        only the tests whose name contains edge
  ARM_CPUS=neoverse-n1 scripts/test-arm.sh -- --nocapture
END
}

die() { echo "test-arm.sh: error: $*" >&2; exit 1; }

mode=run
which=(--test conformance --test dense --test guard)
cpus=max
kernels=neon,dotprod,i8mm
case ${1:-} in
  -h | --help) usage; exit 0 ;;
  --all)
    which=(--lib --bins --tests)
    cpus="cortex-a72 neoverse-n1 max"
    kernels=
    shift
    ;;
  --setup) mode=setup; shift ;;
  --build) mode=build; shift ;;
  --) ;;
  -*) echo "test-arm.sh: error: unknown option $1 (see --help; cargo's own options go after a test name or --)" >&2; exit 2 ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ternbench-arm
target=aarch64-unknown-linux-gnu
package=${ARM_PACKAGE:-ternbench-kernels}
export CARGO_TARGET_DIR=$root/target/arm

# Dependencies are built once and hardly run: without optimisation they cost half the time.
tests() { (cd "$root" && cargo test --config 'profile.dev.package."*".opt-level=0' --package "$package" "${which[@]}" "$@"); }

if [ "$(uname -m)" = aarch64 ]; then
  case $mode in
    setup) exec rustc -vV ;;
    build) tests --no-run "$@" ;;
    run) tests "$@" ;;
  esac
  exit
fi
[ "$(uname -sm)" = "Linux x86_64" ] || die "needs Linux on x86-64 or aarch64, this is $(uname -sm)"
command -v cargo > /dev/null || die "cargo is not there"
command -v apt-get > /dev/null || die "apt-get is not there: on other systems install an aarch64 linker, qemu-aarch64 and rustup's target yourself"

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o APT::Sandbox::User=root)

# Each step says its name when it fails, with the last lines of what it printed.
step() {
  local name=$1 log=$cache/log
  shift
  echo "setup: $name" >&2
  "$@" > "$log" 2>&1 || { tail -n 5 "$log" >&2; die "$name failed (whole output: $log)"; }
}

updated=
update() {
  [ -n "$updated" ] || step "package lists" "${as_root[@]}" "${apt[@]}" update
  updated=1
}

install() {
  update
  step "install $*" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "$@"
}

# Debian's rustc ("web", the newest), its shared library and the std of both architectures: the four must be of one version.
debian_rust() {
  local version minor std llvm lists
  update
  version=$(apt-cache policy rustc-web | sed -n 's/^ *Candidate: //p')
  [ -n "$version" ] && [ "$version" != "(none)" ] || die "this Debian has no rustc-web: use rustup target add $target"
  minor=$(cut -d. -f1,2 <<< "$version")
  std=libstd-rust-web-$minor
  llvm=$(apt-cache show "$std=$version" | grep -oE 'libllvm[0-9]+' | head -n 1) || die "$std names no LLVM library"
  install "$llvm"

  # The arm64 package comes through package lists of its own, so that dpkg keeps the architectures it has.
  lists=$cache/apt
  rm -rf "$lists" "$cache/deb" "$cache/rust.new"
  mkdir -p "$lists/lists/partial" "$lists/archives/partial" "$cache/deb"
  local foreign=("${apt[@]}" -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State::lists=$lists/lists"
    -o "Dir::Cache=$lists" -o Dir::State::status=/dev/null -o Acquire::Languages=none)
  cd "$cache/deb"
  step "Rust $version" "${apt[@]}" download "rustc-web=$version" "$std=$version" "libstd-rust-web-dev=$version"
  step "package lists for arm64" "${foreign[@]}" update
  step "Rust's std $version for arm64" "${foreign[@]}" download "libstd-rust-web-dev=$version"
  cd "$root"
  local deb
  for deb in "$cache"/deb/*.deb; do
    step "unpack $(basename "$deb")" dpkg-deb --extract "$deb" "$cache/rust.new"
  done
  rm -rf "$lists" "$cache/deb" "$cache/rust"
  mv "$cache/rust.new" "$cache/rust"
  # rustc looks for its libraries in the system's folders, so its wrapper points at the unpacked ones.
  cat > "$cache/rustc.new" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$cache/rust/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$cache/rust/usr/bin/rustc" "\$@"
END
  chmod +x "$cache/rustc.new"
  mv "$cache/rustc.new" "$cache/rustc" # last: its presence says that the rest is whole
}

mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9 # a second run waits for the first one's setup
missing=()
command -v aarch64-linux-gnu-gcc > /dev/null || missing+=(gcc-aarch64-linux-gnu)
[ -e /usr/aarch64-linux-gnu/lib/libc.so.6 ] && [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing+=(libc6-dev-arm64-cross)
command -v qemu-aarch64 > /dev/null || missing+=(qemu-user)
[ ${#missing[@]} = 0 ] || install "${missing[@]}"
if [ -d "$(cd "$root" && rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
  rustc=$(cd "$root" && rustc --print sysroot)/bin/rustc
else
  rustc=$cache/rustc
  # Also again where the library it needs has gone since.
  "$rustc" -vV > /dev/null 2>&1 || { rm -f "$rustc"; debian_rust; }
  "$rustc" -vV > /dev/null || die "the unpacked rustc does not run"
fi
exec 9>&-

export RUSTC=$rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
[ "$mode" != setup ] || exec "$RUSTC" -vV
if [ "$mode" = build ]; then
  tests --target "$target" --no-run "$@"
  exit
fi
export TERNBENCH_TEST_KERNELS=${TERNBENCH_TEST_KERNELS-$kernels}
export TERNBENCH_TEST_EVERY=${TERNBENCH_TEST_EVERY-31} PROPTEST_CASES=${PROPTEST_CASES-16}
for cpu in ${ARM_CPUS:-$cpus}; do
  case $cpu in
    cortex-a72) has=neon ;;
    neoverse-n1) has=neon,dotprod ;;
    *) has=neon,dotprod,i8mm ;;
  esac
  echo "== aarch64, qemu -cpu $cpu: must run what needs $has"
  # No doctests: Debian's rustc comes without rustdoc.
  TERNBENCH_REQUIRE=$has \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu $cpu" \
    tests --target "$target" "$@"
done
