//! From rows and values to Prometheus's classic text format, version 0.0.4.

use std::collections::HashMap;

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::table::{Kind, ROWS, Row};

/// What the text is, as a header says it.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page being written.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Samples by the name of their metric.
    samples: HashMap<&'static str, Vec<Metric>>,
}

impl Page {
    /// Without a sample.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds the value of a counter or gauge with these values of its labels.
    pub(super) fn set(&mut self, row: &'static Row, labels: &[&str], value: f64) {
        let mut metric = labelled(row, labels);
        match row.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Kind::Histogram => debug_assert!(false, "{} is a histogram", row.name),
        }
        self.samples.entry(row.name).or_default().push(metric);
    }

    /// The text: the metrics that have samples, in the order of the table.
    pub(super) fn text(mut self) -> String {
        let families: Vec<MetricFamily> = ROWS
            .iter()
            .filter_map(|row| {
                let mut family = MetricFamily::default();
                family.set_name(row.name.to_owned());
                family.set_help(row.help.to_owned());
                family.set_field_type(match row.kind {
                    Kind::Counter => MetricType::COUNTER,
                    Kind::Gauge => MetricType::GAUGE,
                    Kind::Histogram => MetricType::HISTOGRAM,
                });
                family.set_metric(self.samples.remove(row.name)?);
                Some(family)
            })
            .collect();
        debug_assert!(self.samples.is_empty(), "not in the table: {:?}", self.samples.keys());
        // It refuses families without name or samples, which there are none of.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn labelled(row: &Row, labels: &[&str]) -> Metric {
    debug_assert_eq!(row.labels.len(), labels.len(), "{}", row.name);
    let pairs = row.labels.iter().zip(labels).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}
