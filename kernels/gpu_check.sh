#!/usr/bin/env bash
# The proof on a machine with a GPU, in one call of at most ten minutes: every row of the parity table
# on the GPU, as it is and under what finds accesses outside of memory, and a table of what came of
# it. That is compute-sanitizer, where it is installed, for NVIDIA's GPUs: executables are built on any
# machine before, and carried. On a Mac it is Metal's own validation, after a build there.
#
#   kernels/gpu_check.sh --build    build into target/gpu_check, which is then to be carried
#   kernels/gpu_check.sh            run what is there; needs the driver and nothing else
#   kernels/gpu_check.sh --metal    build and run on this Mac, macOS 14 or later
#   kernels/gpu_check.sh NAME..     run the rows with these words in their names; also after --metal
#
# Fails if a row fails, or the sanitizer finds an error. SCONCE_PARITY_DEVICE names another GPU, as
# `cuda:1`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARRIED=target/gpu_check
# What machines take.
CARRIED_MIB_MAX=64
SECONDS_MAX=600
# Of these, for the rows alone: the sanitizer makes them some twenty times slower.
PARITY_SECONDS_MAX=180
export SCONCE_PARITY_DEVICE=${SCONCE_PARITY_DEVICE:-cuda}

# Builds the rows for a feature with what takes cargo's arguments; says where they are.
built() {
  local feature=$1
  shift
  "$@" test --no-run --locked --message-format json \
    --package sconce-kernels --features "$feature" --test parity |
    python3 -c 'import json, sys
messages = [json.loads(line) for line in sys.stdin if line.startswith("{")]
print(next(m["executable"] for m in messages if m.get("executable")))'
}

build_metal() {
  local executable
  executable=$(built metal cargo)
  mkdir -p "$CARRIED"
  cp "$executable" "$CARRIED/parity"
  export SCONCE_PARITY_DEVICE=metal
  # What is built on the machine is not of its ten minutes.
  SECONDS=0
}

build() {
  local executable
  executable=$(built cuda deploy/cuda/build.sh)
  mkdir -p "$CARRIED"
  strip --strip-debug -o "$CARRIED/parity" "$executable"
  local mib
  mib=$(du --summarize --block-size=1M "$CARRIED" | cut -f 1)
  echo "$CARRIED: $mib MiB"
  if ((mib > CARRIED_MIB_MAX)); then
    echo "gpu_check.sh: at most $CARRIED_MIB_MAX MiB can be carried, found $mib" >&2
    return 1
  fi
}

# Runs a command, and ends it after as many seconds. A Mac has no `timeout`: there the alarm ends it.
limited() {
  local seconds=$1
  shift
  if command -v timeout >/dev/null; then
    timeout --kill-after 5 "$seconds" "$@"
  else
    perl -e 'alarm shift; exec @ARGV or die "$ARGV[0]: $!"' "$seconds" "$@"
  fi
}

# Runs a check for as long as is left, its output in a file, and adds its line to the table.
TABLE=()
FAILED=0
INVALID_ACCESS='Invalid (device|threadgroup|constant|thread) (load|store)'
check() {
  local name=$1 seconds_max=$2 log=$CARRIED/$1.log began=$SECONDS left status=0 verdict
  shift 2
  left=$((SECONDS_MAX - SECONDS - 5))
  ((left < seconds_max)) || left=$seconds_max
  if ((left <= 0)); then
    TABLE+=("$(printf '%-24s %-10s %8s  %s' "$name" "not run" 0 "no time left")")
    FAILED=1
    return
  fi
  limited "$left" "$@" >"$log" 2>&1 || status=$?
  # Metal's validation goes on after what it finds.
  if ((status == 0)) && grep -qE "$INVALID_ACCESS" "$log"; then status=1; fi
  case $status in
    0) verdict=passed ;;
    124 | 137 | 142) verdict="timed out" ;;
    *) verdict=FAILED ;;
  esac
  ((status == 0)) || FAILED=1
  local told
  told=$(grep -E '^test result:|ERROR SUMMARY' "$log" | sed 's/; [0-9]* ignored.*//' | paste -s -d ' ' - || true)
  TABLE+=("$(printf '%-24s %-10s %8s  %s' "$name" "$verdict" $((SECONDS - began)) "$told")")
}

METAL=
case ${1:-} in
  --build)
    build
    exit
    ;;
  --metal)
    shift
    METAL=1
    build_metal
    ;;
esac
[[ -x $CARRIED/parity ]] || {
  echo "gpu_check.sh: $CARRIED/parity is not there; kernels/gpu_check.sh --build makes it" >&2
  exit 1
}
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader
fi

# Without names, the sanitizer has the rows that compare with a reference: it takes its time.
SANITIZED=("$@")
(($#)) || SANITIZED=(match)
check parity "$PARITY_SECONDS_MAX" "$CARRIED/parity" "$@"
if [[ $METAL ]]; then
  # Wrong calls end the process; what kernels read and write outside of buffers is told.
  check validation "$SECONDS_MAX" env MTL_DEBUG_LAYER=1 MTL_SHADER_VALIDATION=1 \
    MTL_SHADER_VALIDATION_REPORT_TO_STDERR=1 "$CARRIED/parity" --nocapture "${SANITIZED[@]}"
elif command -v compute-sanitizer >/dev/null; then
  # Reads and writes outside of what was allocated and of shared memory; then races in that.
  for tool in memcheck racecheck; do
    # The rows on threads of their own would wait for one another's launches.
    check "$tool" "$SECONDS_MAX" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$CARRIED/parity" --test-threads 1 "${SANITIZED[@]}"
  done
fi

printf '%-24s %-10s %8s  %s\n' check result seconds told
printf '%s\n' "${TABLE[@]}"
for log in "$CARRIED"/*.log; do
  grep -hE "^test .*FAILED\$|$INVALID_ACCESS|========= (Invalid|Error: Race|Race|Program hit)" "$log" | sort | uniq -c |
    sort -rn | head -n 40 || true
done
exit "$FAILED"
