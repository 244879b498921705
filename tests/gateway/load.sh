#!/usr/bin/env bash
# A load generator that is not ours, AIPerf, drives OpenAI's API of a real gateway (SMG) in front of two
# sconce processes, and the table it prints says what clients saw and what the cache spared:
#
#   tests/gateway/load.sh target/release/sconce                     # 1, 4 and 16 clients, 64 requests each
#   tests/gateway/load.sh target/release/sconce --clients 8 --requests 200
#
# Fails if a request failed or was not sent. Not a part of the gate: it takes two to five minutes, and
# installs 460 MB into target/ at first. Needs what run.sh needs. Nothing leaves this machine: the tokenizer
# that AIPerf counts with is the one that the workers serve.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sconce=$(realpath "${1:-target/release/sconce}")
source tests/gateway/tools.sh

AIPERF=$PWD/target/tools-aiperf
# Of the 139 packages that AIPerf names, those that it loads for this; all of them are 1.2 GB.
pins=tests/gateway/load_requirements.txt
if ! cmp -s "$pins" "$AIPERF/.pins"; then
  install "$AIPERF" --no-deps --no-compile --requirement "$pins"
  cp "$pins" "$AIPERF/.pins"
fi

cd tests/gateway
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$TOOLS SMG=$TOOLS/bin/smg AIPERF=$AIPERF \
  SCONCE=$sconce SCONCE_TEST_MODEL=$MODEL exec python3 load.py "${@:2}"
