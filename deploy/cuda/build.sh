#!/usr/bin/env bash
# Runs cargo for a build with NVIDIA GPUs that starts on machines without a driver too. Needs no GPU
# and no CUDA toolkit (kernels/cuda_toolkit.sh unpacks one). Builds into target/cuda/build.
#
#   deploy/cuda/build.sh build --release --package sconce-server --features cuda
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CUDA_HOME=$(kernels/cuda_toolkit.sh)
CONFIG=$(deploy/cuda/patch.sh)
export CUDA_HOME NVCC=$CUDA_HOME/bin/nvcc
# The tensor library's own kernels, which fill and copy: as PTX that every GPU from 8.0 on can take.
export CUDA_COMPUTE_CAP=80
export CUDARC_CUDA_VERSION=13000
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda/build}
exec cargo --config "$CONFIG" "$@"
