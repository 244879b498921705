//! Every metric of a server: one row each. The page `/metrics` has these and no others; the section
//! in `docs/OPERATIONS.md`, the Grafana dashboard and the names that alerts may use come from here.

mod own;
mod vllm;

pub use own::*;
pub use vllm::*;

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

impl Kind {
    /// As the text format spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What a metric is counted in. Names tell it too; dashboards want it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Seconds.
    Seconds,
    /// Seconds since 1970.
    Time,
    /// Bytes.
    Bytes,
    /// Of one.
    Ratio,
}

/// Which row of the dashboard shows a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panel {
    /// The server as a whole.
    Server,
    /// Requests and their codes.
    Requests,
    /// How long requests take.
    Latency,
    /// Tokens, sequences and steps.
    Engine,
    /// Bytes and pages.
    Memory,
    /// What is remembered.
    Cache,
    /// Loads of models.
    Models,
    /// The process.
    Process,
    /// None: for gateways, or shown under our own name.
    None,
}

impl Panel {
    /// The rows of the dashboard, from above.
    pub const SHOWN: [Self; 8] = [
        Self::Server,
        Self::Requests,
        Self::Latency,
        Self::Engine,
        Self::Memory,
        Self::Cache,
        Self::Models,
        Self::Process,
    ];

    /// The heading of the row.
    pub fn title(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::Requests => "Requests",
            Self::Latency => "Latency",
            Self::Engine => "Engine",
            Self::Memory => "Memory",
            Self::Cache => "Cache",
            Self::Models => "Models",
            Self::Process => "Process",
            Self::None => "",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name, by the rules of Prometheus: base units, `_total` for counters.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// What it is counted in.
    pub unit: Unit,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets; empty for others.
    pub bounds: &'static [f64],
    /// Where the dashboard shows it.
    pub panel: Panel,
    /// What it tells, in a sentence.
    pub help: &'static str,
}

/// Defines rows as constants, and the list of them in the order written.
macro_rules! rows {
    (
        $(#[$list_doc:meta])* $list:ident;
        $($constant:ident = $kind:ident $name:literal [$($label:literal),*] $unit:ident $panel:ident
            $(($bounds:ident))? $help:literal;)*
    ) => {
        $(
            #[doc = $help]
            pub const $constant: Row = Row {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                bounds: rows!(@bounds $($bounds)?),
                panel: Panel::$panel,
                help: $help,
            };
        )*
        $(#[$list_doc])*
        pub const $list: &[&Row] = &[$(&$constant),*];
    };
    (@bounds) => { &[] };
    (@bounds $bounds:ident) => { sconce_engine::bounds::$bounds };
}
use rows;

/// All rows, in the order of the page.
pub fn all() -> impl Iterator<Item = &'static Row> {
    OWN.iter().chain(VLLM).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_rules_and_are_told_apart() {
        let mut names = HashSet::new();
        for row in all() {
            let own = row.name.starts_with("sconce_") || row.name.starts_with("process_");
            assert!(own || row.name.starts_with("vllm:"), "{}", row.name);
            assert!(names.insert(row.name), "{} is there twice", row.name);
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_:".contains(&b);
            assert!(row.name.bytes().all(legal), "{}", row.name);
            let total = row.name.ends_with("_total") && row.name != "vllm:iteration_tokens_total";
            assert_eq!(total, row.kind == Kind::Counter, "{}", row.name);
            assert_eq!(row.bounds.is_empty(), row.kind != Kind::Histogram, "{}", row.name);
            assert!(row.bounds.is_sorted_by(|a, b| a < b), "{}", row.name);
            assert!(row.help.ends_with('.'), "{}", row.name);
            if own && row.unit == Unit::Seconds {
                assert!(row.name.trim_end_matches("_total").ends_with("_seconds"), "{}", row.name);
            }
            if own && row.unit == Unit::Bytes {
                assert!(row.name.trim_end_matches("_total").ends_with("_bytes"), "{}", row.name);
            }
        }
    }
}
