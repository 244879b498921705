#!/usr/bin/env bash
# The SMG gateway's own client (crate smg-grpc-client) against a running sconce with a simulated model.
# Not part of tests/run_all.sh: the client's 230 crates take minutes to build, and tests/gateway/run.sh
# has the same client inside the gateway. Needs a built `sconce` and the gate's tools in target/tools,
# whose protoc the client's build asks for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sconce=$(realpath "${1:-target/debug/sconce}")
scratch=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT

if ! command -v protoc >/dev/null; then
  printf '#!/bin/sh\nPYTHONPATH=%q exec python3 -m grpc_tools.protoc "$@"\n' \
    "$PWD/target/tools" >"$scratch/protoc"
  chmod +x "$scratch/protoc"
  export PROTOC=$scratch/protoc
fi

port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$sconce" serve --listen "127.0.0.1:$port" --model sim=sim:decode_us=1000,context=1000000 \
  >"$scratch/log" 2>&1 &
server=$!
"$sconce" health --wait --timeout 60s --server "http://127.0.0.1:$port" >/dev/null

SCONCE_ENDPOINT=grpc://127.0.0.1:$port CARGO_TARGET_DIR=$PWD/target/conformance \
  cargo test --quiet --manifest-path tests/conformance/Cargo.toml
