//! The Grafana dashboard: a panel for each row of the table that is shown, and by hand what takes
//! several rows.

use serde_json::{Value, json};

use super::super::table::{self, Kind, Panel, Row, Unit};
use super::{bless, check_expression};

/// What finds the dashboard again, whatever its title.
const UID: &str = "sconce-server";

/// Which series count: those of the job and instances chosen above.
const CHOSEN: &str = r#"job=~"$job", instance=~"$instance""#;

/// Panels side by side, and how high they are, on a grid of 24 columns.
const COLUMNS: usize = 3;
const WIDTH: usize = 24 / COLUMNS;
const HEIGHT: usize = 8;

/// Shares of several rows: title, expression.
const SHARES: [(Panel, &str, &str); 3] = [
    (
        Panel::Cache,
        "Share of prompt tokens that were resumed",
        r#"sum by (model) (rate(sconce_tokens_total{kind="cached", job=~"$job", instance=~"$instance"}[$__rate_interval])) / sum by (model) (rate(sconce_tokens_total{kind="prompt", job=~"$job", instance=~"$instance"}[$__rate_interval]))"#,
    ),
    (
        Panel::Memory,
        "Share of state pages that running requests hold",
        r#"sum by (instance, model) (sconce_state_pages{kind="running", job=~"$job", instance=~"$instance"}) / sum by (instance, model) (sconce_state_pages{kind="max", job=~"$job", instance=~"$instance"})"#,
    ),
    (
        Panel::Requests,
        "Share of requests that were not answered OK",
        r#"sum by (rpc) (rate(sconce_requests_total{code!="OK", job=~"$job", instance=~"$instance"}[$__rate_interval])) / sum by (rpc) (rate(sconce_requests_total{job=~"$job", instance=~"$instance"}[$__rate_interval]))"#,
    ),
];

fn unit(row: &Row) -> &'static str {
    match (row.unit, row.kind) {
        (Unit::Bytes, Kind::Counter) => "Bps",
        (Unit::Bytes, _) => "bytes",
        (Unit::Seconds, Kind::Counter) | (Unit::Ratio, _) => "percentunit",
        (Unit::Seconds, _) => "s",
        (Unit::Time, _) => "dateTimeAsIso",
        (Unit::Count, Kind::Counter) => "ops",
        (Unit::Count, _) => "short",
    }
}

fn legend(labels: &[&str]) -> String {
    let parts: Vec<String> = labels.iter().map(|label| format!("{{{{{label}}}}}")).collect();
    if parts.is_empty() { "{{instance}}".to_owned() } else { parts.join(" ") }
}

/// Expression and legend of each line of a row's panel.
fn lines(row: &Row) -> Vec<(String, String)> {
    let name = row.name;
    let by = |more: &[&str]| {
        let labels: Vec<&str> = row.labels.iter().copied().chain(more.iter().copied()).collect();
        if labels.is_empty() { "instance".to_owned() } else { labels.join(", ") }
    };
    match row.kind {
        Kind::Counter => {
            let rate = format!("sum by ({}) (rate({name}{{{CHOSEN}}}[$__rate_interval]))", by(&[]));
            vec![(rate, legend(row.labels))]
        }
        Kind::Gauge if row.unit == Unit::Time => {
            vec![(format!("1000 * {name}{{{CHOSEN}}}"), legend(&[]))]
        }
        Kind::Gauge => {
            let sum = format!("sum by ({}) ({name}{{{CHOSEN}}})", by(&[]));
            vec![(sum, legend(row.labels))]
        }
        Kind::Histogram => [0.5, 0.95, 0.99]
            .map(|quantile| {
                let rate = format!("rate({name}_bucket{{{CHOSEN}}}[$__rate_interval])");
                let sum = format!("sum by ({}) ({rate})", by(&["le"]));
                let legend = format!("p{} {}", quantile * 100.0, legend(row.labels));
                (format!("histogram_quantile({quantile}, {sum})"), legend.trim_end().to_owned())
            })
            .into(),
    }
}

/// A panel, without its place.
fn panel(title: &str, description: &str, unit: &str, lines: &[(String, String)]) -> Value {
    let targets: Vec<Value> = lines
        .iter()
        .zip('A'..)
        .map(|((expression, legend), id)| {
            json!({"datasource": source(), "expr": expression, "legendFormat": legend, "refId": id.to_string()})
        })
        .collect();
    json!({
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": source(),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    })
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn variable(name: &str, query: &str) -> Value {
    json!({
        "name": name,
        "type": "query",
        "datasource": source(),
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": true,
        "includeAll": true,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    })
}

fn dashboard() -> Value {
    let (mut panels, mut top) = (Vec::new(), 0);
    for shown in Panel::SHOWN {
        panels.push(json!({
            "id": panels.len() + 1,
            "type": "row",
            "title": shown.title(),
            "collapsed": false,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
        }));
        top += 1;
        let shares = SHARES.iter().filter(|(of, ..)| *of == shown).map(|(_, title, expression)| {
            let lines = [((*expression).to_owned(), "{{instance}} {{model}} {{rpc}}".to_owned())];
            panel(title, "", "percentunit", &lines)
        });
        let rows = table::all().filter(|row| row.panel == shown);
        let rows = rows.map(|row| panel(row.name, row.help, unit(row), &lines(row)));
        let all: Vec<Value> = shares.chain(rows).collect();
        let height = all.len().div_ceil(COLUMNS) * HEIGHT;
        for (place, mut panel) in all.into_iter().enumerate() {
            panel["id"] = json!(panels.len() + 1);
            panel["gridPos"] = json!({
                "x": place % COLUMNS * WIDTH,
                "y": top + place / COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            });
            panels.push(panel);
        }
        top += height;
    }
    json!({
        "uid": UID,
        "title": "sconce",
        "tags": ["sconce", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus"},
            variable("job", "label_values(sconce_build_info, job)"),
            variable("instance", "label_values(sconce_build_info{job=~\"$job\"}, instance)"),
        ]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    })
}

#[test]
fn the_dashboard_is_that_of_the_table() {
    let dashboard = dashboard();
    let mut shown = 0;
    for panel in dashboard["panels"].as_array().expect("a list") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            check_expression(target["expr"].as_str().expect("a text"));
            shown += 1;
        }
    }
    assert!(shown > Panel::SHOWN.len(), "every row of the dashboard shows something");
    let text = serde_json::to_string_pretty(&dashboard).expect("is JSON");
    bless("deploy/grafana/sconce.json", &format!("{text}\n"));
}
