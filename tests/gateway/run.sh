#!/usr/bin/env bash
# A real gateway (SMG) in front of two sconce processes, on free ports of the loopback interface.
# Needs a built `sconce` (its path as the first argument, or target/debug/sconce), SmolLM2 in .models
# (tests/reference/fetch.sh brings it), python3 with pip. Installs the gateway, 101 MB, into target/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sconce=$(realpath "${1:-target/debug/sconce}")
source tests/gateway/tools.sh

cd tests/gateway
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$TOOLS \
  SCONCE=$sconce SCONCE_TEST_MODEL=$MODEL SMG=$TOOLS/bin/smg \
  exec python3 -m unittest "${@:2}"
