//! The results of `sconce bench server` for people, and beside those of another run.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::measured::Measured;
use super::percentiles::Percentiles;
use crate::cli::error::CliError;
use crate::cli::output;

/// What is compared, by its place in the JSON.
const COMPARED: [&str; 10] = [
    "/goodput_per_second",
    "/input_tokens_per_second",
    "/output_tokens_per_second",
    "/cached_share",
    "/ttft_seconds/p50",
    "/ttft_seconds/p99",
    "/itl_seconds/p50",
    "/itl_seconds/p99",
    "/total_seconds/p50",
    "/total_seconds/p99",
];

/// A table of the cases, one of their times, and remarks.
pub(super) fn table(measured: &[Measured]) -> String {
    let cases: Vec<Vec<String>> = measured
        .iter()
        .map(|case| {
            let refused: usize = case.refused.values().map(Percentiles::count).sum();
            vec![
                case.arrivals.describe(),
                case.sent.to_string(),
                case.done.to_string(),
                refused.to_string(),
                format!("{:.2}", case.goodput),
                format!("{:.1}", case.input_rate),
                format!("{:.1}", case.output_rate),
                format!("{:.0}", 100.0 * case.cached_share),
            ]
        })
        .collect();
    let header =
        ["arrivals", "sent", "done", "refused", "good/s", "in tok/s", "out tok/s", "cached %"];
    let mut text = output::table(&header, &[1, 2, 3, 4, 5, 6, 7], &cases);
    text.push('\n');
    let rows: Vec<Vec<String>> = measured.iter().flat_map(times).collect();
    let header = ["milliseconds", "of", "p50", "p90", "p95", "p99", "n"];
    text += &output::table(&header, &[2, 3, 4, 5, 6], &rows);
    for case in measured.iter().filter(|case| case.unsent > 0) {
        text += &format!(
            "{}: {} requests were not sent, for as many were open as the connections hold; \
             see --connections\n",
            case.arrivals.describe(),
            case.unsent
        );
    }
    text
}

fn times(case: &Measured) -> Vec<Vec<String>> {
    let named = [
        ("first token", &case.ttft),
        ("between tokens", &case.itl),
        ("to the end", &case.total),
        ("in the queue", &case.queue),
        ("sent late by", &case.late),
    ];
    let named = named.into_iter().map(|(name, times)| (name.to_owned(), times));
    let refused = case.refused.iter().map(|(code, times)| (format!("until {code}"), times));
    named
        .chain(refused)
        .filter(|(_, times)| times.count() > 0)
        .map(|(name, times)| {
            let at =
                |share| times.at(share).map_or("-".to_owned(), |time| format!("{:.2}", 1e3 * time));
            let mut row = vec![case.arrivals.describe(), name];
            row.extend([0.5, 0.9, 0.95, 0.99].map(at));
            row.push(times.count().to_string());
            row
        })
        .collect()
}

/// Reads the JSON of another run.
pub(super) fn read(path: &PathBuf) -> Result<Value, CliError> {
    let wrong = |why: String| CliError::Usage(format!("--compare {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let document: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if !document["results"].is_array() {
        return Err(wrong(
            "expected the JSON of `sconce bench server`, found no results".to_owned(),
        ));
    }
    Ok(document)
}

/// What became of the cases that the other run has too: the value then, now, and their ratio.
pub(super) fn compare(old: &Value, measured: &[Measured]) -> Vec<Value> {
    let old = old["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut compared = Vec::new();
    for case in measured {
        let new = case.to_json();
        let same = |old: &&Value| old["rate"] == new["rate"] && old["streams"] == new["streams"];
        let Some(old) = old.iter().find(same) else { continue };
        for place in COMPARED {
            let value = |document: &Value| document.pointer(place).and_then(Value::as_f64);
            let (Some(before), Some(now)) = (value(old), value(&new)) else { continue };
            compared.push(json!({
                "arrivals": case.arrivals.describe(),
                "what": &place[1..],
                "before": before,
                "now": now,
                "ratio": (before != 0.0).then(|| now / before),
            }));
        }
    }
    compared
}

/// The same for people.
pub(super) fn comparison(compared: &[Value]) -> String {
    if compared.is_empty() {
        return "\nthe other run has none of these cases\n".to_owned();
    }
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let number = |row: &Value, field: &str| {
        row[field].as_f64().map_or("-".to_owned(), |value| format!("{value:.4}"))
    };
    let rows: Vec<Vec<String>> = compared
        .iter()
        .map(|row| {
            let mut cells = vec![text(row, "arrivals"), text(row, "what")];
            cells.extend(["before", "now", "ratio"].map(|field| number(row, field)));
            cells
        })
        .collect();
    format!(
        "\n{}",
        output::table(&["compared", "what", "before", "now", "ratio"], &[2, 3, 4], &rows)
    )
}
