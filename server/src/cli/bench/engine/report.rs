//! The results of cases as a table, a document or lines: rates, and how near they come to what the
//! machine can do.

use std::time::Duration;

use sconce_bench::Peaks;
use sconce_models::{Model, StepWork};
use serde_json::{Map, Value, json};

use super::Args;
use super::plan::Case;
use super::run::work_of;
use crate::cli::bench::format::{Format, object};
use crate::cli::bench::machine::{self, Threads};
use crate::cli::bench::stats::Summary;
use crate::cli::error::CliError;
use crate::cli::output;

/// A case, its times in their order, and what it is held against.
#[derive(Debug)]
pub(super) struct CaseResult {
    case: Case,
    seconds: Vec<f64>,
    /// Tokens per second over all sequences.
    rates: Summary,
    /// Bytes and multiply-adds of one token, on average over the case.
    per_token: Option<StepWork>,
    shares: Option<Shares>,
}

/// What was reached of the peaks in the median of the times.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shares {
    /// Bytes of weights and state, by what could have been read.
    read: f64,
    /// Time that all multiply-adds take at their peak rates.
    compute: f64,
}

impl CaseResult {
    /// The result of `case`, whose runs took `times`.
    pub(super) fn new(
        case: Case,
        times: &[Duration],
        model: &dyn Model,
        peaks: Option<Peaks>,
    ) -> Self {
        let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        let tokens = (case.tokens() * case.streams) as f64;
        let rates: Vec<f64> = seconds.iter().map(|seconds| tokens / seconds).collect();
        let rates = Summary::of(&rates);
        let work = model.work().map(|work| work_of(&case, work));
        let shares = work
            .zip(peaks)
            .map(|(work, peaks)| Shares::of(&work, &peaks, Summary::of(&seconds).median));
        let per_token = work.map(|work| StepWork {
            weight_bytes: work.weight_bytes / tokens,
            state_bytes: work.state_bytes / tokens,
            integer_macs: work.integer_macs / tokens,
            float_macs: work.float_macs / tokens,
        });
        Self { case, seconds, rates, per_token, shares }
    }

    fn cells(&self) -> Vec<String> {
        let Case { kind, threads, depth, prompt, generate, streams, .. } = self.case;
        let tokens = match (prompt, generate) {
            (prompt, 0) => prompt.to_string(),
            (0, generate) => generate.to_string(),
            (prompt, generate) => format!("{prompt}+{generate}"),
        };
        let share = |share: fn(&Shares) -> f64| match &self.shares {
            Some(shares) => format!("{:.0} %", 100.0 * share(shares)),
            None => "-".to_owned(),
        };
        vec![
            kind.name().to_owned(),
            tokens,
            depth.to_string(),
            streams.to_string(),
            threads.to_string(),
            // A step of decoding has a token of each sequence.
            self.case.prefill_step().unwrap_or(streams).to_string(),
            format!("{:.1}", self.rates.median),
            format!("{:.1} to {:.1}", self.rates.min, self.rates.max),
            format!("{:.1}", self.rates.stddev),
            share(|shares| shares.read),
            share(|shares| shares.compute),
        ]
    }

    fn to_json(&self) -> Map<String, Value> {
        let case = self.case;
        let per_token = |value: fn(&StepWork) -> f64| self.per_token.as_ref().map(value);
        let fields = json!({
            "work": case.kind.name(),
            "tokens": case.tokens(),
            "prompt_tokens": case.prompt,
            "generated_tokens": case.generate,
            "depth": case.depth,
            "streams": case.streams,
            "threads": case.threads,
            "step_tokens_max": case.prefill_step(),
            "seconds": self.seconds,
            "weight_bytes_per_token": per_token(|work| work.weight_bytes),
            "state_bytes_per_token": per_token(|work| work.state_bytes),
            "integer_macs_per_token": per_token(|work| work.integer_macs),
            "float_macs_per_token": per_token(|work| work.float_macs),
            "read_bandwidth_share": self.shares.map(|shares| shares.read),
            "compute_share": self.shares.map(|shares| shares.compute),
        });
        let mut fields = object(fields);
        fields.extend(Summary::of(&self.seconds).fields("seconds"));
        fields.extend(self.rates.fields("tokens_per_second"));
        fields
    }
}

impl Shares {
    fn of(work: &StepWork, peaks: &Peaks, seconds: f64) -> Self {
        let products = work.integer_macs / peaks.integer_macs + work.float_macs / peaks.float_macs;
        Self { read: work.bytes() / peaks.read_bytes / seconds, compute: products / seconds }
    }
}

/// Writes the results as `args` wants them.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn write(
    args: &Args,
    model: &dyn Model,
    threads: &[Threads],
    results: &[CaseResult],
) -> Result<(), CliError> {
    let run = || run_to_json(args, model, threads);
    match args.output.format() {
        Format::Table => table(args, model, threads, results),
        Format::Json => {
            let mut document = run();
            let results = results.iter().map(|result| Value::Object(result.to_json()));
            document.insert("results".to_owned(), results.collect());
            output::json(&Value::Object(document))
        }
        Format::Jsonl => results.iter().try_for_each(|result| {
            let mut fields = run();
            fields.extend(result.to_json());
            output::line(Value::Object(fields))
        }),
    }
}

/// What is the same for all cases.
fn run_to_json(args: &Args, model: &dyn Model, threads: &[Threads]) -> Map<String, Value> {
    let (info, footprint) = (model.info(), model.footprint());
    let mut machine = object(machine::describe());
    machine.insert("isa".to_owned(), json!(sconce_bench::Isa::current().to_string()));
    object(json!({
        "version": crate::telemetry::version(),
        "machine": machine,
        "peaks": threads.iter().map(Threads::peaks_to_json).collect::<Vec<_>>(),
        "path": args.path,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "layers": info.layers,
        "weight_format": info.weight_format,
        "weight_bytes": footprint.weights_bytes,
        "state_bytes_per_position": model.state().layout().bytes_per_token(),
        "precision": args.precision.precision().name(),
        "repetitions": args.repetitions,
        "warm_up_tokens": args.warm_up,
    }))
}

fn table(
    args: &Args,
    model: &dyn Model,
    threads: &[Threads],
    results: &[CaseResult],
) -> Result<(), CliError> {
    let info = model.info();
    output::line(format_args!(
        "{}: {}, {:.1} M parameters, {}, {} in memory, {}\n{}, {}",
        args.path,
        info.architecture,
        info.parameters as f64 / 1e6,
        info.weight_format,
        output::bytes(model.footprint().weights_bytes),
        args.precision.precision(),
        machine::processor(),
        sconce_bench::Isa::current(),
    ))?;
    threads.iter().filter_map(Threads::peaks_in_words).try_for_each(output::line)?;
    let header = [
        "work", "tokens", "depth", "streams", "threads", "step", "tok/s", "range", "stddev",
        "read", "compute",
    ];
    let rows: Vec<Vec<String>> = results.iter().map(CaseResult::cells).collect();
    let right: Vec<usize> = (1..header.len()).collect();
    output::write(&output::table(&header, &right, &rows))
}

#[cfg(test)]
mod tests {
    use sconce_bench::Isa;

    use super::*;

    #[test]
    fn shares_are_what_the_peaks_would_have_taken_of_the_time() {
        let work = StepWork {
            weight_bytes: 30.0,
            state_bytes: 10.0,
            integer_macs: 100.0,
            float_macs: 20.0,
        };
        let (read_bytes, float_macs, integer_macs) = (20.0, 10.0, 50.0);
        let peaks = Peaks { isa: Isa::Portable, threads: 1, read_bytes, float_macs, integer_macs };
        let shares = Shares::of(&work, &peaks, 8.0);
        assert_eq!((shares.read, shares.compute), (0.25, 0.5));
    }
}
