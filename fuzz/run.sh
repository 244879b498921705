#!/usr/bin/env bash
# Fuzzes every target in turn, or those named: `fuzz/run.sh SECONDS [TARGET...]`. Needs the toolchain
# of the gate and a C++ compiler: libFuzzer comes with a crate, and RUSTC_BOOTSTRAP lets a stable
# compiler instrument. What was found lies in fuzz/artifacts, what was learned in fuzz/corpus. Ends
# with failure at the end if any target found something.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Longest input, and most memory of the program, in MiB; longest time of one input, in seconds.
BYTES_MAX=4096
MEMORY_MAX=3072
INPUT_TIME_MAX=60

if [[ $# -lt 1 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: fuzz/run.sh SECONDS [TARGET...]" >&2
  exit 2
fi
seconds=$1
shift

host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
# As cargo-fuzz sets them: counters of edges, traces of comparisons, and address checks. With the
# target named, build scripts are left alone.
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
(cd libfuzzer && cargo build --release --locked --quiet --target "$host")
built=libfuzzer/target/$host/release

# Leaks are left alone: the server of the process lives until its end.
export ASAN_OPTIONS=detect_leaks=0
mapfile -t all < <("$built/seeds" corpus/seeds)
targets=("${@:-${all[@]}}")
failed=()
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  printf '== %s, %s s\n' "$target" "$seconds"
  SCONCE_FUZZ_TARGET=$target "$built/sconce-libfuzzer" "corpus/$target" "corpus/seeds/$target" \
    -max_total_time="$seconds" -max_len="$BYTES_MAX" -rss_limit_mb="$MEMORY_MAX" \
    -timeout="$INPUT_TIME_MAX" -artifact_prefix="artifacts/$target/" -print_final_stats=1 \
    2>"artifacts/$target/log" || failed+=("$target")
  grep -E '^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)' \
    "artifacts/$target/log" || tail -n 30 "artifacts/$target/log"
done
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "found something: ${failed[*]}; see fuzz/artifacts" >&2
  exit 1
fi
