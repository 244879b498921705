"""Reads what is for Prometheus with foreign readers: a server's page, the alerts, the dashboard.

Usage: check.py URL, the page of a running server. Needs prometheus-client, promql-parser and PyYAML.
"""

import json
import sys
import urllib.request

import promql_parser
import yaml
from prometheus_client.parser import text_string_to_metric_families


def read_page(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    names = {sample.name for family in families for sample in family.samples}
    for needed in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        if needed not in names:
            sys.exit(f"{url}: {needed} is not there")
    untyped = [family.name for family in families if family.type == "unknown"]
    if untyped:
        sys.exit(f"{url}: no type for {untyped}")
    return len(families)


def expressions():
    with open("deploy/alerts/rules.yaml", encoding="utf-8") as file:
        for group in yaml.safe_load(file)["groups"]:
            for rule in group["rules"]:
                if not {"alert", "expr", "labels", "annotations"} <= rule.keys():
                    sys.exit(f"rules.yaml: a rule lacks a key: {rule}")
                promql_parser.parse_duration(rule.get("for", "1m"))
                yield rule["alert"], rule["expr"]
    with open("deploy/grafana/sconce.json", encoding="utf-8") as file:
        for panel in json.load(file)["panels"]:
            for target in panel.get("targets", []):
                yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def main():
    families = read_page(sys.argv[1])
    count = 0
    for where, expression in expressions():
        try:
            promql_parser.parse(expression)
        except ValueError as error:
            sys.exit(f"{where}: {error}: {expression}")
        count += 1
    print(f"{families} metrics and {count} expressions are as Prometheus reads them")


if __name__ == "__main__":
    main()
