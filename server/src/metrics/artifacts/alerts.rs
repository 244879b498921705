//! Alerts for Prometheus, and that each has its entry among the runbooks.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::{bless, check_expression, read};

/// Where the runbooks are; a heading is an anchor in lower case.
const RUNBOOKS: &str = "docs/RUNBOOKS.md";

/// What every entry of a runbook tells.
const PARTS: [&str; 3] = ["Means:", "Look at:", "Do:"];

/// An alert.
struct Alert {
    name: &'static str,
    expression: &'static str,
    /// How long it must hold; empty for not at all.
    lasting: &'static str,
    /// `critical` wakes somebody, `warning` waits for the day.
    severity: &'static str,
    /// In a line; labels of the series as templates.
    summary: &'static str,
}

const ALERTS: &[Alert] = &[
    Alert {
        name: "SconceAbsent",
        expression: "absent(sconce_ready)",
        lasting: "10m",
        severity: "critical",
        summary: "No sconce server is being scraped",
    },
    Alert {
        name: "SconceNotReady",
        expression: "sconce_ready == 0 and sconce_draining == 0",
        lasting: "15m",
        severity: "critical",
        summary: "{{ $labels.instance }} answers no completions",
    },
    Alert {
        name: "SconceDeviceStuck",
        expression: "sconce_step_running_seconds > 120 or sconce_device_alive == 0",
        lasting: "1m",
        severity: "critical",
        summary: "{{ $labels.instance }} computes nothing any more",
    },
    Alert {
        name: "SconceRestarting",
        expression: "changes(process_start_time_seconds[30m]) > 2 and on (job, instance) sconce_ready",
        lasting: "",
        severity: "critical",
        summary: "{{ $labels.instance }} started {{ $value }} times in half an hour",
    },
    Alert {
        name: "SconceErrors",
        expression: r#"sum by (job, instance) (rate(sconce_requests_total{code=~"INTERNAL|UNKNOWN|DATA_LOSS"}[5m])) / sum by (job, instance) (rate(sconce_requests_total[5m])) > 0.01"#,
        lasting: "5m",
        severity: "critical",
        summary: "{{ $labels.instance }} fails {{ $value | humanizePercentage }} of its requests",
    },
    Alert {
        name: "SconceRefusing",
        expression: r#"sum by (job, instance) (rate(sconce_requests_total{code="RESOURCE_EXHAUSTED"}[5m])) / sum by (job, instance) (rate(sconce_requests_total[5m])) > 0.05"#,
        lasting: "10m",
        severity: "warning",
        summary: "{{ $labels.instance }} refuses {{ $value | humanizePercentage }} of its requests for want of room",
    },
    Alert {
        name: "SconceQueueLong",
        expression: "sconce_queue_requests > 0.8 * sconce_queue_requests_max",
        lasting: "5m",
        severity: "warning",
        summary: "{{ $value }} requests wait on {{ $labels.instance }}",
    },
    Alert {
        name: "SconceQueueSlow",
        expression: "histogram_quantile(0.95, sum by (job, instance, model, le) (rate(sconce_queue_seconds_bucket[10m]))) > 30",
        lasting: "10m",
        severity: "warning",
        summary: "One in twenty requests for {{ $labels.model }} waits {{ $value | humanizeDuration }} on {{ $labels.instance }}",
    },
    Alert {
        name: "SconceFirstTokenSlow",
        expression: "histogram_quantile(0.95, sum by (job, instance, model, le) (rate(sconce_time_to_first_token_seconds_bucket[10m]))) > 10",
        lasting: "10m",
        severity: "warning",
        summary: "One in twenty first tokens of {{ $labels.model }} takes {{ $value | humanizeDuration }} on {{ $labels.instance }}",
    },
    Alert {
        name: "SconceCacheHitsCollapsed",
        expression: r#"sum by (job, model) (rate(sconce_tokens_total{kind="cached"}[30m])) / sum by (job, model) (rate(sconce_tokens_total{kind="prompt"}[30m])) < 0.5 * sum by (job, model) (rate(sconce_tokens_total{kind="cached"}[1d])) / sum by (job, model) (rate(sconce_tokens_total{kind="prompt"}[1d]))"#,
        lasting: "30m",
        severity: "warning",
        summary: "The cache serves half as much of {{ $labels.model }} as over the last day: {{ $value | humanizePercentage }}",
    },
    Alert {
        name: "SconceCacheEvicting",
        expression: r#"sum by (job, instance) (rate(sconce_cache_evicted_tokens_total[15m])) > 0.5 * sum by (job, instance) (rate(sconce_tokens_total{kind="computed"}[15m]))"#,
        lasting: "30m",
        severity: "warning",
        summary: "{{ $labels.instance }} forgets more than half of what it computes",
    },
    Alert {
        name: "SconceStateFull",
        expression: r#"sum by (job, instance, model) (sconce_state_pages{kind="running"}) > 0.95 * sum by (job, instance, model) (sconce_state_pages{kind="max"})"#,
        lasting: "10m",
        severity: "warning",
        summary: "Running requests hold the whole state of {{ $labels.model }} on {{ $labels.instance }}",
    },
    Alert {
        name: "SconcePreempting",
        expression: "sum by (job, instance, model) (rate(sconce_preemptions_total[10m])) > 0.1",
        lasting: "10m",
        severity: "warning",
        summary: "Sequences of {{ $labels.model }} take pages from each other on {{ $labels.instance }}",
    },
    Alert {
        name: "SconceMemoryFull",
        expression: "sum by (job, instance, tier) (sconce_memory_bytes) > 0.98 * sum by (job, instance, tier) (sconce_memory_budget_bytes > 0)",
        lasting: "30m",
        severity: "warning",
        summary: "The {{ $labels.tier }} tier of {{ $labels.instance }} is full",
    },
    Alert {
        name: "SconceDiskFaults",
        expression: "sum by (job, instance, fault) (increase(sconce_disk_faults_total[15m])) > 0",
        lasting: "",
        severity: "warning",
        summary: "Fault `{{ $labels.fault }}` of the cache directory of {{ $labels.instance }}",
    },
    Alert {
        name: "SconceLoadFailed",
        expression: r#"increase(sconce_loads_total{outcome="failed"}[15m]) > 0"#,
        lasting: "",
        severity: "warning",
        summary: "{{ $labels.instance }} could not load a model",
    },
    Alert {
        name: "SconceRestarted",
        expression: "increase(sconce_engine_restarts_total[15m]) > 0",
        lasting: "",
        severity: "warning",
        summary: "The engine of {{ $labels.instance }} panicked and went on",
    },
    Alert {
        name: "SconceSecretStale",
        expression: "sconce_secret_stale == 1",
        lasting: "5m",
        severity: "critical",
        summary: "{{ $labels.instance }} cannot use what {{ $labels.secret }} says now",
    },
    Alert {
        name: "SconceFilesRunningOut",
        expression: "process_open_fds > 0.9 * process_max_fds and on (job, instance) sconce_ready",
        lasting: "5m",
        severity: "warning",
        summary: "{{ $labels.instance }} has {{ $value }} files open",
    },
];

/// The rules as YAML. Single quotes are the only characters of a quoted text that it escapes.
fn rules() -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut text =
        "# Written by a test of server/src/metrics/artifacts (SCONCE_BLESS=1).\ngroups:\n  \
                    - name: sconce\n    rules:\n"
            .to_owned();
    for Alert { name, expression, lasting, severity, summary } in ALERTS {
        let runbook = format!("{RUNBOOKS}#{}", name.to_ascii_lowercase());
        let lasting = match *lasting {
            "" => String::new(),
            time => format!("        for: {time}\n"),
        };
        let _ = write!(
            text,
            "      - alert: {name}\n        expr: {}\n{lasting}        labels:\n          \
             severity: {severity}\n        annotations:\n          summary: {}\n          \
             runbook_url: {}\n",
            quoted(expression),
            quoted(summary),
            quoted(&runbook)
        );
    }
    text
}

/// The runbooks' entries: names and texts.
fn runbooks(page: &str) -> Vec<(&str, &str)> {
    page.split("\n## ").skip(1).filter_map(|entry| entry.split_once('\n')).collect()
}

#[test]
fn the_rules_are_those_of_the_list() {
    let mut names = HashSet::new();
    for alert in ALERTS {
        assert!(names.insert(alert.name), "{} is there twice", alert.name);
        assert!(["critical", "warning"].contains(&alert.severity), "{}", alert.name);
        check_expression(alert.expression);
    }
    bless("deploy/alerts/rules.yaml", &rules());
}

#[test]
fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
    let page = read(RUNBOOKS);
    let entries = runbooks(&page);
    let names: Vec<&str> = ALERTS.iter().map(|alert| alert.name).collect();
    assert_eq!(entries.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    for (name, text) in entries {
        for part in PARTS {
            assert!(text.contains(part), "the runbook of {name} lacks `{part}`");
        }
    }
}
