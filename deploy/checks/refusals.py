"""What must be refused: values that the chart does not take, and manifests that break a rule. Without
these, checks that pass everything would look like checks that pass."""
import copy
import pathlib
import tempfile

import yaml

import kinds
import pods
import wiring
from render import Refused

# Values, and a word of the complaint.
VALUES = [
    ({"replica": 2}, "replica"),
    ({"replicas": "two"}, "replicas"),
    ({"settings": {"engine": {"sequence_max": 1}}}, "sequence_max"),
    ({"settings": {"engine": {"sequences_max": 1.5}}}, "sequences_max"),
    ({"settings": {"server": {"listen": ["0.0.0.0:1"]}}}, "listen"),
    ({"settings": {"engine": {"memory_budget": "lots"}}}, "memory_budget"),
    ({"models": {"a model": {"path": "sim:"}}}, "a model"),
    ({"models": {"m": {}}}, "path"),
    ({"ports": {"grpc": 70000}}, "grpc"),
    ({"shutdown": {"drainSeconds": -1}}, "drainSeconds"),
    ({"diskTier": {"enabled": True, "size": "50GB"}}, "size"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"tls": {"secretName": "s"}, "probes": {"kind": "grpc"}}, "plain text"),
    ({"modelVolume": {"kind": "claim"}}, "modelVolume.claim"),
    ({"inferencePool": {"enabled": True}}, "inferencePool.picker.name"),
    ({"inferencePool": {"enabled": True, "picker": {"name": "p"}}, "tls": {"secretName": "s"}}, "tls"),
    ({"inferencePool": {"enabled": True, "picker": {"name": "p"}}, "vllmCompatibility": False}, "vllm"),
    ({"inferencePool": {"enabled": True, "picker": {"name": "p"}}, "auth": {"secretName": "s"}}, "metrics"),
    ({"auth": {"secretName": "s"}, "probes": {"kind": "grpc"},
      "settings": {"server": {"auth": {"exempt": []}}}}, "health"),
    ({"settings": {"server": {"auth": {"tokens": "/x"}}}}, "tokens"),
    ({"autoscaling": {"kind": "hpa", "minReplicas": 0}}, "minReplicas"),
    ({"route": {"kind": "http"}}, "route.parentRefs"),
    ({"route": {"kind": "grpc", "parentRefs": [{"name": "g"}]}, "inferencePool": {
        "enabled": True, "picker": {"name": "p"}}}, "HTTPRoute"),
]


def complaints_of_values(renderer):
    """Values that the chart takes and must not, or refuses without saying why."""
    for values, word in VALUES:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "values.yaml")
            path.write_text(yaml.safe_dump(values))
            try:
                renderer.chart(path)
                yield f"the chart takes {values}"
            except Refused as refusal:
                if word not in str(refusal):
                    yield f"the chart refuses {values} without naming {word}: {refusal}"


def put(*path, value):
    """A change of an object: one value, at a path of keys and places."""
    def change(found):
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value
    return change


CONTAINER = ("spec", "template", "spec", "containers", 0)
# Of the form below: a kind, what is changed in it, and who has to notice.
MANIFESTS = [
    ("Deployment", put(*CONTAINER, "imagePulPolicy", value="Always"), "schema"),
    ("Deployment", put(*CONTAINER, "ports", 0, "containerPort", value="50051"), "schema"),
    ("InferencePool", put("spec", "targetPort", value=1), "schema"),
    ("ScaledObject", put("spec", "triggers", 0, "metadata", "threshold", value=5), "schema"),
    ("HTTPRoute", put("spec", "rules", 0, "timeouts", "request", value="0"), "schema"),
    ("PodMonitor", put("spec", "podMetricsEndpoints", 0, "interval", value="often"), "schema"),
    ("Deployment", put(*CONTAINER, "securityContext", "capabilities", value={}), "pods"),
    ("Pod", put("spec", "containers", 0, "securityContext", "readOnlyRootFilesystem", value=False), "pods"),
    ("Deployment", put(*CONTAINER, "readinessProbe", "grpc", "service", value="ready"), "pods"),
    ("Deployment", put(*CONTAINER, "livenessProbe", value={}), "pods"),
    ("Deployment", put(*CONTAINER, "resources", value={}), "pods"),
    ("Deployment", put("spec", "template", "spec", "terminationGracePeriodSeconds", value=30), "pods"),
    ("Deployment", put("spec", "replicas", value=2), "wiring"),
    ("Deployment", put("spec", "template", "metadata", "labels", value={}), "wiring"),
    ("Deployment", put("spec", "template", "spec", "serviceAccountName", value="nobody"), "wiring"),
    ("Service", put("spec", "ports", 0, "targetPort", value="http"), "wiring"),
    ("PodDisruptionBudget", put("spec", "selector", "matchLabels", value={}), "wiring"),
    ("PodMonitor", put("spec", "podMetricsEndpoints", 0, "port", value="metrics"), "wiring"),
    ("InferencePool", put("spec", "targetPorts", 0, "number", value=8000), "wiring"),
    ("HTTPRoute", put("spec", "rules", 0, "backendRefs", 0, "name", value="other"), "wiring"),
    ("ScaledObject", put("spec", "scaleTargetRef", "kind", value="StatefulSet"), "wiring"),
    ("ScaledObject", put("spec", "triggers", 0, "metadata", "query", value="sum(vllm:num_requests_queued)"), "wiring"),
]


def complaints_of_manifests(form):
    """Changes of a good form that nobody notices. It must have every kind of `MANIFESTS`."""
    for kind, change, watcher in MANIFESTS:
        form_changed = copy.deepcopy(form)
        changed = next(found for found in form_changed if found["kind"] == kind)
        change(changed)
        noticed = {
            "schema": lambda: kinds.complaint(changed) is not None,
            "pods": lambda: any(pods.complaints(form_changed)),
            "wiring": lambda: any(wiring.complaints(form_changed)),
        }[watcher]
        if not noticed():
            yield f"{watcher} does not notice a {kind} changed to {yaml.safe_dump(changed)}"
