#!/usr/bin/env bash
# Runs the script of the admin port's page in a document without a browser (jsdom), fed by a server with
# simulated models; see page.test.js.
#
#   tests/dashboard/page.sh SCONCE
#
# Runs where there are npm and a Node that jsdom runs in; npm installs jsdom into target/dashboard.
set -euo pipefail
sconce=$(realpath "${1:?the program}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=target/dashboard
# Oldest Node that jsdom loads in: major and minor.
NODE_MIN=20.19

if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
  echo "the script of the page was not run: no npm here"
  exit
fi
version=$(node --version)
if [[ $(printf '%s\n' "$NODE_MIN" "${version#v}" | sort -V | head -n 1) != "$NODE_MIN" ]]; then
  echo "the script of the page was not run: expected Node $NODE_MIN or later, found $version"
  exit
fi

if ! cmp -s tests/dashboard/package-lock.json "$folder/installed"; then
  rm -rf "$folder"
  mkdir -p "$folder"
  cp tests/dashboard/package.json tests/dashboard/package-lock.json "$folder"
  npm ci --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
    2>"$folder/npm.log" || { cat "$folder/npm.log" >&2; exit 1; }
  # Last, so that what was broken off is begun again.
  cp tests/dashboard/package-lock.json "$folder/installed"
fi

SCONCE=$sconce NODE_PATH=$folder/node_modules exec node --test --test-reporter spec tests/dashboard/page.test.js
