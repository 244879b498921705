//! Every metric of a server: one row each. The page `/metrics` has these and no others.

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 when the server starts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many observations lay below each of some bounds.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name, by the rules of Prometheus: base units, `_total` for counters.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells, in a sentence.
    pub help: &'static str,
}

/// A gauge.
const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Row {
    Row { name, kind: Kind::Gauge, labels, help }
}

/// What runs.
pub const BUILD_INFO: Row =
    gauge("sconce_build_info", &["version", "commit", "device"], "What runs; always 1.");
/// For how long.
pub const UPTIME: Row = gauge("sconce_uptime_seconds", &[], "Time since the server started.");
/// Whether completions are answered.
pub const READY: Row = gauge(
    "sconce_ready",
    &[],
    "Whether completions are answered: 1 if a model is ready and the server does not drain.",
);

/// All rows, in the order of the page.
pub const ROWS: &[&Row] = &[&BUILD_INFO, &UPTIME, &READY];
