//! The measurements of operators as a table, a document or lines, each against what bounds it.

use sconce_bench::{Bound, Isa, Labels, Measurement, Options, Peaks};
use serde_json::{Map, Value, json};

use crate::cli::bench::format::{Format, object};
use crate::cli::bench::machine::{self, Threads};
use crate::cli::bench::stats::Summary;
use crate::cli::error::CliError;
use crate::cli::output;

/// Everything that was measured with one level on one number of threads.
pub(super) struct Run {
    pub(super) isa: Isa,
    pub(super) threads: Threads,
    pub(super) measurements: Vec<Measurement>,
}

/// Writes measurements or runs as they come, or all of them at the end.
pub(super) struct Writer {
    format: Format,
    options: Options,
    peaks: Vec<Value>,
    results: Vec<Value>,
}

impl Writer {
    /// A writer of what `options` asked for.
    pub(super) fn new(format: Format, options: Options) -> Self {
        Self { format, options, peaks: Vec::new(), results: Vec::new() }
    }

    /// What was asked for.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Takes a measurement that `run` is going to have.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn hear(&self, run: &Run, found: &Measurement) -> Result<(), CliError> {
        if self.format != Format::Jsonl {
            return Ok(());
        }
        let mut fields = self.same_for_all();
        fields.extend(object(to_json(run, found)));
        fields.insert("peaks".to_owned(), run.threads.peaks_to_json());
        output::line(Value::Object(fields))
    }

    /// Takes a run, of which all measurements were heard.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn add(&mut self, run: Run) -> Result<(), CliError> {
        if run.measurements.is_empty() {
            return Ok(());
        }
        match self.format {
            Format::Table => table(&run),
            Format::Json => {
                let mut peaks = object(run.threads.peaks_to_json());
                peaks.insert("isa".to_owned(), json!(run.isa.to_string()));
                self.peaks.push(Value::Object(peaks));
                self.results.extend(run.measurements.iter().map(|found| to_json(&run, found)));
                Ok(())
            }
            Format::Jsonl => Ok(()),
        }
    }

    /// Writes what was kept back, if there is any of it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn finish(self) -> Result<(), CliError> {
        if self.results.is_empty() {
            return Ok(());
        }
        let mut document = self.same_for_all();
        document.insert("peaks".to_owned(), Value::Array(self.peaks));
        document.insert("results".to_owned(), Value::Array(self.results));
        output::json(&Value::Object(document))
    }

    fn same_for_all(&self) -> Map<String, Value> {
        let sizes = self.options.sizes.named();
        let sizes = sizes.map(|(name, size)| (name.replace('-', "_"), json!(size)));
        object(json!({
            "version": crate::telemetry::version(),
            "machine": machine::describe(),
            "sizes": Map::from_iter(sizes),
            "cold": self.options.cold,
            "repetitions": self.options.repetitions,
        }))
    }
}

/// Rates of the median time, and what they are of the peaks.
struct Rates {
    seconds: f64,
    gigabytes: f64,
    /// Thousand millions of multiply-adds of integers, and of operations of f32: two each.
    integer_gmacs: f64,
    gflops: f64,
    /// Share of the bound, and which it is.
    share: Option<(f64, Bound)>,
}

impl Rates {
    fn of(found: &Measurement, peaks: Option<&Peaks>) -> Self {
        let seconds = Summary::of(&found.seconds).median.max(f64::MIN_POSITIVE);
        let work = &found.work;
        let share = peaks.map(|peaks| {
            let (least, bound) = work.least_seconds(peaks);
            (least / seconds, bound)
        });
        Self {
            seconds,
            gigabytes: work.bytes / seconds / 1e9,
            integer_gmacs: work.integer_macs / seconds / 1e9,
            gflops: 2.0 * work.float_macs / seconds / 1e9,
            share,
        }
    }
}

fn to_json(run: &Run, found: &Measurement) -> Value {
    let rates = Rates::of(found, run.threads.peaks.as_ref());
    let Labels { shape, format, activations, rows, depth } = &found.labels;
    let mut fields = object(json!({
        "operator": found.operator.name(),
        "shape": shape,
        "format": format,
        "activations": activations,
        "rows": rows,
        "depth": depth,
        "isa": run.isa.to_string(),
        "threads": run.threads.count,
        "seconds": found.seconds,
        "bytes": found.work.bytes,
        "integer_macs": found.work.integer_macs,
        "float_macs": found.work.float_macs,
        "gigabytes_per_second": rates.gigabytes,
        "integer_gmacs_per_second": rates.integer_gmacs,
        "gflops_per_second": rates.gflops,
        "bound": rates.share.map(|(_, bound)| bound.name()),
        "bound_share": rates.share.map(|(share, _)| share),
    }));
    fields.extend(Summary::of(&found.seconds).fields("seconds"));
    Value::Object(fields)
}

fn table(run: &Run) -> Result<(), CliError> {
    let without = || format!("{} on {} threads", run.isa, run.threads.count);
    let peaks = run.threads.peaks_in_words().unwrap_or_else(without);
    output::line(format_args!("{}\n{peaks}", machine::processor()))?;
    let rows: Vec<Vec<String>> =
        run.measurements.iter().map(|found| cells(found, run.threads.peaks.as_ref())).collect();
    let header = [
        "operator",
        "shape",
        "format",
        "reads",
        "depth",
        "rows",
        "us",
        "min",
        "GB/s",
        "GMAC/s int",
        "GFLOP/s",
        "share",
        "bound",
    ];
    output::write(&output::table(&header, &[4, 5, 6, 7, 8, 9, 10, 11], &rows))
}

fn cells(found: &Measurement, peaks: Option<&Peaks>) -> Vec<String> {
    let rates = Rates::of(found, peaks);
    let Labels { shape, format, activations, rows, depth } = &found.labels;
    let text = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let rate = |rate: f64| if rate > 0.0 { format!("{rate:.1}") } else { "-".to_owned() };
    vec![
        found.operator.name().to_owned(),
        shape.clone(),
        text(*format),
        text(*activations),
        depth.map_or_else(|| "-".to_owned(), |depth| depth.to_string()),
        rows.to_string(),
        format!("{:.1}", rates.seconds * 1e6),
        format!("{:.1}", Summary::of(&found.seconds).min * 1e6),
        rate(rates.gigabytes),
        rate(rates.integer_gmacs),
        rate(rates.gflops),
        rates.share.map_or_else(|| "-".to_owned(), |(share, _)| format!("{:.0} %", 100.0 * share)),
        text(rates.share.map(|(_, bound)| bound.name())),
    ]
}

#[cfg(test)]
mod tests {
    use sconce_bench::{Operator, Work};

    use super::*;

    #[test]
    fn rates_are_those_of_the_median() {
        let found = Measurement {
            operator: Operator::Matmul,
            labels: Labels::default(),
            work: Work { bytes: 2e9, integer_macs: 0.0, float_macs: 4e9 },
            seconds: vec![4.0, 1.0, 2.0],
        };
        let (read_bytes, float_macs, integer_macs) = (2e9, 1e9, 1e9);
        let peaks = Peaks { isa: Isa::Portable, threads: 1, read_bytes, float_macs, integer_macs };
        let rates = Rates::of(&found, Some(&peaks));
        assert_eq!((rates.seconds, rates.gigabytes, rates.gflops), (2.0, 1.0, 4.0));
        assert_eq!(rates.share, Some((2.0, Bound::Compute)));
        assert_eq!(Rates::of(&found, None).share, None);
    }
}
