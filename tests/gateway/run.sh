#!/usr/bin/env bash
# A real gateway (SMG) in front of two sconce processes, on free ports of the loopback interface.
# Needs a built `sconce` (its path as the first argument, or target/debug/sconce), SmolLM2 in .models
# (tests/reference/fetch.sh brings it), python3 with pip. Installs the gateway, 101 MB, into target/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

SMG=1.13.0
TOOLS=$PWD/target/tools-gateway
MODEL=$PWD/.models/SmolLM2-135M-Instruct.Q4_1.gguf

sconce=$(realpath "${1:-target/debug/sconce}")
[[ -e $MODEL ]] || bash tests/reference/fetch.sh
if [[ ! -e $TOOLS/.smg-$SMG ]]; then
  rm -rf "$TOOLS"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target "$TOOLS" "smg==$SMG"
  touch "$TOOLS/.smg-$SMG"
fi

cd tests/gateway
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$TOOLS \
  SCONCE=$sconce SCONCE_TEST_MODEL=$MODEL SMG=$TOOLS/bin/smg \
  exec python3 -m unittest "${@:2}"
