"""Renders every form of the chart and every overlay, and holds all of it against schemas, the rules of
the house and the program itself. Prints what was checked; what is wrong ends it with exit code 1.

Usage: PYTHONPATH=TOOLS python3 deploy/checks/manifests.py TOOLS SCONCE
  TOOLS   the folder that deploy/tools.sh made
  SCONCE  the program
"""
import os
import pathlib
import sys
from collections import Counter

import kinds
import pods
import refusals
import settings
import wiring
from render import CHART, DEPLOY, KUBERNETES, Refused, Renderer

# What the chart carries a copy of, since a chart holds only what lies in its folder.
COPIES = {
    "files/rules.yaml": DEPLOY / "alerts" / "rules.yaml",
    "files/dashboard.json": DEPLOY / "grafana" / "sconce.json",
}
# The form in which every kind appears that is changed to see whether it is noticed.
FULL = "helm: pool"


def complaints_of_copies():
    """Copies that are not what they are copies of."""
    for copy, source in COPIES.items():
        source = source.relative_to(DEPLOY.parent)
        if not source.exists() or (CHART / copy).read_bytes() != source.read_bytes():
            yield f"deploy/helm/sconce/{copy} is no copy of {source}: cp {source} deploy/helm/sconce/{copy}"


def complaints_of(sconce, name, form):
    """Everything that is wrong with one form."""
    for found in form:
        wrong = kinds.complaint(found)
        if wrong is not None:
            yield f"{name}: {wrong}"
    for check in (wiring.complaints, pods.complaints):
        yield from (f"{name}: {wrong}" for wrong in check(form))
    yield from (f"{name}: {wrong}" for wrong in settings.complaints_of_program(sconce, form))


def main():
    """Runs all checks."""
    tools, sconce = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    os.chdir(DEPLOY.parent)
    renderer = Renderer(tools)
    if not (renderer.helm.exists() and renderer.kubectl.exists()):
        print("manifests not rendered: no helm and kubectl for this machine in PyPI, none installed")
        return 0
    wrong = [*complaints_of_copies(), *settings.complaints_of_schema()]
    try:
        renderer.lint()
        forms = renderer.everything()
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for name, form in forms.items():
        wrong += complaints_of(sconce, name, form)
        kinds_found = Counter(found["kind"] for found in form)
        print(f"{name}: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds_found.items()))}")
    wrong += refusals.complaints_of_values(renderer)
    wrong += refusals.complaints_of_manifests(forms[FULL])
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        count = sum(len(form) for form in forms.values())
        print(f"{count} objects in {len(forms)} forms hold against Kubernetes {KUBERNETES}, our rules and "
              f"the program; {len(refusals.VALUES)} values and {len(refusals.MANIFESTS)} changes refused")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
