#!/usr/bin/env bash
# Compiles every CUDA source for the GPUs that machine code is made for, warnings being errors, and
# prints what each kernel takes of a multiprocessor. Fails where a kernel does not compile, spills
# registers, asks for more shared memory than a block gets, or has products of its own (wgmma) that
# the compiler waits for one by one. What has not changed is not compiled again. Needs no GPU and what cuda_toolkit.sh needs.
#
#   kernels/cuda_check.sh            check all
#   kernels/cuda_check.sh NAME..     check the sources with these names, as `matmul`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# What build.rs makes machine code for.
ARCHITECTURES=(sm_80 sm_90a sm_120)
# Bytes that a thread may write to memory because registers ran out. A few outside of any loop cost
# nothing, and save a block beside: 28 are where a block's own numbers wait in the kernels for few
# pairs of an expert, for 8.0. More are a kernel whose blocks are too large.
SPILL_BYTES_MAX=32
# Static shared memory of a block; more is dynamic, and asked for at launch.
SHARED_BYTES_MAX=49152
DONE=../target/cuda/check

CUDA=$(./cuda_toolkit.sh)
mkdir -p "$DONE"
# Headers are few and small: when one changes, all are compiled again.
common=$({
  cat nvcc.options cuda_check.sh
  find src -name '*.cuh' -exec sha256sum {} + | sort
  "$CUDA/bin/nvcc" --version
} | sha256sum)

# Compiles a source for an architecture, unless that is done; what ptxas says is the result.
compile() {
  local source=$1 architecture=$2 name digest log
  name=$(basename "$source" .cu)
  digest=$({ echo "$common"; cat "$source"; } | sha256sum | cut -c 1-16)
  log=$DONE/$name.$architecture.$digest
  [[ -e $log ]] && return
  rm -f "$DONE/$name.$architecture".*
  if "$CUDA/bin/nvcc" --options-file nvcc.options -arch="$architecture" -cubin -Xptxas -v \
    -Werror all-warnings -o /dev/null "$source" >"$log.failed" 2>&1; then
    mv "$log.failed" "$log"
  else
    echo "$source does not compile for $architecture:" >&2
    cat "$log.failed" >&2
    return 1
  fi
}

# One line for each kernel of a log: name, registers, shared bytes, stack bytes, spilled bytes.
kernels_of() {
  awk '
    /Compiling entry function/ { split($0, quoted, "\x27"); name = quoted[2] }
    /bytes stack frame/ { stack = $1; spilled = $5 > $9 ? $5 : $9 }
    /Used [0-9]+ registers/ {
      registers = shared = 0
      for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^registers/) registers = $i
        if ($(i + 2) ~ /^smem/) shared = $i
      }
      print name, registers, shared, stack, spilled
    }' "$1"
}

export CUDA DONE common
export -f compile
# The largest first: as a rule they take longest, and none should be left alone at the end.
sources=()
while read -r source; do
  (($# == 0)) || [[ " $* " == *" $(basename "$source" .cu) "* ]] || continue
  sources+=("$source")
done < <(find src -name '*.cu' -printf '%s %p\n' | sort -nr | cut -d ' ' -f 2-)
((${#sources[@]})) || {
  echo "cuda_check.sh: no source is named ${*:-*}.cu" >&2
  exit 1
}
failed=0
for source in "${sources[@]}"; do
  for architecture in "${ARCHITECTURES[@]}"; do echo "$source $architecture"; done
done | xargs -P "$(nproc)" -L 1 bash -c 'set -euo pipefail; compile "$@"' compile || failed=1

format="%-44s %-7s %9s %9s %6s %6s\n"
# shellcheck disable=SC2059
printf "$format" kernel for registers shared stack spilled
for source in "${sources[@]}"; do
  for architecture in "${ARCHITECTURES[@]}"; do
    log=$(echo "$DONE/$(basename "$source" .cu).$architecture".*)
    [[ -e $log && $log != *.failed ]] || continue
    if grep -E "wgmma.* serialized" "$log"; then
      echo "cuda_check.sh: $source for $architecture: registers of a product are used under way" >&2
      failed=1
    fi
    while read -r kernel registers shared stack spilled; do
      # shellcheck disable=SC2059
      printf "$format" "$kernel" "$architecture" "$registers" "$shared" "$stack" "$spilled"
      if ((spilled > SPILL_BYTES_MAX || shared > SHARED_BYTES_MAX)); then
        echo "cuda_check.sh: $kernel for $architecture: at most $SPILL_BYTES_MAX bytes spilled and" \
          "$SHARED_BYTES_MAX static shared bytes, found $spilled and $shared" >&2
        failed=1
      fi
    done < <(kernels_of "$log")
  done
done
exit "$failed"
