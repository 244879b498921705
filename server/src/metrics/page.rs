//! From rows and values to Prometheus's classic text format, version 0.0.4.

use std::collections::HashMap;

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use sconce_engine::HistogramReading;

use super::table::{self, Kind, Row};

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
        if row.kind == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            debug_assert_eq!(row.kind, Kind::Gauge, "{}", row.name);
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.samples.entry(row.name).or_default().push(metric);
    }

    /// Adds a number of things. Beyond 2^53 the format rounds.
    pub(super) fn count(&mut self, row: &'static Row, labels: &[&str], count: u64) {
        self.set(row, labels, count as f64);
    }

    /// Adds what was observed with these values of the labels.
    pub(super) fn histogram(
        &mut self,
        row: &'static Row,
        labels: &[&str],
        reading: &HistogramReading,
    ) {
        debug_assert_eq!(row.bounds, reading.bounds, "{}", row.name);
        let mut metric = labelled(row, labels);
        let mut below = 0;
        let buckets = reading.bounds.iter().zip(&reading.counts).map(|(bound, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(reading.count());
        histogram.set_sample_sum(reading.sum);
        metric.set_histogram(histogram);
        self.samples.entry(row.name).or_default().push(metric);
    }

    /// Every sample with its row, in the order of the table.
    pub(super) fn samples(&self) -> impl Iterator<Item = (&'static Row, &Metric)> {
        table::all().flat_map(|row| {
            let samples = self.samples.get(row.name).into_iter().flatten();
            samples.map(move |sample| (row, sample))
        })
    }

    /// The text: the metrics that have samples, in the order of the table.
    pub(super) fn text(mut self) -> String {
        let families: Vec<MetricFamily> = table::all()
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

#[cfg(test)]
mod tests {
    use sconce_engine::{Histogram, bounds};

    use super::*;

    #[test]
    fn values_labels_and_buckets_are_written_as_the_format_has_them() {
        let mut page = Page::new();
        let strange = "a\"b\\c\nd";
        page.count(&table::PREEMPTIONS, &[strange], 3);
        page.set(&table::READY, &[], 1.0);
        let steps = Histogram::of_counts(bounds::STEP_TOKENS);
        for tokens in [1, 9, 99_999] {
            steps.observe_count(tokens);
        }
        page.histogram(&table::BATCH_TOKENS, &["m"], &steps.read());
        let text = page.text();
        for line in [
            "# TYPE sconce_ready gauge",
            "sconce_ready 1",
            "# TYPE sconce_preemptions_total counter",
            r#"sconce_preemptions_total{model="a\"b\\c\nd"} 3"#,
            "# TYPE sconce_batch_tokens histogram",
            r#"sconce_batch_tokens_bucket{model="m",le="1"} 1"#,
            r#"sconce_batch_tokens_bucket{model="m",le="8"} 1"#,
            r#"sconce_batch_tokens_bucket{model="m",le="16"} 2"#,
            r#"sconce_batch_tokens_bucket{model="m",le="16384"} 2"#,
            r#"sconce_batch_tokens_bucket{model="m",le="+Inf"} 3"#,
            r#"sconce_batch_tokens_sum{model="m"} 100009"#,
            r#"sconce_batch_tokens_count{model="m"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
