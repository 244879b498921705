"""Whether manifests and the server mean the same settings: the schema of the chart names those that
docs/OPERATIONS.md has, and the program accepts every file that is rendered."""
import json
import os
import re
import subprocess
import tempfile

from render import CHART, DEPLOY

# Settings that other values of the chart decide, so that `settings` must not have them.
DECIDED = {
    "server.listen", "server.admin", "server.withdrawal", "server.drain", "compat.vllm",
    "server.tls.certificate", "server.tls.key", "server.tls.client_ca", "server.auth.tokens",
    "cache.directory", "cache.disk", "cache.save_time_max",
    "models.NAME.path", "models.NAME.context_length", "models.NAME.keep_alive",
}
# What a machine without a GPU would refuse, where a manifest asks for one.
ELSEWHERE = {"SCONCE__ENGINE__DEVICE": "auto"}


def complaints_of_schema():
    """Settings that the chart has and the server has not, and the other way round."""
    page = (DEPLOY.parent / "docs" / "OPERATIONS.md").read_text()
    table = page.partition("## Settings")[2].partition("\n## ")[0]
    known = set(re.findall(r"^\| `([a-z]+\.[A-Za-z_.]+)` \|", table, flags=re.MULTILINE))
    schema = json.loads((CHART / "values.schema.json").read_text())
    offered = set(keys(schema["definitions"]["settings"]))
    for key in sorted(known - DECIDED - offered):
        yield f"values.schema.json: setting {key} of docs/OPERATIONS.md is not under `settings`"
    for key in sorted(offered - known):
        yield f"values.schema.json: `settings` has {key}, docs/OPERATIONS.md has not"
    for key in sorted((DECIDED - known) | (offered & DECIDED)):
        yield f"values.schema.json: {key} is decided by the chart, and is no setting or offered too"


def keys(table, prefix=""):
    """The settings that a schema of a table names, those of tables in it too."""
    for key, value in table["properties"].items():
        if "properties" in value:
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def complaints_of_program(sconce, form):
    """What the program says of the configuration files of one form."""
    for found in form:
        text = found.get("data", {}).get("config.toml") if found["kind"] == "ConfigMap" else None
        if text is None:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            done = subprocess.run(
                [sconce, "config", "check", "--config", file.name],
                capture_output=True, text=True, timeout=60, env={**os.environ, **ELSEWHERE},
            )
        if done.returncode != 0:
            yield f"sconce config check: {done.stderr.strip()}"
