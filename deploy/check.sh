#!/usr/bin/env bash
# Checks what can be checked of the deployment files without a container engine: every path that the
# Dockerfile copies exists and reaches the builder, stages and Debian's packages are known, versions
# agree, and scripts and the unit parse. Prints what is wrong and fails. With a folder that
# deploy/tools.sh made, hadolint reads the Dockerfile too.
# Usage: deploy/check.sh [TOOLS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=${1:-}

failed=0
complain() {
  echo "deploy/check.sh: $*" >&2
  failed=1
}

# Whether .dockerignore lets a path through: it, or a folder that it lies in, is excepted.
sent() {
  local path=$1
  while [[ $path != . ]]; do
    grep -qxF "!$path" .dockerignore && return
    path=$(dirname "$path")
  done
  return 1
}

# The Dockerfile with its continued lines joined.
dockerfile=$(sed -e ':a' -e '/\\$/{N;s/\\\n//;ba' -e '}' Dockerfile)
stages=$(awk 'toupper($1) == "FROM" { for (i = 2; i < NF; i++) if (toupper($i) == "AS") print $(i + 1) }' \
  Dockerfile)

check_copies() {
  local line words sources stage source
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
      sent "$source" || complain "COPY of $source, which .dockerignore hides"
    done
  done < <(grep -E '^COPY ' <<<"$dockerfile")
}

# A member of the workspace that a stage does not copy would break the build of the image there.
check_members() {
  local member top copies stages_that_copy
  stages_that_copy=$(grep -cE '^COPY Cargo.toml ' <<<"$dockerfile")
  while read -r member; do
    top=${member%%/*}
    [[ $top == . ]] && continue
    copies=$(grep -cE "^COPY $top " <<<"$dockerfile" || true)
    ((copies == stages_that_copy)) ||
      complain "workspace member $member is copied in $copies stages of $stages_that_copy"
  done < <(sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '" ' | tr ',' '\n')
}

check_stages() {
  local stage
  for stage in cpu cuda; do
    grep -qxF "$stage" <<<"$stages" || complain "the Dockerfile has no stage $stage"
  done
  while read -r stage; do
    [[ $stage == '$'* ]] || grep -qxF "$stage" <<<"$stages" || complain "FROM unknown stage $stage"
  done < <(awk '$1 == "FROM" { print $2 }' Dockerfile)
}

# Names of Debian's packages, where this machine has Debian's lists of the same release.
check_packages() {
  local release package
  release=$(sed -n 's/^ARG RUST_IMAGE=rust:[0-9.]*-//p' Dockerfile)
  if ! grep -qs "VERSION_CODENAME=$release" /etc/os-release || ! command -v apt-cache >/dev/null; then
    echo "packages of the Dockerfile not looked up: this is not Debian $release"
    return
  fi
  if ! apt-cache madison bash | grep -q bash; then
    echo "packages of the Dockerfile not looked up: no lists of packages here (apt-get update)"
    return
  fi
  for package in $(grep -oE 'apt-get install [^&]*' <<<"$dockerfile" | tr ' ' '\n' |
    grep -vE '^(apt-get|install|-.*|)$'); do
    apt-cache show "$package" >/dev/null 2>&1 || complain "Debian $release has no package $package"
  done
}

# Whatever names the version of the server names this one.
check_versions() {
  local version rust_of_image rust_of_workspace file
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  grep -qx "ARG VERSION=$version" Dockerfile || complain "the Dockerfile's VERSION is not $version"
  grep -qx "appVersion: \"$version\"" deploy/helm/sconce/Chart.yaml ||
    complain "appVersion of the chart is not $version"
  for file in deploy/kustomize/base deploy/kustomize/overlays/gpu; do
    grep -q "newTag: $version" "$file/kustomization.yaml" || complain "newTag in $file is not $version"
  done
  rust_of_image=$(sed -n 's/^ARG RUST_IMAGE=rust:\([0-9.]*\)-.*/\1/p' Dockerfile)
  rust_of_workspace=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  [[ $rust_of_image == "$rust_of_workspace" ]] ||
    complain "image builds with Rust $rust_of_image, the workspace asks for $rust_of_workspace"
}

check_scripts() {
  local script
  for script in deploy/*.sh deploy/*/*.sh kernels/*.sh tests/*.sh tests/*/*.sh .ci/run; do
    [[ -e $script ]] || continue
    bash -n "$script" || complain "$script does not parse"
  done
}

check_unit() {
  local unit=deploy/systemd/sconce.service scratch
  if ! command -v systemd-analyze >/dev/null; then
    echo "$unit not verified: no systemd-analyze here"
    return
  fi
  scratch=$(mktemp -d)
  # The program that the unit starts has to exist to be verified.
  sed 's|^ExecStart=/usr/local/bin/sconce|ExecStart=/bin/true|' "$unit" >"$scratch/sconce.service"
  systemd-analyze verify --man=no "$scratch/sconce.service" >"$scratch/said" 2>&1 || true
  # What it says of other units of the machine is not about us.
  if grep 'sconce.service' "$scratch/said" >&2; then
    complain "systemd-analyze verify complains of $unit"
  fi
  rm -rf "$scratch"
}

check_copies
check_members
check_stages
check_packages
check_versions
check_scripts
check_unit
if [[ -n $tools ]]; then
  "$tools/bin/hadolint" Dockerfile || complain "hadolint complains of the Dockerfile"
fi

((failed == 0)) && echo "deployment files are consistent"
exit "$failed"
