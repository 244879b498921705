//! A strict reader of Prometheus's classic text format (version 0.0.4): what it takes, any scraper
//! takes, and what it finds wrong fails the test.

use std::collections::{BTreeMap, BTreeSet};

/// A sample's name with its labels, sorted: `name{a="x",b="y"}`, or the name alone.
type Series = String;

/// A page, read.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    /// Types by family.
    types: BTreeMap<String, String>,
    samples: BTreeMap<Series, f64>,
}

impl Scrape {
    /// Reads `text` and checks it.
    pub(crate) fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line does not end");
        let mut scrape = Self::default();
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a name and a help");
                assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(helped.contains(name), "{line} comes before its help");
                let new = scrape.types.insert(name.to_owned(), kind.to_owned()).is_none();
                assert!(new, "{name} is there twice");
                name.clone_into(&mut family);
            } else {
                assert!(!line.starts_with('#'), "{line}");
                scrape.sample(line, &family);
            }
        }
        scrape.check_histograms();
        scrape
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
            None => (series, ""),
        };
        let suffixes: &[&str] = match self.types[family].as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let belongs = suffixes.iter().any(|suffix| name == format!("{family}{suffix}"));
        assert!(belongs, "{line} stands under {family}");
        let mut labels = labels_of(labels);
        labels.sort();
        let value: f64 = value.parse().expect(line);
        assert!(value.is_finite() && value >= 0.0, "{line}");
        let old = self.samples.insert(key(name, &labels), value);
        assert_eq!(old, None, "{line} is there twice");
    }

    /// Buckets grow, and the last is the count.
    fn check_histograms(&self) {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            for (labels, count) in self.of(&format!("{name}_count")) {
                let mut buckets: Vec<(f64, f64)> = self
                    .of(&format!("{name}_bucket"))
                    .filter_map(|(mut all, value)| {
                        let le = all.remove("le").expect("a bucket has a bound");
                        (all == labels).then(|| (le.parse().expect("is a number"), value))
                    })
                    .collect();
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{name} {labels:?}: {buckets:?}");
                assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{name} {labels:?}");
                let sum = self.of(&format!("{name}_sum")).find(|(all, _)| *all == labels);
                assert!(sum.is_some(), "{name} {labels:?} has no sum");
            }
        }
    }

    /// Samples of a name, with their labels.
    pub(crate) fn of(&self, name: &str) -> impl Iterator<Item = (BTreeMap<String, String>, f64)> {
        let prefix = format!("{name}{{");
        self.samples.iter().filter_map(move |(series, value)| {
            if *series == prefix[..prefix.len() - 1] {
                return Some((BTreeMap::new(), *value));
            }
            let labels = series.strip_prefix(&prefix)?.strip_suffix('}')?;
            Some((labels_of(labels).into_iter().collect(), *value))
        })
    }

    /// The value of a series, 0 if it is not there.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut labels: Vec<(String, String)> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        labels.sort();
        self.samples.get(&key(name, &labels)).copied().unwrap_or(0.0)
    }

    /// The sum over all series of a name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.of(name).map(|(_, value)| value).sum()
    }

    /// Names of families.
    pub(crate) fn families(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(String::as_str)
    }

    /// All counters, and counts and buckets of histograms: what may only grow.
    pub(crate) fn growing(&self) -> BTreeMap<&str, f64> {
        let grows = |series: &str| {
            let name = series.split('{').next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|family| self.types.contains_key(*family));
            self.types[family.unwrap_or(name)] != "gauge"
        };
        let all = self.samples.iter().map(|(series, value)| (series.as_str(), *value));
        all.filter(|(series, _)| grows(series)).collect()
    }
}

fn key(name: &str, labels: &[(String, String)]) -> Series {
    if labels.is_empty() {
        return name.to_owned();
    }
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

/// Labels between the braces; values have no quotes in them in these tests.
fn labels_of(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a label");
        let (value, after) = after.split_once('"').expect("a closing quote");
        let first = name.bytes().next().expect("a name");
        assert!(first.is_ascii_lowercase(), "{text}");
        labels.push((name.to_owned(), value.to_owned()));
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    labels
}
