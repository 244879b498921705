#!/usr/bin/env bash
# Makes copies of two crates for builds with NVIDIA GPUs, so that the binary starts where there is
# no driver, and needs no CUDA library but the driver where there is one. Prints a configuration file
# for `cargo --config`, which puts them in place of the crates; Cargo.lock stays as it is.
# deploy/cuda/build.sh uses it, and the gate, which sees so that the changes fit the crates. The copies,
# in target/cuda/patched, are the crates as cargo has them, with these changes:
#   cudarc          `dynamic-linking`, which the tensor library asks for, means `dynamic-loading`: a
#                   library is looked for when its first function is called. Handles of cuBLAS and
#                   cuRAND, which the tensor library makes with each device, are null: no operator of
#                   ours calls either, and most machines with a driver have neither.
#   candle-kernels  without its matrix products, which no operator of ours calls, and with them
#                   without the CUDA runtime, most of the build's time and most of the binary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATCHED=$PWD/target/cuda/patched

# The folder of a crate in cargo's registry, of the version in Cargo.lock.
crate() {
  local version
  version=$(awk -v name="name = \"$1\"" '$0 == name { getline; gsub(/"/, ""); print $3 }' Cargo.lock)
  find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -name "$1-$version" | head -n 1
}

cargo fetch --locked --quiet >&2
NEW=$PATCHED.new
rm -rf "$NEW"
mkdir -p "$NEW"
for name in cudarc candle-kernels; do
  folder=$(crate "$name")
  [[ -n $folder ]] || { echo "patch.sh: $name is not in cargo's registry" >&2; exit 1; }
  cp -r "$folder" "$NEW/$name"
  rm -f "$NEW/$name"/{.cargo-ok,.cargo_vcs_info.json,Cargo.lock}
done
# Each pattern must match just once: another version of a crate may need other changes.
python3 - "$NEW" <<'PY'
import pathlib
import re
import sys

CHANGES = [
    ("cudarc/Cargo.toml", r"^dynamic-linking = \[\]$", 'dynamic-linking = ["dynamic-loading"]'),
    (
        "cudarc/build.rs",
        r'^ *#\[cfg\(all\(feature = "dynamic-loading", feature = "dynamic-linking"\)\)\]\n.*\n',
        "",
    ),
    ("cudarc/build.rs", r'^ *#\[cfg\(feature = "dynamic-linking"\)\]\n *dynamic_linking\(.*\n', ""),
    (
        "cudarc/src/cublas/safe/mod.rs",
        r"let handle = result::create_handle\(\)\?;\n.*set_stream\(handle,.*\n",
        "let handle = std::ptr::null_mut();\n",
    ),
    (
        "cudarc/src/curand/safe.rs",
        r"let gen = result::create_generator\(\)\?;\n.*\n.*\n *rng\.set_seed\(seed\)\?;\n *Ok\(rng\)",
        "let _ = seed;\n        Ok(Self { gen: std::ptr::null_mut(), stream })",
    ),
    (
        "candle-kernels/build.rs",
        r"(?s)    let mut moe_sources = .*?^    Ok\(\(\)\)$",
        "    Ok(())",
    ),
    ("candle-kernels/build.rs", r"^const CUTILE_FEATURE.*\n", ""),
]
for name, pattern, text in CHANGES:
    path = pathlib.Path(sys.argv[1], name)
    changed, count = re.subn(pattern, lambda _: text, path.read_text(), flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"patch.sh: {name} has {count} places like {pattern}, expected 1")
    path.write_text(changed)
PY
echo "paths = [\"$PATCHED/cudarc\", \"$PATCHED/candle-kernels\"]" >"$NEW/config.toml"
# What is there stays if it is the same: cargo builds what has newer files again.
if diff -rq "$NEW" "$PATCHED" >/dev/null 2>&1; then
  rm -rf "$NEW"
else
  rm -rf "$PATCHED"
  mv "$NEW" "$PATCHED"
fi
echo "$PATCHED/config.toml"
