#!/usr/bin/env bash
# What can be said of feature `metal` on Linux. Whether the Metal sources keep address spaces apart:
# metal_spaces.py, with a compiler of C++ for OpenCL from the package `libclang`. And whether the Rust
# side passes types and lints: in a copy of the sources under target/metal, so that Cargo.lock stays as
# it is, with a copy of objc2-metal that does not ask the linker for Apple's framework and asks its
# neighbours for the runtime of another system. Nothing is linked or run. Needs cargo, python3 with pip
# and a network for what is not there yet. Arguments go to cargo clippy, in place of the kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LIBCLANG=18.1.1
WORK=$PWD/target/metal
COPY=$WORK/sources
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
  # With its version; one that is there keeps its times, and what was checked with it.
  PATCHED=$WORK/$(basename "$original")
  [[ ! -d $PATCHED ]] || return 0
  rm -rf "$PATCHED.new"
  cp -r "$original" "$PATCHED.new"
  python3 - "$PATCHED.new" <<'PYTHON'
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
  mv "$PATCHED.new" "$PATCHED"
}

copy_sources() {
  mkdir -p "$COPY"
  # Times stay, so that what was checked before is not checked again.
  tar -cf - Cargo.toml Cargo.lock build.rs clippy.toml fuzz kernels models proto server tests |
    tar -xf - -C "$COPY" --recursive-unlink
}

check_sources() {
  local tools=$WORK/libclang-$LIBCLANG
  [[ -d $tools ]] || python3 -m pip install --quiet --disable-pip-version-check \
    --root-user-action=ignore --no-deps --target "$tools" "libclang==$LIBCLANG"
  PYTHONPATH=$tools python3 -m unittest discover --quiet --start kernels --pattern 'metal_*_test.py'
  PYTHONPATH=$tools python3 kernels/metal_spaces.py
}

check_sources
patch_crate
copy_sources
(( $# )) || set -- --package sconce-kernels --all-targets --features metal
cd "$COPY"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$WORK/target}
cargo clippy --config "patch.crates-io.objc2-metal.path=\"$PATCHED\"" "$@" -- -D warnings
