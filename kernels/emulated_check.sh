#!/usr/bin/env bash
# Runs the CUDA and Metal kernels on the CPU: the emulator's own tests, every operator against its
# reference, and the table once more for each language as a machine with such a GPU runs it: all tensors
# on the GPU, and nothing else to run on (SCONCE_PARITY_DEVICE=emulated:cuda and emulated:metal). Fails,
# too, if the rows with `match` in their names, those that compare with references, do not launch every
# kernel of the sources: gpu_check.sh has the sanitizer run these alone. Needs cargo and a C++17
# compiler; no GPU. Other arguments go to the kernels' tests, as a part of their names: kernels that
# these do not launch are left at that, and so are machines with a GPU without --dry.
#
#   kernels/emulated_check.sh           as they are
#   kernels/emulated_check.sh --dry     the table as such machines run it, alone
#   kernels/emulated_check.sh --asan    under AddressSanitizer and UndefinedBehaviorSanitizer, which
#                                       stop at accesses outside of tensors and of shared memory, at
#                                       vector loads that are not aligned and at shifts by too much;
#                                       with gcc and its libasan and libubsan, on Linux
#   kernels/emulated_check.sh --tools   say whether what --asan needs is there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == --tools || ${1:-} == --asan ]]; then
  for library in libasan.so libubsan.so; do
    # gcc gives the path of a library that it has, and the name alone of one that it lacks.
    if [[ $(uname) != Linux || $("${CXX:-g++}" "-print-file-name=$library") != /* ]]; then
      echo "sanitizers of kernels: not found: $library of ${CXX:-g++}" >&2
      exit 1
    fi
  done
  [[ $1 == --asan ]] || exit 0
fi
OWN=() KERNELS=(--features emulate) DRY=1
if [[ ${1:-} == --asan ]]; then
  shift
  # Dry runs are for mistakes of rows: their kernels make the same accesses as without.
  OWN=(--features asan) KERNELS=(--features emulate-asan) DRY=
  export UBSAN_OPTIONS=print_stacktrace=1
  # A kernel that the emulator stops, as tests of mistakes have it do, leaves what its stacks held.
  export ASAN_OPTIONS=detect_leaks=0
fi
PARITY=(cargo test --quiet --locked --package sconce-kernels "${KERNELS[@]}" --test parity --)
dry() {
  local language
  for language in cuda metal; do
    SCONCE_PARITY_DEVICE=emulated:$language "${PARITY[@]}" "$@"
  done
}
if [[ ${1:-} == --dry ]]; then
  shift
  dry "$@"
  exit
fi
cargo test --quiet --locked --package sconce-gpu-emulator --tests "${OWN[@]}"
if (($#)); then
  "${PARITY[@]}" "$@"
  exit
fi
LAUNCHED=$PWD/target/launched_kernels
mkdir -p target
rm -f "$LAUNCHED"
SCONCE_LAUNCHED=$LAUNCHED "${PARITY[@]}" match
cargo run --quiet --locked --package sconce-gpu-emulator "${OWN[@]}" --example never_launched "$LAUNCHED"
"${PARITY[@]}" --skip match
[[ ! $DRY ]] || dry
