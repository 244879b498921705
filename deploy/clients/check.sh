#!/usr/bin/env bash
# Runs the example clients against servers with the simulated model, and with SmolLM2 where its checkpoint
# is given; then every RPC from Python, and what the service config promises.
# Usage: deploy/clients/check.sh PYTHON SCONCE [CHECKPOINT]
#   PYTHON      a Python that has grpcio-tools, grpcio-health-checking and grpcio-reflection
#   SCONCE      the program
#   CHECKPOINT  SmolLM2-135M-Instruct, as tests/reference/fetch.sh puts it
# The client for Node runs where there is Node and npm can install what it needs; into
# target/clients/node. That for Go runs where SCONCE_GO_CLIENT names its binary.
set -euo pipefail
python=$1
sconce=$(realpath "$2")
checkpoint=${3:+$(realpath "$3")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

scratch=$(mktemp -d)
servers=()
clean_up() {
  local server
  for server in "${servers[@]}"; do
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || true
  done
  rm -rf "$scratch"
}
trap clean_up EXIT

# Starts a server with models, NAME=PATH each; sets `address` and `server`.
serve() {
  local models=() model
  for model in "$@"; do
    models+=(--model "$model")
  done
  local out="$scratch/out.${#servers[@]}" log="$scratch/log.${#servers[@]}"
  mkfifo "$out"
  SCONCE__SERVER__WITHDRAWAL=0s "$sconce" serve --listen 127.0.0.1:0 "${models[@]}" >"$out" 2>"$log" &
  server=$!
  servers+=("$server")
  read -r _ _ address <"$out" || { cat "$log" >&2; exit 1; }
  local service=liveness
  (($# == 0)) || service=readiness
  "$sconce" health --wait --timeout 120s --service "$service" --server "$address" >/dev/null
}

# Runs a client, which must print something that matches a pattern.
client() {
  local pattern=$1 said
  shift
  said=$("$@") || { echo "check.sh: $* failed" >&2; exit 1; }
  if ! grep -qE -- "$pattern" <<<"$said"; then
    printf 'check.sh: %s printed no "%s" but:\n%s\n' "$*" "$pattern" "$said" >&2
    exit 1
  fi
}

install_node_client() {
  local folder=target/clients/node
  if ! command -v npm >/dev/null; then
    echo "the client for Node was not run: no npm here"
    return 1
  fi
  cmp -s deploy/clients/node/package-lock.json "$folder/installed" && return
  rm -rf "$folder"
  mkdir -p "$folder"
  cp deploy/clients/node/package.json deploy/clients/node/package-lock.json "$folder"
  npm ci --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
    2>"$scratch/npm" || { cat "$scratch/npm" >&2; exit 1; }
  # Last, so that what was broken off is begun again.
  cp deploy/clients/node/package-lock.json "$folder/installed"
}

run_clients() {
  # This example has the default address written into it.
  sed "s/127\.0\.0\.1:50051/$address/" deploy/clients/complete.py >"$scratch/complete.py"
  client . "$python" "$scratch/complete.py"
  client 'new; FINISH_REASON_(STOP|LENGTH)' "$python" deploy/clients/chat.py "$address"
  client '^readiness SERVING' "$python" deploy/clients/health.py "$address"
  client '^kept [0-9]+ tokens' "$python" deploy/clients/snapshots.py "$address"
  client '^7 ' "$python" deploy/clients/balanced.py "ipv4:$address"
  if [[ -n $node ]]; then
    client 'new; FINISH_REASON' env NODE_PATH=target/clients/node/node_modules \
      "$node" deploy/clients/node/complete.js "$address"
  fi
  if [[ -n ${SCONCE_GO_CLIENT:-} ]]; then
    client 'new; FINISH_REASON' "$SCONCE_GO_CLIENT" -address "$address" \
      -config deploy/clients/service_config.json
  fi
}

if [[ -z ${SCONCE_GO_CLIENT:-} ]]; then
  echo "the client for Go was not run: SCONCE_GO_CLIENT names no binary of it"
fi
node=""
install_node_client && node=node

serve smollm2=sim:
run_clients
echo "the examples run with the simulated model"
"$python" deploy/clients/check_all.py "$address" smollm2
if [[ -n $checkpoint ]]; then
  serve "smollm2=$checkpoint"
  run_clients
  echo "the examples run with SmolLM2"
fi

serve
c=$address
serve shared=sim: b=sim:
b=$address
serve shared=sim: a=sim:
"$python" deploy/clients/check_balanced.py "$address" "$b" "$c" "$server"
SCONCE__ENGINE__SEQUENCES_MAX=1 SCONCE__ENGINE__WAITING_MAX=1 serve full=sim:decode_us=5000,context=32768
"$python" deploy/clients/check_retries.py "$address"

# README shows the same client.
readme=$(sed -n '/^```python$/,/^```$/p' README.md | sed '1d;$d')
if [[ $(tail -n +2 deploy/clients/complete.py) != "$readme" ]]; then
  echo "the Python client of README.md is not deploy/clients/complete.py" >&2
  exit 1
fi
