//! Files that are written from the table: the section "Metrics" of `docs/OPERATIONS.md`, the Grafana
//! dashboard and the alerts of Prometheus. A test compares each with what is in the tree;
//! `SCONCE_BLESS=1` rewrites them instead.

mod alerts;
mod dashboard;

use std::fmt::Write as _;

use super::table::{self, Kind, Row};

/// The root of the repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Around what is written into the page by these tests.
const BEGIN: &str = "<!-- From server/src/metrics/table; rewritten with SCONCE_BLESS=1. -->\n";
const END: &str = "<!-- End of what is rewritten. -->\n";

/// The file at `path` from the root.
fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{path}")).unwrap_or_default()
}

/// Compares the file at `path` with `expected`, or makes it so.
fn bless(path: &str, expected: &str) {
    if std::env::var_os("SCONCE_BLESS").is_some() {
        std::fs::write(format!("{ROOT}/{path}"), expected).expect("can be written");
    } else {
        assert!(read(path) == expected, "{path}: run this test with SCONCE_BLESS=1");
    }
}

/// The tables of the section: our rows, then those of vLLM, then the buckets.
fn section() -> String {
    let mut text = String::new();
    for (title, rows) in [("Our own names", table::OWN), ("Names of vLLM", table::VLLM)] {
        let _ = writeln!(
            text,
            "\n### {title}\n\n| name | kind | labels | meaning |\n|---|---|---|---|"
        );
        for row in rows {
            let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
            let Row { name, kind, help, .. } = row;
            let _ =
                writeln!(text, "| `{name}` | {} | {} | {help} |", kind.name(), labels.join(", "));
        }
    }
    text += "\n### Buckets\n\n| histograms | upper bounds |\n|---|---|\n";
    let mut told: Vec<&[f64]> = Vec::new();
    for row in table::all().filter(|row| row.kind == Kind::Histogram) {
        if told.contains(&row.bounds) {
            continue;
        }
        told.push(row.bounds);
        let same = table::all().filter(|other| other.bounds == row.bounds);
        let names: Vec<String> = same.map(|row| format!("`{}`", row.name)).collect();
        let bounds: Vec<String> = row.bounds.iter().map(f64::to_string).collect();
        let _ = writeln!(text, "| {} | {} |", names.join(", "), bounds.join(" "));
    }
    text.push('\n');
    text
}

/// Fails if an expression of PromQL uses a name or a label that the table does not have.
fn check_expression(expression: &str) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
    let mut rest = expression;
    let mut metrics = 0;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let word = &rest[start..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (name, after) = word.split_at(end);
        rest = after;
        if !["sconce_", "process_", "vllm:"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let row = table::all().find(|row| match row.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(row.name)),
            _ => name == row.name,
        });
        let row = row.unwrap_or_else(|| panic!("`{name}` is not in the table: {expression}"));
        metrics += 1;
        let Some(selectors) = after.strip_prefix('{') else { continue };
        let selectors = &selectors[..selectors.find('}').expect("a closing brace")];
        for selector in selectors.split(", ") {
            let label = &selector[..selector.find(|c| !is_name(c)).expect("an operator")];
            let known = row.labels.contains(&label) || ["job", "instance"].contains(&label);
            assert!(known, "`{name}` has no label `{label}`: {expression}");
        }
        rest = &after[selectors.len() + 1..];
    }
    assert!(metrics > 0, "no metric in {expression}");
}

#[test]
fn the_page_lists_the_table() {
    let page = read("docs/OPERATIONS.md");
    let (before, rest) = page.split_once(BEGIN).expect("the section begins");
    let (_, after) = rest.split_once(END).expect("the section ends");
    bless("docs/OPERATIONS.md", &format!("{before}{BEGIN}{}{END}{after}", section()));
}

#[test]
#[should_panic(expected = "is not in the table")]
fn a_name_that_is_not_there_is_found() {
    check_expression("rate(sconce_ready[5m]) + sconce_nothing");
}

#[test]
#[should_panic(expected = "has no label")]
fn a_label_that_is_not_there_is_found() {
    check_expression("sum(sconce_requests_total{rpc=\"a\", user=\"b\"})");
}
