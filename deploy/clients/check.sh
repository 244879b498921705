#!/usr/bin/env bash
# Runs the example clients against servers with the simulated model, and with SmolLM2 where its checkpoint
# is given; then every RPC from Python, and what the service config promises.
# Usage: deploy/clients/check.sh PYTHON SCONCE [CHECKPOINT]
#   PYTHON      a Python that has grpcio-tools, grpcio-health-checking and grpcio-reflection
#   SCONCE      the program
#   CHECKPOINT  SmolLM2-135M-Instruct, as tests/reference/fetch.sh puts it
# Needs openssl, for the certificates of a server that wants TLS and a token.
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

# Starts a server with models, NAME=PATH each, as the environment says; sets `address` and `server`. What
# is shown to it is in `shown`.
shown=()
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
  local uri=$address
  ((${#shown[@]} == 0)) || uri=https://$address
  "$sconce" health --wait --timeout 120s --service "$service" --server "$uri" "${shown[@]}" >/dev/null
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

# Runs a client that must fail and say something that matches a pattern.
refused() {
  local pattern=$1 said
  shift
  if said=$("$@" 2>&1); then
    echo "check.sh: $* was let in" >&2
    exit 1
  fi
  if ! grep -qE -- "$pattern" <<<"$said"; then
    printf 'check.sh: %s did not say "%s" but:\n%s\n' "$*" "$pattern" "$said" >&2
    exit 1
  fi
}

# An authority, and what it says of a server of this machine and of a client.
make_certificates() {
  local name use
  local new=(openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -batch)
  (
    cd "$scratch"
    "${new[@]}" -x509 -days 1 -subj "/CN=authority" -keyout ca.key -out ca.crt || exit
    for name in server client; do
      use="subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=${name}Auth\n"
      "${new[@]}" -subj "/CN=$name" -keyout "$name.key" -out "$name.csr" || exit
      openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 \
        -extfile <(printf '%b' "$use") -out "$name.crt" || exit
    done
  ) 2>"$scratch/openssl" || { cat "$scratch/openssl" >&2; exit 1; }
}

# The clients against a server that wants TLS, a client's certificate and a token.
run_guarded() {
  local token=a-token-of-this-check
  make_certificates
  printf '%s' "$token" >"$scratch/token"
  printf 'check:%s\n' "$token" >"$scratch/tokens"
  printf 'a-token-of-nobody' >"$scratch/wrong"
  local certificate=(--tls-ca "$scratch/ca.crt" --tls-cert "$scratch/client.crt" --tls-key "$scratch/client.key")
  shown=("${certificate[@]}" --token-file "$scratch/token")
  export SCONCE__SERVER__TLS__CERTIFICATE=$scratch/server.crt SCONCE__SERVER__TLS__KEY=$scratch/server.key
  export SCONCE__SERVER__TLS__CLIENT_CA=$scratch/ca.crt SCONCE__SERVER__AUTH__TOKENS=$scratch/tokens
  export SCONCE__SERVER__AUTH__ADMINS='["check"]'
  serve smollm2=sim:
  run_clients
  local wrong=("${certificate[@]}" --token-file "$scratch/wrong")
  refused UNAUTHENTICATED "$python" deploy/clients/chat.py "$address" "${certificate[@]}"
  refused UNAUTHENTICATED "$python" deploy/clients/chat.py "$address" "${wrong[@]}"
  refused UNAVAILABLE "$python" deploy/clients/chat.py "$address"
  refused UNAVAILABLE "$python" deploy/clients/chat.py "$address" --tls-ca "$scratch/ca.crt"
  refused 'expected --tls-ca' "$python" deploy/clients/chat.py "$address" --token-file "$scratch/token"
  if [[ -n $node ]]; then
    refused UNAUTHENTICATED run_node "${certificate[@]}"
    refused UNAUTHENTICATED run_node "${wrong[@]}"
    refused 'expected --tls-ca' run_node --token-file "$scratch/token"
  fi
  if [[ -n ${SCONCE_GO_CLIENT:-} ]]; then
    refused Unauthenticated run_go "${certificate[@]}"
    refused 'expected -tls-ca' run_go --token-file "$scratch/token"
  fi
  unset "${!SCONCE__SERVER__TLS__@}" "${!SCONCE__SERVER__AUTH__@}"
  shown=()
}

run_node() {
  # By name: Node warns of certificates for addresses.
  NODE_PATH=target/clients/node/node_modules "$node" deploy/clients/node/complete.js "localhost:${address##*:}" "$@"
}

run_go() {
  "$SCONCE_GO_CLIENT" -address "$address" -config deploy/clients/service_config.json "$@"
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
  if ((${#shown[@]} == 0)); then
    # This example has the default address written into it, and shows nothing.
    sed "s/127\.0\.0\.1:50051/$address/" deploy/clients/complete.py >"$scratch/complete.py"
    client . "$python" "$scratch/complete.py"
  fi
  client 'new; FINISH_REASON_(STOP|LENGTH)' "$python" deploy/clients/chat.py "$address" "${shown[@]}"
  client '^readiness SERVING' "$python" deploy/clients/health.py "$address" "${shown[@]}"
  client '^kept [0-9]+ tokens' "$python" deploy/clients/snapshots.py "$address" "${shown[@]}"
  client '^7 ' "$python" deploy/clients/balanced.py "ipv4:$address" "${shown[@]}"
  if [[ -n $node ]]; then
    client 'new; FINISH_REASON' run_node "${shown[@]}"
  fi
  if [[ -n ${SCONCE_GO_CLIENT:-} ]]; then
    client 'new; FINISH_REASON' run_go "${shown[@]}"
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
serve smollm2=sim:decode_us=1000,context=100000
"$python" deploy/clients/check_all.py "$address" smollm2
run_guarded
echo "the examples run with TLS, a certificate and a token"
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
