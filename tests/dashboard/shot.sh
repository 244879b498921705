#!/usr/bin/env bash
# Takes pictures of the page of the admin port, with a simulated model that is busy, and checks in the
# browser that the page's script ran under its policy and drew what the server told.
#
#   tests/dashboard/shot.sh docs/dashboard.png            # in the light, as in docs/OPERATIONS.md
#   tests/dashboard/shot.sh /tmp/x.png 390 1800 dark      # as wide as a phone, in the dark
#
# Needs chromium (apt-get install chromium, or CHROMIUM=PATH) and python3. Not a part of the gate, which has
# no browser: there tests/dashboard.rs serves and feeds the page, and page.sh runs its script in jsdom.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=${1:?where to write the picture}
width=${2:-980} height=${3:-800} scheme=${4:-light}
CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}
SCONCE=${SCONCE:-target/debug/sconce}
[[ -x $SCONCE ]] || cargo build --locked --package sconce-server --bin sconce
# How much of a busy server the page has heard before the picture, so that the lines have something to show;
# an event comes once a second.
EVENTS_BEFORE=${EVENTS_BEFORE:-60}

work=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

# Budgets so small that the bars have something to show.
SCONCE__SERVER__WITHDRAWAL=0s SCONCE__ENGINE__MEMORY_BUDGET=16MB "$SCONCE" serve --listen "unix:$work/sock" --admin 127.0.0.1:0 \
  --model small=sim:decode_us=20000,prefill_us=150 --model large=sim:decode_us=60000 \
  --cache-dir "$work/cache" --cache-disk 16MB --cache-host 16MB >"$work/out" 2>"$work/log" &
pids+=($!)
server="unix:$work/sock"
"$SCONCE" health --wait --timeout 60s --service readiness --server "$server" >/dev/null
admin=$(sed -n 's/^admin on //p' "$work/out")

# Some who talk with it, until the end: a shared beginning, parted ways.
talk() {
  local number=$1 turn=0
  while :; do
    turn=$((turn + 1))
    "$SCONCE" complete --server "$server" --model "$2" --ignore-eos -n $((16 + 12 * number)) \
      "You are a careful assistant who answers in one sentence and names the source of each claim, \
on the subject of light number $((turn % 4)), for reader $number." >/dev/null 2>&1 || sleep 1
    sleep "0.$((number * 2 + 1))"
  done
}
for number in 1 2 3; do
  talk "$number" small &
  pids+=($!)
done
talk 4 large &
pids+=($!)

python3 tests/dashboard/shot.py "$CHROMIUM" "http://$admin/" "$out" "$width" "$height" "$scheme" \
  "$EVENTS_BEFORE"
