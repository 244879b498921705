"""Holds objects against the schemas of their kinds: Kubernetes' own, and ours for what others define."""
import json
import pathlib

import jsonschema
import kubernetes_validate

from render import KUBERNETES

# For kinds that no schema of Kubernetes covers: the fields that we write, as their projects define them.
CRDS = pathlib.Path(__file__).resolve().parent / "crds"


def name_of(found):
    """How messages call an object."""
    return f"{found.get('kind')}/{found.get('metadata', {}).get('name')}"


def complaint(found):
    """What is wrong with an object, or `None`."""
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
        return None
    except kubernetes_validate.SchemaNotFoundError:
        return complaint_of_crd(found)
    except kubernetes_validate.ValidationError as error:
        return describe(found, error)


def complaint_of_crd(found):
    """As `complaint`, for a kind that a project beside Kubernetes defines."""
    group, _, version = found["apiVersion"].rpartition("/")
    path = CRDS / f"{found['kind'].lower()}-{group}-{version}.json"
    if not path.exists():
        return f"{name_of(found)}: no schema for {found['apiVersion']}, expected {path}"
    try:
        jsonschema.Draft202012Validator(json.loads(path.read_text())).validate(found)
        return None
    except jsonschema.ValidationError as error:
        return describe(found, error)


def describe(found, error):
    """One line: which object, where in it, what."""
    place = ".".join(str(part) for part in error.path)
    return f"{name_of(found)}: {place}: {error.message}"
