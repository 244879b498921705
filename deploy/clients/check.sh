#!/usr/bin/env bash
# Runs the example clients against a server with the simulated model.
# Usage: deploy/clients/check.sh PYTHON SCONCE, a Python that has grpcio-tools and the program.
set -euo pipefail
python=$1
sconce=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

scratch=$(mktemp -d)
clean_up() {
  if [[ -n ${server:-} ]]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || true
  fi
  rm -rf "$scratch"
}
trap clean_up EXIT

mkfifo "$scratch/out"
SCONCE__SERVER__WITHDRAWAL=0s "$sconce" serve --listen 127.0.0.1:0 --model smollm2=sim: \
  >"$scratch/out" 2>"$scratch/log" &
server=$!
read -r _ _ address <"$scratch/out" || { cat "$scratch/log" >&2; exit 1; }
"$sconce" health --wait --service readiness --server "$address" >/dev/null

# The examples have the default address written into them.
sed "s/127\.0\.0\.1:50051/$address/" deploy/clients/complete.py >"$scratch/complete.py"
answer=$("$python" "$scratch/complete.py")
if [[ -z $answer ]]; then
  echo "complete.py printed nothing" >&2
  exit 1
fi
echo "complete.py streamed ${#answer} characters"

# README shows the same client.
readme=$(sed -n '/^```python$/,/^```$/p' README.md | sed '1d;$d')
if [[ $(tail -n +2 deploy/clients/complete.py) != "$readme" ]]; then
  echo "the Python client of README.md is not deploy/clients/complete.py" >&2
  exit 1
fi
