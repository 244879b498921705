#!/usr/bin/env bash
# The SMG gateway's own client against sconce processes: formats, lints, builds and runs the tests of
# this folder, in target/conformance. Needs a built `sconce` (its path as the first argument, or
# target/debug/sconce), SmolLM2 in .models (tests/reference/fetch.sh brings it), and python3 with pip:
# the client's build script wants protoc, which grpcio-tools has. Further arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

GRPCIO_TOOLS=1.85.1
MODEL=$PWD/.models/SmolLM2-135M-Instruct.Q4_1.gguf

sconce=$(realpath "${1:-target/debug/sconce}")
[[ -e $MODEL ]] || bash tests/reference/fetch.sh

# The gate has grpcio-tools for its own tools already.
tools=$PWD/target/tools
if ! PYTHONPATH=$tools python3 -c 'import grpc_tools' 2>/dev/null; then
  tools=$PWD/target/tools-conformance
  if [[ ! -e $tools/.grpcio-tools-$GRPCIO_TOOLS ]]; then
    rm -rf "$tools"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
      --target "$tools" "grpcio-tools==$GRPCIO_TOOLS"
    touch "$tools/.grpcio-tools-$GRPCIO_TOOLS"
  fi
fi

cd tests/conformance
cargo fmt --check
export CARGO_TARGET_DIR=../../target/conformance PROTOC=$PWD/protoc PYTHONPATH=$tools
# Clippy as the compiler of this package: its lints, without a second build of what it depends on.
export RUSTC_WORKSPACE_WRAPPER=clippy-driver RUSTFLAGS="-D warnings"
SCONCE_BIN=$sconce SCONCE_TEST_MODEL=$MODEL cargo test --locked --quiet "${@:2}"
