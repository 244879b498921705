#!/usr/bin/env bash
# Type-checks and lints the Rust side of feature `metal` on Linux, where its crates do not build as
# they are: in a copy of the sources under target/metal, so that Cargo.lock stays as it is, with a
# copy of objc2-metal that does not ask the linker for Apple's framework and asks its neighbours for
# the runtime of another system. Nothing is linked or run. Needs cargo, and a network for what is not
# there yet. Arguments go to cargo clippy; without any, the kernels and their tests are checked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WORK=$PWD/target/metal
COPY=$WORK/sources
PATCHED=$WORK/objc2-metal
mkdir -p "$WORK"

# Names what it looks for, so that another version of the crate does not pass unpatched.
patch_crate() {
  local manifest original
  manifest=$(cargo metadata --locked --format-version 1 --features sconce-kernels/metal |
    python3 -c 'import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "objc2-metal":
        print(package["manifest_path"])')
  original=$(dirname "$manifest")
  rm -rf "$PATCHED"
  cp -r "$original" "$PATCHED"
  python3 - "$PATCHED" <<'PYTHON'
import pathlib, sys

def replace(path, old, new):
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"{path}: {old!r} is there {text.count(old)} times, not once")
    path.write_text(text.replace(old, new))

crate = pathlib.Path(sys.argv[1])
replace(crate / "src/generated/mod.rs", '#[link(name = "Metal", kind = "framework")]\n', "")
for neighbour, features in [("objc2", "std"), ("block2", "alloc")]:
    head, manifest = f"[dependencies.{neighbour}]\n", crate / "Cargo.toml"
    before, after = manifest.read_text().split(head)
    old = f'features = ["{features}"]'
    if old not in after.split("\n[")[0]:
        sys.exit(f"{manifest}: {neighbour} has other features than {features}")
    new = f'features = ["{features}", "gnustep-1-7"]'
    manifest.write_text(before + head + after.replace(old, new, 1))
PYTHON
}

copy_sources() {
  mkdir -p "$COPY"
  # Times stay, so that what was checked before is not checked again.
  tar -cf - Cargo.toml Cargo.lock build.rs clippy.toml kernels models proto server tests |
    tar -xf - -C "$COPY" --recursive-unlink
}

patch_crate
copy_sources
(( $# )) || set -- --package sconce-kernels --all-targets --features metal
cd "$COPY"
export CARGO_TARGET_DIR=$WORK/target
cargo clippy --config "patch.crates-io.objc2-metal.path=\"$PATCHED\"" "$@" -- -D warnings
