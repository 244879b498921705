#!/usr/bin/env bash
# Checks what can be checked of the deployment files without a container engine: every path that the
# Dockerfile copies from the repository exists and reaches the builder, stages are known, and scripts
# parse. Prints what is wrong and fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=0
complain() {
  echo "deploy/check.sh: $*" >&2
  failed=1
}

# Folders and files that .dockerignore lets through.
allowed=$(sed -n 's/^!//p' .dockerignore)

stages=$(awk 'toupper($1) == "FROM" { for (i = 2; i < NF; i++) if (toupper($i) == "AS") print $(i + 1) }' \
  Dockerfile)

while read -r line; do
  read -r -a words <<<"$line"
  sources=("${words[@]:1:${#words[@]}-2}")
  if [[ ${sources[0]} == --from=* ]]; then
    stage=${sources[0]#--from=}
    grep -qxF "$stage" <<<"$stages" || complain "COPY from unknown stage $stage"
    continue
  fi
  for source in "${sources[@]}"; do
    [[ -e $source ]] || complain "COPY of $source, which does not exist"
    grep -qxF "${source%%/*}" <<<"$allowed" || complain "COPY of $source, which .dockerignore hides"
  done
done < <(grep -E '^COPY ' Dockerfile)

# A member of the workspace that is not copied would break the build of the image.
while read -r member; do
  top=${member%%/*}
  [[ $top == . ]] && continue
  grep -qE "^COPY $top " Dockerfile || complain "workspace member $member is not copied"
done < <(sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '" ' | tr ',' '\n')

rust_of_image=$(sed -n 's/^FROM rust:\([0-9.]*\)-.*/\1/p' Dockerfile | head -n 1)
rust_of_workspace=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
[[ $rust_of_image == "$rust_of_workspace" ]] ||
  complain "image builds with Rust $rust_of_image, the workspace asks for $rust_of_workspace"

for script in deploy/*.sh deploy/cuda/*.sh kernels/*.sh tests/*.sh tests/reference/*.sh .ci/run; do
  [[ -e $script ]] || continue
  bash -n "$script" || complain "$script does not parse"
done

((failed == 0)) && echo "deployment files are consistent"
exit "$failed"
