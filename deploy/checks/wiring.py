"""Whether the objects of one form find each other: what selects pods does, what is named is there."""
import re

from kinds import name_of
from render import DEPLOY

# Made by hand in the cluster, or by somebody else's chart; the documentation tells which.
FOREIGN = {"Secret", "PersistentVolumeClaim", "Gateway"}
WORKLOADS = {"Deployment", "StatefulSet"}


def workloads(form):
    """What runs pods."""
    return [found for found in form if found["kind"] in WORKLOADS]


def containers(workload):
    """All containers of its pods, sidecars included."""
    return containers_of(workload["spec"]["template"]["spec"])


def containers_of(pod):
    """All containers of a pod's specification."""
    return pod.get("initContainers", []) + pod["containers"]


def complaints(form):
    """What does not fit together in the objects of one form."""
    for workload in workloads(form):
        yield from of_workload(form, workload)
    for found in form:
        yield from CHECKS.get(found["kind"], lambda form, found: ())(form, found)


def of_workload(form, workload):
    """Its selector, and what its pods refer to."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    if not selected(workload["spec"]["selector"], labels):
        yield f"{name_of(workload)}: its selector does not match its own pods"
    spec = workload["spec"]["template"]["spec"]
    yield from missing(form, workload, "ServiceAccount", spec["serviceAccountName"])
    volumes = {volume["name"] for volume in spec["volumes"]}
    volumes |= {made["metadata"]["name"] for made in workload["spec"].get("volumeClaimTemplates", [])}
    mounted = {mount["name"] for used in containers(workload) for mount in used["volumeMounts"]}
    if volumes != mounted:
        yield f"{name_of(workload)}: volumes {sorted(volumes)}, mounted {sorted(mounted)}"
    for volume in spec["volumes"]:
        if "configMap" in volume:
            yield from missing(form, workload, "ConfigMap", volume["configMap"]["name"])
    for used in containers(workload):
        names = {port["name"] for port in used["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            port = used.get(probe, {}).get("httpGet", {}).get("port")
            if port is not None and port not in names:
                yield f"{name_of(workload)}: {probe} asks port {port}, {used['name']} has {names}"
    headless = workload["spec"].get("serviceName")
    if headless is not None:
        yield from missing(form, workload, "Service", headless)


def of_service(form, service):
    """The pods behind a Service have its ports."""
    ports = port_names(form, service["spec"]["selector"])
    if ports is None:
        yield f"{name_of(service)}: selects no pods"
        return
    for port in service["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"{name_of(service)}: port {port['name']} goes to {port['targetPort']}, pods have {sorted(ports)}"


def of_selector(form, found):
    """A budget, or what reads metrics from pods, selects some."""
    ports = port_names(form, found["spec"]["selector"]["matchLabels"])
    if ports is None:
        yield f"{name_of(found)}: selects no pods"
        return
    for endpoint in found["spec"].get("podMetricsEndpoints", []):
        if endpoint["port"] not in ports:
            yield f"{name_of(found)}: reads port {endpoint['port']}, pods have {sorted(ports)}"


def of_service_monitor(form, monitor):
    """Exactly one Service has the port that is read, so that no pod counts twice."""
    wanted = monitor["spec"]["selector"]
    for endpoint in monitor["spec"]["endpoints"]:
        having = [
            found for found in form
            if found["kind"] == "Service" and selected(wanted, found["metadata"]["labels"])
            and any(port["name"] == endpoint["port"] for port in found["spec"]["ports"])
        ]
        if len(having) != 1:
            yield f"{name_of(monitor)}: {len(having)} Services have port {endpoint['port']}, expected 1"


def of_network_policy(form, policy):
    """It is about our pods, and lets in to ports that they have."""
    ports = port_names(form, policy["spec"]["podSelector"].get("matchLabels", {}))
    if ports is None:
        yield f"{name_of(policy)}: selects no pods"
        return
    for rule in policy["spec"]["ingress"]:
        for port in rule["ports"]:
            if port["port"] not in ports:
                yield f"{name_of(policy)}: lets in to {port['port']}, pods have {sorted(ports)}"


def of_scaler(form, scaler):
    """It scales a workload that leaves its replicas to it, on metrics that the server has."""
    target = scaler["spec"]["scaleTargetRef"]
    yield from missing(form, scaler, target["kind"], target["name"])
    for workload in workloads(form):
        if workload["metadata"]["name"] == target["name"] and "replicas" in workload["spec"]:
            yield f"{name_of(scaler)}: {name_of(workload)} sets replicas too"
    known = metrics()
    for name in sorted(scaled_on(scaler["spec"]) - known):
        yield f"{name_of(scaler)}: scales on {name}, which is no metric of docs/OPERATIONS.md"


def scaled_on(spec):
    """The metrics that a scaler asks for: those in KEDA's queries, those of pods by an adapter's names."""
    queries = " ".join(trigger["metadata"]["query"] for trigger in spec.get("triggers", []))
    asked = {metric["pods"]["metric"]["name"] for metric in spec.get("metrics", [])}
    return asked | set(re.findall(r"\b(?:vllm:|sconce_)\w+", queries))


def metrics():
    """Names of the server's metrics, and as adapters have them, which allow no colon."""
    page = (DEPLOY.parent / "docs" / "OPERATIONS.md").read_text()
    names = set(re.findall(r"^\| `([\w:]+)` \| (?:gauge|counter|histogram) \|", page, flags=re.MULTILINE))
    return names | {name.replace(":", "_") for name in names}


def of_pool(form, pool):
    """Its pods listen on its port and carry the label by which pickers know their metrics."""
    selector = pool["spec"]["selector"]["matchLabels"]
    for workload in workloads(form):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if not selected({"matchLabels": selector}, labels):
            continue
        numbers = {port["containerPort"] for used in containers(workload) for port in used["ports"]}
        for port in pool["spec"]["targetPorts"]:
            if port["number"] not in numbers:
                yield f"{name_of(pool)}: port {port['number']}, pods have {sorted(numbers)}"
        if labels.get("llm-d.ai/engine-type") != "vllm":
            yield f"{name_of(pool)}: its pods lack the label llm-d.ai/engine-type: vllm"
        return
    yield f"{name_of(pool)}: selects no pods"


def of_route(form, route):
    """What it sends to is there, with that port."""
    for rule in route["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            kind = backend.get("kind", "Service")
            yield from missing(form, route, kind, backend["name"])
            if kind == "Service" and backend.get("port") not in service_ports(form, backend["name"]):
                yield f"{name_of(route)}: {backend['name']} has no port {backend.get('port')}"


def service_ports(form, name):
    """Numbers of the ports of a Service."""
    return {
        port["port"] for found in form for port in found.get("spec", {}).get("ports", [])
        if found["kind"] == "Service" and found["metadata"]["name"] == name
    }


def missing(form, user, kind, name):
    """A complaint unless an object is there, or is none of ours."""
    there = any(found["kind"] == kind and found["metadata"]["name"] == name for found in form)
    if not there and kind not in FOREIGN and (kind, name) != ("ServiceAccount", "default"):
        yield f"{name_of(user)}: refers to {kind}/{name}, which is not there"


def selected(selector, labels):
    """Whether labels have what a selector asks for."""
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


def port_names(form, labels):
    """Names of ports of the pods that have labels; `None` if no pods do. No labels select none."""
    for workload in workloads(form):
        pods = workload["spec"]["template"]["metadata"]["labels"]
        if labels and selected({"matchLabels": labels}, pods):
            return {port["name"] for used in containers(workload) for port in used["ports"]}
    return None


CHECKS = {
    "Service": of_service,
    "PodDisruptionBudget": of_selector,
    "PodMonitor": of_selector,
    "ServiceMonitor": of_service_monitor,
    "NetworkPolicy": of_network_policy,
    "HorizontalPodAutoscaler": of_scaler,
    "ScaledObject": of_scaler,
    "InferencePool": of_pool,
    "HTTPRoute": of_route,
    "GRPCRoute": of_route,
}
