"""Runs the sidecar overlay without a cluster: the server and the gateway beside it, with the very files
that the overlay renders, over a Unix socket.

Usage: PYTHONPATH=TOOLS python3 deploy/checks/sidecar.py TOOLS SCONCE
"""
import pathlib
import subprocess
import sys
import tempfile

import yaml

from render import Renderer

# Longest that the gateway may take to have a healthy server behind it.
READY = "60s"


def files(form):
    """The files of all ConfigMaps, by name."""
    maps = [found["data"] for found in form if found["kind"] == "ConfigMap"]
    return {name: text for data in maps for name, text in data.items()}


def settings(text, folder):
    """The server's configuration, with what only a pod has replaced: its folder, its ports, its weights."""
    replaced = {
        "/run/sconce/": f"{folder}/",
        "0.0.0.0:9090": "127.0.0.1:0",
        "/models/SmolLM2-135M-Instruct.Q4_1.gguf": "sim:",
    }
    for old, new in replaced.items():
        if text.count(old) != 1:
            sys.exit(f"sidecar.py: expected {old} once in config.toml, found {text.count(old)}")
        text = text.replace(old, new)
    return text


def gateway(text, folder):
    """Envoy's configuration, likewise; it listens on a socket too, so that no port has to be free."""
    bootstrap = yaml.safe_load(text)
    resources = bootstrap["static_resources"]
    resources["listeners"][0]["address"] = {"pipe": {"path": f"{folder}/gateway.sock"}}
    assignment = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    pipe = assignment["endpoint"]["address"]["pipe"]
    pipe["path"] = pipe["path"].replace("/run/sconce", str(folder))
    return yaml.safe_dump(bootstrap)


def main():
    """Starts both, waits until the gateway says that the server is ready, and completes a prompt."""
    tools, sconce = pathlib.Path(sys.argv[1]), sys.argv[2]
    envoy = tools / "bin" / "envoy"
    if not envoy.exists():
        print("sidecar not run: no Envoy for this machine in PyPI")
        return 0
    rendered = files(Renderer(tools).overlay("sidecar"))
    running = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.toml").write_text(settings(rendered["config.toml"], folder))
        (folder / "envoy.yaml").write_text(gateway(rendered["envoy.yaml"], folder))
        log = (folder / "log").open("wb")
        try:
            running.append(subprocess.Popen(
                [sconce, "serve", "--config", folder / "config.toml"], stdout=subprocess.PIPE, stderr=log))
            # Envoy looks for the socket when it starts, so the server has to be there: as in the pod.
            running[0].stdout.readline()
            running.append(subprocess.Popen(
                [envoy, "--config-path", folder / "envoy.yaml", "--disable-hot-restart"],
                stdout=log, stderr=log))
            server = f"--server=unix:{folder}/gateway.sock"
            asked = [
                [sconce, "health", "--wait", f"--timeout={READY}", "--service=readiness", server],
                [sconce, "complete", server, "--max-tokens=8", "--temperature=0", "A sconce holds"],
            ]
            for command in asked:
                done = subprocess.run(command, capture_output=True, text=True, timeout=90)
                if done.returncode != 0 or not done.stdout.strip():
                    print((folder / "log").read_text(), done.stderr, file=sys.stderr)
                    return 1
        finally:
            codes = [stop(process) for process in reversed(running)]
    if codes[-1] != 0:
        print(f"sidecar.py: the server ended with {codes[-1]}, expected 0", file=sys.stderr)
        return 1
    print("the sidecar overlay's server and gateway, from the files that it renders: a completion over the socket")
    return 0


def stop(process):
    """Tells a process to stop; its exit code."""
    process.terminate()
    return process.wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
