#!/usr/bin/env bash
# Runs the kernels' tests on an emulated aarch64 processor, on every level that it has, from an
# x86-64 Debian or Ubuntu. Optional: needs cargo, qemu-aarch64 and aarch64-linux-gnu-gcc (packages
# qemu-user and gcc-aarch64-linux-gnu), and apt-get for a compiler with a standard library of
# aarch64, which it unpacks into target/aarch64 (some 700 MB; nothing is installed). A toolchain of
# one's own is used instead where RUSTC names one. Takes some 8 minutes of one core the first time.
#
#   kernels/aarch64_check.sh            run the tests
#   kernels/aarch64_check.sh --tools    say whether what it needs is there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TARGET=aarch64-unknown-linux-gnu
TOOLS=$PWD/target/aarch64
MISSING=()
for tool in cargo qemu-aarch64 aarch64-linux-gnu-gcc; do
  command -v "$tool" >/dev/null || MISSING+=("$tool")
done
[[ -n ${RUSTC:-} ]] || command -v apt-get >/dev/null || MISSING+=("apt-get or RUSTC")
if (( ${#MISSING[@]} )); then
  echo "aarch64 check: not found: ${MISSING[*]}" >&2
  exit 1
fi
[[ ${1:-} == --tools ]] && exit 0

# Debian's newest compiler and its standard library for aarch64, which are built from one source;
# the lists of that architecture's packages stay apart from the system's.
unpack_compiler() {
  local apt="$TOOLS/apt" debs="$TOOLS/debs"
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$debs"
  touch "$apt/status"
  local other=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$apt"
    -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
  apt-get "${other[@]}" -qq update
  local release llvm
  release=$(apt-cache policy rustc-web | sed -n 's/.*Candidate: \([0-9]*\.[0-9]*\)\..*/\1/p')
  llvm=$(apt-cache depends "libstd-rust-web-$release" |
    sed -n 's/.*Depends: \(libllvm[0-9]*\).*/\1/p')
  (
    cd "$debs"
    apt-get -qq download rustc-web "libstd-rust-web-$release" "$llvm"
    apt-get "${other[@]}" -qq download libstd-rust-web-dev
    # Build scripts and macros run here, so the library of this machine is needed as well.
    apt-get -qq download libstd-rust-web-dev
    for deb in *.deb; do dpkg -x "$deb" "$TOOLS"; done
  )
  rm -r "$apt" "$debs"
}

if [[ -z ${RUSTC:-} ]]; then
  export RUSTC=$TOOLS/usr/bin/rustc
  export LD_LIBRARY_PATH=$TOOLS/usr/lib/x86_64-linux-gnu
  [[ -x $RUSTC ]] || unpack_compiler
fi
export CARGO_TARGET_DIR=$TOOLS/target
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

# Tests on a processor, which must have just the levels that are named.
tests_on() {
  local processor=$1 levels=$2
  shift 2
  echo "== $processor: $levels"
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $processor -L /usr/aarch64-linux-gnu"
  # Without optimisation, a dependency's 16-bit arithmetic does not pass the assembler.
  local cargo=(cargo --config profile.dev.package.gemm-f16.opt-level=3
    test --quiet --target "$TARGET" --package sconce-kernels)
  "${cargo[@]}" --lib
  SCONCE_LEVELS=$levels "${cargo[@]}" --test parity -- "$@"
}

# Processors that lack instructions come first: they would stop at one of a higher level. There the
# comparisons with references are enough; emulation is slow.
tests_on cortex-a72 "portable neon" levels match
tests_on neoverse-n1 "portable neon neon-dotprod" levels match
tests_on max "portable neon neon-dotprod neon-i8mm"
