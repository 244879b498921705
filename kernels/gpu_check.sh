#!/usr/bin/env bash
# The proof on a machine with a GPU, in one call of at most ten minutes, and one table of what came of
# it:
#   parity      every row of the parity table on the GPU, those of products of many rows on a GPU of 9.0
#               also by `wgmma` (named so); SCONCE_WGMMA=1 makes all of `golden` and `bars` use it
#   golden      whole models: every fixture of every architecture against its golden answers, in
#               precision `exact` and in the default one, which rounds what tensor cores multiply and
#               keeps keys and values in 8 bits; on a GPU of 9.0 a fixture of each also by `wgmma`
#   memcheck, racecheck
#               the rows with `match` in their names, one at a time, under compute-sanitizer, which is
#               carried too: those that compare an operator with its reference, and launch every kernel
#               (which the gate checks on the emulator). Without it run rows on bits in any company, on
#               extreme inputs and on what is refused, whole models, and the benchmarks
#   bars        the benchmarks of docs/PERFORMANCE.md, each beside what bounds it or a peer
# Executables are built on any machine before, and carried. On a Mac they are built there, and Metal's
# own validation takes the place of the sanitizer.
#
#   kernels/gpu_check.sh --build    build into target/gpu_check, which is then to be carried
#   kernels/gpu_check.sh            run what is there; needs the driver and nothing else
#   kernels/gpu_check.sh --metal    build and run on this Mac, macOS 14 or later
#   kernels/gpu_check.sh NAME..     run the rows with these words in their names; also after --metal
#
# Inputs of rows are drawn anew in each run: the line of `parity` tells the seed, and
# SCONCE_PARITY_SEED=SEED has the same inputs again.
#
# Fails if a row fails, the sanitizer finds an error, or a bar is missed. Logs, and table.md for
# docs/PERFORMANCE.md, are then in target/gpu_found. SCONCE_PARITY_DEVICE names another GPU, as
# `cuda:1`; SCONCE_PEER_PYTHON a Python with PyTorch and Triton. Carried code is for GPUs of 9.0 unless
# SCONCE_CUDA_ARCHITECTURES names others, as kernels/build.rs does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARRIED=target/gpu_check
# What a run leaves.
FOUND=target/gpu_found
# What machines take.
CARRIED_MIB_MAX=64
SECONDS_MAX=600
# What each check may take of these: 570 in all, with both runs of the sanitizer, which makes rows some
# twenty times slower, so that none has less because one before it took its time. The rest is for what
# is unpacked and asked before.
PARITY_SECONDS_MAX=90
GOLDEN_SECONDS_MAX=60
SANITIZER_SECONDS_MAX=105
BARS_SECONDS_MAX=210
EXECUTABLES=(parity golden_gpu gpu_bars)
# The rule that gated delta is held against, in Triton, with what it imports.
PEERS=(fla-core==0.6.0 flash-linear-attention==0.6.0 einops==0.8.2 packaging==25.0)
# compute-sanitizer of the toolkit that builds, for machines without one.
SANITIZER=nvidia-cuda-sanitizer-api==13.0.85
export SCONCE_PARITY_DEVICE=${SCONCE_PARITY_DEVICE:-cuda}
export SCONCE_PARITY_SEED=${SCONCE_PARITY_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
export SCONCE_FIXTURES=$PWD/models/tests/fixtures

fail() {
  echo "gpu_check.sh: $*" >&2
  exit 1
}

# Builds the executables for a feature with what takes cargo's arguments, and puts them in place.
built() {
  local feature=$1 messages
  shift
  mkdir -p "$CARRIED"
  messages=$(mktemp)
  "$@" test --no-run --release --locked --message-format json \
    --package sconce-kernels --package sconce-models \
    --features "sconce-kernels/$feature,sconce-models/$feature" \
    --test parity --test golden_gpu --bench gpu_bars >"$messages"
  local name executable
  for name in "${EXECUTABLES[@]}"; do
    executable=$(python3 -c 'import json, sys
messages = [json.loads(line) for line in open(sys.argv[2]) if line.startswith("{")]
print(next(m["executable"] for m in messages
           if m.get("executable") and m["target"]["name"] == sys.argv[1]))' "$name" "$messages")
    cp "$executable" "$CARRIED/$name"
  done
  rm "$messages"
}

build_metal() {
  built metal cargo
  export SCONCE_PARITY_DEVICE=metal
  # What is built on the machine is not of its ten minutes.
  SECONDS=0
}

# Packages of PyPI in a folder.
fetched() {
  local folder=$1
  shift
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-deps --no-compile --only-binary=:all: --target "$folder" "$@" >&2 ||
    fail "pip cannot install $*: is PyPI within reach?"
}

build() {
  rm -rf "$CARRIED"
  export SCONCE_CUDA_ARCHITECTURES=${SCONCE_CUDA_ARCHITECTURES:-sm_90a}
  built cuda deploy/cuda/build.sh
  # Machine code is most of them, and packs to a quarter.
  (cd "$CARRIED" && strip --strip-debug "${EXECUTABLES[@]}" && gzip -9 "${EXECUTABLES[@]}")
  fetched "$CARRIED/peers" "${PEERS[@]}"
  fetched "$CARRIED/unpacked" "$SANITIZER"
  tar -C "$CARRIED/unpacked/nvidia/cu13" -czf "$CARRIED/sanitizer.tar.gz" bin lib
  rm -r "$CARRIED/unpacked"
  local mib
  mib=$(du --summarize --block-size=1M "$CARRIED" | cut -f 1)
  echo "$CARRIED: $mib MiB, code for $SCONCE_CUDA_ARCHITECTURES"
  du --summarize --block-size=1K "$CARRIED"/*
  ((mib <= CARRIED_MIB_MAX)) || fail "at most $CARRIED_MIB_MAX MiB can be carried, found $mib"
}

# Unpacks what was carried, or says what is missing.
unpack() {
  local name
  mkdir -p "$FOUND"
  for name in "${EXECUTABLES[@]}"; do
    if [[ -e $CARRIED/$name.gz ]]; then
      gzip --decompress --stdout "$CARRIED/$name.gz" >"$FOUND/$name"
      chmod +x "$FOUND/$name"
    elif [[ -x $CARRIED/$name ]]; then
      cp "$CARRIED/$name" "$FOUND/$name"
    fi
    [[ -x $FOUND/$name ]] ||
      fail "$CARRIED/$name is not there; kernels/gpu_check.sh --build makes it"
  done
}

# Finds compute-sanitizer: the machine's own, or the one that was carried.
sanitizer() {
  if ! command -v compute-sanitizer >/dev/null && [[ -e $CARRIED/sanitizer.tar.gz ]]; then
    mkdir -p "$FOUND/sanitizer"
    tar -C "$FOUND/sanitizer" -xzf "$CARRIED/sanitizer.tar.gz"
    export PATH=$PWD/$FOUND/sanitizer/bin:$PATH
  fi
  command -v compute-sanitizer >/dev/null
}

# Ends here where there is no GPU, before a hundred rows say so.
expect_device() {
  if "$FOUND/gpu_bars" --device "$SCONCE_PARITY_DEVICE" --probe; then return; fi
  fail "there is no GPU $SCONCE_PARITY_DEVICE to use here"
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

# Adds a line to the table.
TABLE=()
FAILED=0
line() {
  TABLE+=("$(printf '%-12s %-10s %8s  %s' "$@")")
  ROWS+=("$(printf '| %s | %s | %s | %s |' "$@")")
}
ROWS=()

# Seconds that a check may take of those that are left.
left() {
  local seconds_max=$1 left=$((SECONDS_MAX - SECONDS - 5))
  echo $((left < seconds_max ? left : seconds_max))
}

INVALID_ACCESS='Invalid (device|threadgroup|constant|thread) (load|store)'
# Runs a check for as long as is left, its output in a file, and adds its line to the table.
check() {
  local name=$1 log=$FOUND/$1.log began=$SECONDS seconds status=0 verdict told
  seconds=$(left "$2")
  shift 2
  if ((seconds <= 0)); then
    line "$name" "not run" 0 "no time left"
    FAILED=1
    return
  fi
  limited "$seconds" "$@" >"$log" 2>&1 || status=$?
  # Metal's validation goes on after what it finds.
  if ((status == 0)) && grep -qE "$INVALID_ACCESS" "$log"; then status=1; fi
  case $status in
    0) verdict=passed ;;
    124 | 137 | 142) verdict="timed out" ;;
    *) verdict=FAILED ;;
  esac
  ((status == 0)) || FAILED=1
  told=$(grep -E '^test result:|^bars: |ERROR SUMMARY' "$log" | sed 's/; [0-9]* ignored.*//' | paste -s -d ' ' - || true)
  [[ $name != parity ]] || told+=" seed $SCONCE_PARITY_SEED"
  line "$name" "$verdict" $((SECONDS - began)) "$told"
}

# The benchmarks, with peers where there is a Python that has what they need.
bars() {
  local seconds arguments=(--device "$SCONCE_PARITY_DEVICE" --table "$FOUND/bars.md")
  local python=${SCONCE_PEER_PYTHON:-python3}
  seconds=$(left "$BARS_SECONDS_MAX")
  # No part begins in the last quarter, and no peer is waited for in the last eighth, so that what has
  # begun can end.
  arguments+=(--seconds $((seconds > 0 ? seconds * 3 / 4 : 0)))
  if [[ -d $CARRIED/peers ]] && command -v "$python" >/dev/null; then
    arguments+=(--peer "$python" benches/peers/gpu_peer.py)
    export PYTHONPATH=$PWD/$CARRIED/peers${PYTHONPATH:+:$PYTHONPATH}
  fi
  rm -f "$FOUND/bars.md"
  check bars "$BARS_SECONDS_MAX" "$FOUND/gpu_bars" "${arguments[@]}"
}

# What was found, as text, and as Markdown in a file.
report() {
  local log
  {
    echo "Machine: ${MACHINE:-unknown}. Found by \`kernels/gpu_check.sh\` in $SECONDS s."
    printf '\n| check | result | seconds | told |\n|---|---|---|---|\n'
    printf '%s\n' "${ROWS[@]}"
    if [[ -e $FOUND/bars.md ]]; then
      echo
      cat "$FOUND/bars.md"
    fi
  } >"$FOUND/table.md"
  printf '\n%-12s %-10s %8s  %s\n' check result seconds told
  printf '%s\n' "${TABLE[@]}"
  if [[ -e $FOUND/bars.log ]]; then
    echo
    cat "$FOUND/bars.log"
  fi
  for log in "$FOUND"/*.log; do
    grep -hE "^test .*FAILED\$|$INVALID_ACCESS|========= (Invalid|Error: Race|Race|Program hit)" "$log" | sort | uniq -c |
      sort -rn | head -n 40 || true
  done
  printf '\n%s has this as Markdown, and %s logs\n' "$FOUND/table.md" "$FOUND"
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
rm -rf "$FOUND"
unpack
MACHINE=$(uname -sm)
if command -v nvidia-smi >/dev/null; then
  MACHINE=$(nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader | head -n 1)
fi
echo "$MACHINE"
expect_device

# Sources are not carried: what reads them is for the machine that has them.
UNCARRIED=(--skip every_operator_has_a_reference_and_rows_here)
# Without names, the sanitizer has the rows that compare with a reference: it takes its time.
SANITIZED=("$@")
(($#)) || SANITIZED=(match)
check parity "$PARITY_SECONDS_MAX" "$FOUND/parity" "${UNCARRIED[@]}" "$@"
if ((! $#)); then
  check golden "$GOLDEN_SECONDS_MAX" "$FOUND/golden_gpu"
  bars
fi
if [[ $METAL ]]; then
  # Wrong calls end the process; what kernels read and write outside of buffers is told.
  check validation "$SECONDS_MAX" env MTL_DEBUG_LAYER=1 MTL_SHADER_VALIDATION=1 \
    MTL_SHADER_VALIDATION_REPORT_TO_STDERR=1 "$FOUND/parity" --nocapture "${SANITIZED[@]}"
elif sanitizer; then
  # Reads and writes outside of what was allocated and of shared memory; then races in that.
  for tool in memcheck racecheck; do
    # The rows on threads of their own would wait for one another's launches.
    check "$tool" "$SANITIZER_SECONDS_MAX" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$FOUND/parity" --test-threads 1 "${SANITIZED[@]}"
  done
else
  line sanitizer "not run" 0 "no compute-sanitizer here"
fi
report
exit "$FAILED"
