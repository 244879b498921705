# Sourced in the root of the repository by run.sh and load.sh: installs the gateway, 101 MB, and finds the
# model that its workers serve.

SMG=1.13.0
TOOLS=$PWD/target/tools-gateway
MODEL=$PWD/.models/SmolLM2-135M-Instruct.Q4_1.gguf

# pip into a folder that it empties first: install FOLDER ARGUMENT...
install() {
  local folder=$1
  shift
  rm -rf "$folder"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-warn-conflicts --target "$folder" "$@"
}

[[ -e $MODEL ]] || bash tests/reference/fetch.sh
if [[ ! -e $TOOLS/.smg-$SMG ]]; then
  install "$TOOLS" "smg==$SMG"
  touch "$TOOLS/.smg-$SMG"
fi
