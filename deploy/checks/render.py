"""Renders the chart and the overlays, as files that hold what a cluster would be given."""
import pathlib
import subprocess

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
CHART = DEPLOY / "helm" / "sconce"
OVERLAYS = DEPLOY / "kustomize" / "overlays"
# What the manifests are rendered for and checked against: the oldest release that is kept up.
KUBERNETES = "1.34"


class Refused(Exception):
    """The tool did not render; its own words."""


def run(command):
    """What a command prints, or `Refused` with what it complained of."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    return done.stdout


def objects(text):
    """The objects of a stream of YAML documents."""
    return [found for found in yaml.safe_load_all(text) if found]


class Renderer:
    """Helm and kustomize, in the folder that deploy/tools.sh made."""

    def __init__(self, tools):
        self.helm = tools / "bin" / "helm"
        self.kubectl = tools / "bin" / "kubectl"

    def lint(self):
        """Helm's own rules for charts."""
        values = [f"--values={path}" for path in sorted((CHART / "ci").glob("*.yaml"))]
        run([self.helm, "lint", "--strict", "--quiet", CHART])
        for path in values:
            run([self.helm, "lint", "--strict", "--quiet", CHART, path])

    def chart(self, *values):
        """What the chart makes of files of values."""
        options = [f"--values={path}" for path in values]
        fixed = ["--namespace=models", f"--kube-version={KUBERNETES}"]
        return objects(run([self.helm, "template", "demo", CHART, *fixed, *options]))

    def overlay(self, name):
        """What an overlay makes."""
        return objects(run([self.kubectl, "kustomize", OVERLAYS / name]))

    def everything(self):
        """Every form that the repository shows, by its name."""
        forms = {"helm: defaults": self.chart()}
        for path in sorted((CHART / "ci").glob("*.yaml")):
            forms[f"helm: {path.stem}"] = self.chart(path)
        for path in sorted(OVERLAYS.iterdir()):
            forms[f"kustomize: {path.name}"] = self.overlay(path.name)
        return forms
