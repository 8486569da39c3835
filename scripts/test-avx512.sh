#!/usr/bin/env bash
# Runs the kernels' AVX-512 tests on a CPU without AVX-512: under Bochs, which emulates a whole PC. See --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/test-avx512.sh [TEST NAME PARTS...]

Builds the tests of ternbench-kernels, boots a Linux from Debian on a PC that Bochs emulates, with a CPU that has AVX-512 VNNI
and VBMI, and runs them there. Where this CPU has both, they run natively and in full.

Emulation is some hundred times slower, so by default it runs the AVX-512 kernels only, on every 37th shape. The name parts
choose tests as cargo's filter does: scripts/test-avx512.sh edge long

environment:
  TERNBENCH_TEST_KERNELS  parts of kernel names, separated by commas; default avx512
  TERNBENCH_TEST_EVERY    tests every so-manieth shape; default 37
  AVX512_CPU              Bochs's CPU model, default tigerlake; also corei7_icelake_u, corei7_skylake_x (has no VNNI)
  TERNBENCH_REQUIRE       kernels or features that must not be skipped; default avx512bw,avx512vnni,avx512vbmi
  AVX512_TIMEOUT          seconds until it gives up, default 600

Needs Debian's bochs and tools for a bootable CD, says which are missing and exits with 2. The Linux is downloaded to
target/avx512, not installed. Nothing needs root.
END
}

die() { echo "test-avx512.sh: error: $1" >&2; exit "${2:-1}"; }

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  -*) die "unknown option $1 (see --help)" 2 ;;
esac

cd "$(dirname "$0")/.."
dir=$PWD/target/avx512
tests=(cargo test --release --package ternbench-kernels --lib --tests)
if grep -q avx512_vnni /proc/cpuinfo && grep -q avx512_*vbmi /proc/cpuinfo; then
  echo "this CPU has AVX-512 VNNI and VBMI: running natively"
  TERNBENCH_REQUIRE=avx512vnni,avx512vbmi exec "${tests[@]}" -- "$@"
fi

missing=()
need() { [ -e "$1" ] || missing+=("$2"); }
need /usr/bin/bochs bochs
need /usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so bochs-term
need /usr/share/bochs/BIOS-bochs-latest bochsbios
need /usr/share/vgabios/vgabios.bin vgabios
need /usr/lib/ISOLINUX/isolinux.bin isolinux
need /usr/lib/syslinux/modules/bios/ldlinux.c32 syslinux-common
need /usr/bin/genisoimage genisoimage
need /usr/bin/cpio cpio
need /bin/busybox busybox-static
[ ${#missing[@]} = 0 ] || die "needs: apt-get install --no-install-recommends ${missing[*]}" 2

echo "== build"
# cargo names the test programs on stderr: "Executable unittests src/lib.rs (path)".
mapfile -t programs < <("${tests[@]}" --no-run 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
[ ${#programs[@]} -gt 0 ] || die "the tests were not built"

mkdir -p "$dir"
cd "$dir"
if [ ! -e linux ]; then
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
  [ -n "$package" ] || die "apt knows no linux-image-cloud-amd64: apt-get update?"
  rm -rf deb && mkdir deb
  (cd deb && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package" && dpkg-deb --extract ./*.deb .)
  mv deb/boot/vmlinuz-* linux
  rm -rf deb
fi

# The initramfs: busybox, the tests, and the libraries that each says it loads.
rm -rf root cd serial.txt
mkdir -p root/{bin,dev,proc,tests,tmp} cd
put() {
  cp "$1" "$2"
  local library
  for library in $(ldd "$1" 2> /dev/null | grep -oE '/[^ ]+'); do
    mkdir -p "root$(dirname "$library")"
    cp -Lu "$library" "root$library"
  done
}
put /bin/busybox root/bin/busybox
for program in "${programs[@]}"; do
  name=$(basename "${program%-*}")
  put "$(cd "$OLDPWD" && realpath "$program")" "root/tests/$name"
  strip "root/tests/$name"
done
cat > root/init <<END
#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t devtmpfs none /dev
exec > /dev/ttyS0 2>&1
export TERNBENCH_TEST_KERNELS='${TERNBENCH_TEST_KERNELS-avx512}' TERNBENCH_TEST_EVERY='${TERNBENCH_TEST_EVERY-37}'
export TERNBENCH_REQUIRE='${TERNBENCH_REQUIRE-avx512bw,avx512vnni,avx512vbmi}' PROPTEST_CASES=3
failed=
for test in /tests/*; do
  echo "== \$test"
  # The memory and MAC probes are about time, which has no meaning here;
  \$test --test-threads 1 --skip peaks_are_the_best $* || failed="\$failed \$test"
done
[ -n "\$failed" ] && echo "FAILED:\$failed" || echo "ALL PASSED"
/bin/busybox sleep 1 # until the serial port has sent it
/bin/busybox poweroff -f
END
chmod +x root/init
(cd root && find . | cpio --quiet -o -H newc | gzip -1 > ../cd/initrd)
cp linux /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 cd/

# Two quirks of Bochs 2.7. Its compacted XSAVE areas are not what Linux expects, so those formats and PKU, which they hold, are
# off. And it lacks the MSR that enables fast strings, on which Linux drops ERMS but not FSRM, and its memmove then runs off.
cat > cd/isolinux.cfg <<'END'
default tests
label tests
 kernel linux
 initrd initrd
 append console=ttyS0 quiet loglevel=3 panic=-1 nokaslr mitigations=off lsm=capability tsc=reliable random.trust_cpu=on lpj=4000000 clearcpuid=fsrm,xsavec,xsaves,pku
END
genisoimage -quiet -o boot.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table cd
cat > bochsrc <<END
display_library: term
config_interface: textconfig
cpu: model=${AVX512_CPU:-tigerlake}, count=1, ips=50000000
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.txt
clock: sync=none, time0=utc
log: /dev/null
panic: action=fatal
error: action=ignore
info: action=ignore
END
echo continue > commands # for Bochs's debugger, which Debian builds in

echo "== boot (Bochs, ${AVX512_CPU:-tigerlake})"
: > serial.txt
TERM=vt100 timeout -s KILL "${AVX512_TIMEOUT:-600}" bochs -q -f bochsrc -rc commands < /dev/null > bochs.txt 2>&1 &
emulator=$!
trap 'pkill -KILL -P $emulator || true' EXIT # its child is Bochs, which ignores milder signals
tail -f --pid=$emulator serial.txt | sed -u 's|\r||'
wait $emulator || true
grep -q '^ALL PASSED' serial.txt || die "the tests failed, or did not end in ${AVX512_TIMEOUT:-600} s (all output: $dir/serial.txt)"
echo "passed under Bochs in $SECONDS s"
