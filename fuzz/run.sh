#!/usr/bin/env bash
# Targets under libFuzzer, guided by the coverage of this workspace's crates. The stable compiler is
# enough, and a compiler of C++ for libFuzzer itself; AddressSanitizer would need a nightly one.
#
#   fuzz/run.sh TARGET SECONDS   fuzzes one target
#   fuzz/run.sh --all SECONDS    fuzzes all, one after the other, each so long
#   fuzz/run.sh TARGET FILE      runs one input, such as one that was found
#
# Prints a line for each target. What an input has found is made small and left in
# fuzz/artifacts/TARGET; the script then ends with an error. Inputs that reach something new are kept
# in target/fuzz/corpus, for the next time. FUZZ_NICE=19 leaves the machine to others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Of one input: more is a finding. Seconds are those of the clock, on a machine with other work.
TIMEOUT_SECONDS=60
RSS_LIMIT_MB=2048
INPUT_BYTES_MAX=65536
# How long an input that was found is made smaller.
MINIMIZE_SECONDS=60

BUILD=$PWD/target/fuzz
BINARY=$BUILD/fuzz/sconce-fuzz

usage() {
  sed -n '5,7s/^# *//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

build() {
  RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/instrument CARGO_TARGET_DIR=$BUILD cargo build --quiet \
    --locked --package sconce-fuzz --features libfuzzer --bin sconce-fuzz --profile fuzz
}

# Runs the binary on a target, with temporary files in memory where there is such a place.
run() {
  local target=$1
  shift
  local temporary=${TMPDIR:-/tmp}
  [[ -d /dev/shm && -w /dev/shm ]] && temporary=/dev/shm
  TMPDIR=$temporary SCONCE_FUZZ_TARGET=$target nice -n "${FUZZ_NICE:-0}" "$BINARY" \
    "-timeout=$TIMEOUT_SECONDS" "-rss_limit_mb=$RSS_LIMIT_MB" "-max_len=$INPUT_BYTES_MAX" "$@"
}

# The last number behind `$1` in the log `$2`, of the lines that match `$3`.
number() {
  sed -nE "/$3/s/.*$1 *([0-9]+).*/\1/p" "$2" | tail -n 1
}

# Makes the input `$2` smaller, as long as the target `$1` fails on it.
minimize() {
  local log=$BUILD/logs/$1.minimize
  run "$1" -minimize_crash=1 "-max_total_time=$MINIMIZE_SECONDS" "-exact_artifact_path=$2.small" \
    "$2" >"$log" 2>&1 || true
  # Nothing is written where nothing smaller fails.
  if [[ -s $2.small ]]; then
    mv "$2.small" "$2"
  fi
  rm -f "$2.small"
  echo "found: $2" >&2
  run "$1" "$2" 2>&1 | grep -vE '^(INFO|WARNING|NOTE|Running)' | head -n 12 >&2 || true
}

fuzz() {
  local target=$1 seconds=$2
  local corpus=$BUILD/corpus/$target artifacts=fuzz/artifacts/$target log=$BUILD/logs/$target
  local found=0 cpu
  mkdir -p "$corpus" "$artifacts" "$BUILD/logs"
  local mark
  mark=$(mktemp)
  TIMEFORMAT='%U %S'
  { time SCONCE_FUZZ_SEEDS=$corpus run "$target" -print_final_stats=1 \
    "-max_total_time=$seconds" "-artifact_prefix=$artifacts/" "$corpus" >"$log" 2>&1 || found=1; } \
    2>"$mark.time"
  cpu=$(awk '{ printf "%d", $1 + $2 }' "$mark.time")
  printf '| `%s` | %s | %s | %s | %s | %s | %s |\n' "$target" "$cpu" \
    "$(number 'units:' "$log" 'stat::number_of_executed_units')" \
    "$(number 'cov:' "$log" 'INITED')" "$(number 'cov:' "$log" 'cov:')" \
    "$(find "$corpus" -type f | wc -l)" "$found"
  if ((found)); then
    local input
    while read -r input; do
      minimize "$target" "$input"
    done < <(find "$artifacts" -type f -newer "$mark")
  fi
  rm -f "$mark" "$mark.time"
  return $found
}

targets() {
  sed -nE 's/.*name: "([a-z_0-9]+)".*/\1/p' fuzz/src/lib.rs
}

[[ $# -eq 2 ]] || usage
build
if [[ $1 != --all && -f $2 ]]; then
  run "$1" "$2"
  exit
fi
[[ $2 =~ ^[1-9][0-9]*$ ]] || usage
chosen=("$1")
if [[ $1 == --all ]]; then
  mapfile -t chosen < <(targets)
fi
printf '| target | CPU seconds | executions | edges of the seeds | edges | inputs kept | findings |\n'
printf '|---|---|---|---|---|---|---|\n'
status=0
for target in "${chosen[@]}"; do
  fuzz "$target" "$2" || status=1
done
exit $status
