//! `sconce bench engine`: tokens per second of prefill and decode, at depth and in batches.
//!
//! Every repetition runs all cases in turn, so that a machine that slows down meanwhile slows all of
//! them alike; what is reported is the median.

use std::time::{Duration, Instant};

use sconce_models::{Error, SequenceId};
use serde_json::json;

use super::stepper::{Stepper, random_tokens};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::precision::PrecisionArgs;

/// Most repetitions.
const REPETITIONS_MAX: usize = 1000;
/// Length of the run of each case that is not counted.
const WARM_UP_TOKENS: usize = 8;

/// Arguments of `sconce bench engine`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: super::ModelArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Lengths of prompts to prefill; 0 for none
    #[arg(long, short = 'p', value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// How many tokens to decode; 0 for none
    #[arg(long, short = 'g', value_name = "TOKENS", default_value_t = 128)]
    generate: usize,
    /// Tokens a sequence holds before the measured ones
    #[arg(long, short = 'd', value_name = "TOKENS", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences that decode together
    #[arg(long, short = 'b', value_name = "N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// How often each case is measured
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    /// Tokens of each sequence that are measured.
    tokens: usize,
    /// Tokens of each sequence before them.
    depth: usize,
    /// Sequences; 1 for a prefill.
    batch: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prefill,
    Decode,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Runs `sconce bench engine`.
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let cases = cases(&args)?;
    let context = cases.iter().map(|case| case.depth + case.tokens).max().unwrap_or(0);
    let sequences = cases.iter().map(|case| case.batch).max().unwrap_or(1);
    let model = args.model.load(args.precision.precision(), context, sequences)?;
    let mut bench = Bench::new(model, context);
    let results = bench.measure(&cases, args.repetitions).map_err(failed)?;
    if args.json { report_json(&args, &bench, &results) } else { report_table(&bench, &results) }
}

fn cases(args: &Args) -> Result<Vec<Case>, CliError> {
    if !(1..=REPETITIONS_MAX).contains(&args.repetitions) || args.batch.contains(&0) {
        return Err(CliError::Usage(format!(
            "expected --repetitions from 1 to {REPETITIONS_MAX} and --batch of at least 1"
        )));
    }
    let mut cases = Vec::new();
    for &depth in &args.depth {
        for &tokens in args.prompt.iter().filter(|tokens| **tokens > 0) {
            cases.push(Case { tokens, depth, batch: 1, kind: Kind::Prefill });
        }
        for &batch in args.batch.iter().filter(|_| args.generate > 0) {
            cases.push(Case { tokens: args.generate, depth, batch, kind: Kind::Decode });
        }
    }
    if cases.is_empty() {
        return Err(CliError::Usage("nothing to measure: --prompt 0 and --generate 0".to_owned()));
    }
    Ok(cases)
}

fn failed(error: Error) -> CliError {
    CliError::Internal(format!("a step failed: {error}"))
}

struct Bench {
    stepper: Stepper,
    tokens: Vec<u32>,
}

impl Bench {
    fn new(stepper: Stepper, context: usize) -> Self {
        let tokens = random_tokens(context + 1, stepper.model().info().vocab_size);
        Self { stepper, tokens }
    }

    /// Measures cases in turn, `repetitions` times.
    fn measure(&mut self, cases: &[Case], repetitions: usize) -> Result<Vec<CaseResult>, Error> {
        // Weights are paged in and threads started by the first run, which nobody waits for in
        // service.
        for case in cases {
            self.time(Case { tokens: case.tokens.min(WARM_UP_TOKENS), ..*case })?;
        }
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); cases.len()];
        for _ in 0..repetitions {
            for (case, times) in cases.iter().zip(&mut times) {
                times.push(self.time(*case)?);
            }
        }
        Ok(cases.iter().zip(times).map(|(case, times)| CaseResult::new(*case, times)).collect())
    }

    /// Time of one run of `case`, from sequences that are at its depth already. They are brought
    /// there anew each time, since state that is recurrent cannot be rewound.
    fn time(&mut self, case: Case) -> Result<Duration, Error> {
        let sequences = self.stepper.open(case.batch)?;
        if case.depth > 0 {
            for &sequence in &sequences {
                self.stepper.prefill(sequence, &self.tokens[..case.depth])?;
            }
        }
        let start = Instant::now();
        self.run(case, &sequences)?;
        let time = start.elapsed();
        self.stepper.close(&sequences)?;
        Ok(time)
    }

    fn run(&mut self, case: Case, sequences: &[SequenceId]) -> Result<(), Error> {
        let tokens = &self.tokens[case.depth..][..case.tokens];
        match case.kind {
            Kind::Prefill => self.stepper.prefill(sequences[0], tokens),
            Kind::Decode => tokens.iter().try_for_each(|&token| {
                self.stepper.decode(sequences, &vec![token; sequences.len()]).map(|_| ())
            }),
        }
    }
}

/// A case and its times, fastest first.
struct CaseResult {
    case: Case,
    times: Vec<Duration>,
}

impl CaseResult {
    fn new(case: Case, mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { case, times }
    }

    /// Tokens per second over all sequences, for the median of the times.
    fn median_rate(&self) -> f64 {
        self.rate(self.times[self.times.len() / 2])
    }

    fn rate(&self, time: Duration) -> f64 {
        (self.case.tokens * self.case.batch) as f64 / time.as_secs_f64()
    }

    fn fastest_rate(&self) -> f64 {
        self.rate(self.times[0])
    }

    fn slowest_rate(&self) -> f64 {
        self.rate(self.times[self.times.len() - 1])
    }
}

fn report_table(bench: &Bench, results: &[CaseResult]) -> Result<(), CliError> {
    let info = bench.stepper.model().info();
    output::line(format_args!(
        "{}, {:.1} M parameters, {}, {} in memory",
        info.architecture,
        info.parameters as f64 / 1e6,
        info.weight_format,
        output::bytes(bench.stepper.model().footprint().weights_bytes),
    ))?;
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|result| {
            let case = result.case;
            vec![
                case.kind.name().to_owned(),
                case.tokens.to_string(),
                case.depth.to_string(),
                case.batch.to_string(),
                format!("{:.1}", result.median_rate()),
                format!("{:.1} to {:.1}", result.slowest_rate(), result.fastest_rate()),
            ]
        })
        .collect();
    let header = ["work", "tokens", "depth", "batch", "tok/s median", "range"];
    output::write(&output::table(&header, &[1, 2, 3, 4, 5], &rows))
}

fn report_json(args: &Args, bench: &Bench, results: &[CaseResult]) -> Result<(), CliError> {
    let info = bench.stepper.model().info();
    let results: Vec<_> = results
        .iter()
        .map(|result| {
            json!({
                "work": result.case.kind.name(),
                "tokens": result.case.tokens,
                "depth": result.case.depth,
                "batch": result.case.batch,
                "tokens_per_second_median": result.median_rate(),
                "seconds": result.times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            })
        })
        .collect();
    output::json(&json!({
        "version": crate::telemetry::version(),
        "path": args.model.path,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "weight_format": info.weight_format,
        "precision": args.precision.precision().name(),
        "threads": sconce_models::threads::count(),
        "results": results,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_all_sequences_and_take_the_median() {
        let case = Case { tokens: 100, depth: 0, batch: 2, kind: Kind::Decode };
        let times = [4, 1, 2].map(Duration::from_secs).to_vec();
        let result = CaseResult::new(case, times);
        assert_eq!(result.median_rate(), 100.0);
        assert_eq!(result.slowest_rate(), 50.0);
        assert_eq!(result.fastest_rate(), 200.0);
    }
}
