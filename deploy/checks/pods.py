"""Rules of the house for pods: what they may do, how they are asked, how long they get to stop."""
import re
import tomllib

from kinds import name_of
from wiring import containers, containers_of, workloads

# What the server may take to write what it remembers to disk, unless it is set: docs/OPERATIONS.md.
SAVE_TIME = "1m"
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def complaints(form):
    """What breaks a rule in the pods of one form: those of workloads, and single ones, which are tests."""
    for single in (found for found in form if found["kind"] == "Pod"):
        yield from of_privileges(single, single["spec"])
        yield from of_resources(single, single["spec"])
    for workload in workloads(form):
        pod = workload["spec"]["template"]["spec"]
        yield from of_privileges(workload, pod)
        yield from of_resources(workload, pod)
        yield from of_probes(form, workload)
        yield from of_grace(form, workload, pod)


def of_privileges(workload, pod):
    """Nothing that a server of this kind does not need."""
    expected = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    found = {key: pod.get("securityContext", {}).get(key) for key in expected}
    if found != expected:
        yield f"{name_of(workload)}: pods have {found}, expected {expected}"
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{name_of(workload)}: pods get a token of the API server"
    expected = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for container in containers_of(pod):
        if container.get("securityContext") != expected:
            yield f"{name_of(workload)}: {container['name']} has {container.get('securityContext')}"


def of_resources(workload, pod):
    """Memory has a limit, and what is counted in devices is asked for as it is limited."""
    for container in containers_of(pod):
        limits = container["resources"].get("limits", {})
        requests = container["resources"].get("requests", {})
        if "memory" not in limits:
            yield f"{name_of(workload)}: {container['name']} has no limit of memory"
        for name in set(limits) | set(requests):
            if "/" in name and requests.get(name, limits.get(name)) != limits.get(name):
                yield f"{name_of(workload)}: {container['name']} asks for another {name} than its limit"


def of_probes(form, workload):
    """All three kinds, on services that exist and ports that are served; gRPC only in plain text."""
    for container in containers(workload):
        settings = settings_of(form, container)
        if settings is None:
            continue
        ports = {int(address.rpartition(":")[2]) for address in settings["server"]["listen"]
                 if not address.startswith("unix:")}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            wanted = "readiness" if kind == "readinessProbe" else "liveness"
            if "grpc" in probe:
                if probe["grpc"] != {"port": probe["grpc"]["port"], "service": wanted}:
                    yield f"{name_of(workload)}: {kind} asks for {probe['grpc']}, expected {wanted}"
                if probe["grpc"]["port"] not in ports or "tls" in settings["server"]:
                    yield f"{name_of(workload)}: {kind} by gRPC on a port that does not speak it plainly"
            elif probe.get("httpGet", {}).get("path") != {"readiness": "/readyz"}.get(wanted, "/livez"):
                yield f"{name_of(workload)}: {kind} is {probe}"
            elif "admin" not in settings["server"]:
                yield f"{name_of(workload)}: {kind} by HTTP, and no admin port"


def of_grace(form, workload, pod):
    """The pod may take as long to stop as its containers need: exactly, or in a row with others."""
    for container in containers(workload):
        settings = settings_of(form, container)
        if settings is None:
            continue
        server = settings["server"]
        needed = seconds(server["withdrawal"]) + seconds(server["drain"]) + 10
        cache = settings.get("cache", {})
        needed += seconds(cache.get("save_time_max", SAVE_TIME)) if cache.get("directory") else 0
        for other in containers(workload):
            sleep = other.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            needed += sleep.get("seconds", 0)
        if pod["terminationGracePeriodSeconds"] != needed:
            found = pod["terminationGracePeriodSeconds"]
            yield f"{name_of(workload)}: {found} s to stop, and its parts take {needed:.0f} s"


def settings_of(form, container):
    """The configuration that a container of ours reads; `None` for another's."""
    if container["name"] != "sconce":
        return None
    for found in form:
        if found["kind"] == "ConfigMap" and "config.toml" in found["data"]:
            return tomllib.loads(found["data"]["config.toml"])
    raise ValueError("no ConfigMap has a config.toml")


def seconds(span):
    """Of a duration as settings have it, such as `1m 30s`."""
    return sum(int(count) * SECONDS[unit] for count, unit in re.findall(r"(\d+) *(ms|s|m|h)", span))
