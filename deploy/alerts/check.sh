#!/usr/bin/env bash
# Has foreign readers read the metrics of a server with the simulated model, the alerts and the dashboard.
# Usage: deploy/alerts/check.sh PYTHON SCONCE, a Python with what check.py needs, and the program.
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
SCONCE__SERVER__WITHDRAWAL=0s "$sconce" serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 \
  --model sim=sim: >"$scratch/out" 2>"$scratch/log" &
server=$!
exec 3<"$scratch/out"
read -r _ _ address <&3 || { cat "$scratch/log" >&2; exit 1; }
read -r _ _ admin <&3 || { cat "$scratch/log" >&2; exit 1; }
"$sconce" health --wait --service readiness --server "$address" >/dev/null
"$sconce" complete --server "$address" --max-tokens 8 hello >/dev/null
"$python" deploy/alerts/check.py "http://$admin/metrics"
"$python" deploy/alerts/check.py "http://$address/metrics"
