#!/usr/bin/env bash
# Runs the kernels' tests under AddressSanitizer, which stops at reads and writes outside of what
# was allocated, and finds leaks. Needs a nightly toolchain (`rustup toolchain install nightly`);
# builds into target/sanitize. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "sanitizers: no nightly toolchain found" >&2
  exit 1
fi
HOST=$(rustc -vV | sed -n 's/^host: //p')
# With --target, so that build scripts and macros are not instrumented.
RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/sanitize} \
  cargo +nightly test --target "$HOST" --package sconce-kernels --lib --tests "$@"
