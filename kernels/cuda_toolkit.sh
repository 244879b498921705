#!/usr/bin/env bash
# Unpacks what compiles CUDA C++ into target/cuda/toolkit, once, and prints its folder, which is a
# CUDA_HOME: nvcc with its headers and the runtime of CUDA, from PyPI (some 104 MB, 270 MB unpacked).
# Needs Linux on x86-64 or aarch64, python3 with pip, and a C++ compiler of the system; no GPU, no
# driver, no rights. A toolkit of one's own is used instead where CUDA_HOME names one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# CUDA 13.0 update 2: the newest whose PTX a driver of the 580 series takes.
WHEELS=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
)
ROOT=$PWD/target/cuda/toolkit
HOME_OF_CUDA=$ROOT/nvidia/cu13

fail() {
  echo "cuda_toolkit.sh: $*" >&2
  exit 1
}

if [[ -n ${CUDA_HOME:-} ]]; then
  [[ -x $CUDA_HOME/bin/nvcc ]] || fail "CUDA_HOME is $CUDA_HOME, which has no bin/nvcc"
  echo "$CUDA_HOME"
  exit
fi

stamp="$ROOT/.$(tr ' ' '\n' <<<"${WHEELS[*]}" | sha256sum | cut -c 1-16)"
if [[ ! -e $stamp ]]; then
  rm -rf "$ROOT"
  mkdir -p "$ROOT"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-deps --no-compile --only-binary=:all: --target "$ROOT" "${WHEELS[@]}" >&2 ||
    fail "pip cannot install ${WHEELS[*]}: is PyPI within reach?"
  # Where build scripts of others look, and what `-lcudart` links to: the whole runtime.
  ln -s lib "$HOME_OF_CUDA/lib64"
  mkdir -p "$HOME_OF_CUDA/link/static"
  echo "INPUT($HOME_OF_CUDA/lib/libcudart_static.a)" >"$HOME_OF_CUDA/link/static/libcudart.so"
  touch "$stamp"
fi
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: nvcc needs one to read headers"
echo "$HOME_OF_CUDA"
