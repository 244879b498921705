//! `sconce bench engine`: tokens per second of prefill and decode, at depth and in batches, and
//! what share of the machine's peaks that is.

mod plan;
mod report;
mod run;

use std::ops::ControlFlow;

use sconce_bench::{Isa, PeakOptions};
use sconce_models::load::{LoadOptions, STEP_TOKENS_MAX, load};
use sconce_models::{Error, Model};

use self::plan::{Case, Pair, cases};
use self::report::CaseResult;
use self::run::{Bench, Plan};
use super::format::FormatArgs;
use super::machine::{Threads, thread_counts};
use super::stepper::Stepper;
use crate::cli::error::CliError;
use crate::cli::precision::PrecisionArgs;

/// Arguments of `sconce bench engine`. Flags that take several values are combined, each with each.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Checkpoint: a directory, a .gguf file, or sim:
    #[arg(long, short = 'm', value_name = "PATH")]
    path: String,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Lengths of prompts to prefill; 0 for none
    #[arg(long, short = 'p', alias = "prompt", value_name = "TOKENS")]
    #[arg(value_delimiter = ',', default_value = "512")]
    prompts: Vec<usize>,
    /// How many tokens to decode; 0 for none
    #[arg(long, short = 'g', short_alias = 'n', value_name = "TOKENS")]
    #[arg(value_delimiter = ',', default_value = "128")]
    generate: Vec<usize>,
    /// Prompts, and tokens decoded after them, to measure together: 512+128
    #[arg(long, value_name = "PROMPT+TOKENS", value_delimiter = ',')]
    pairs: Vec<Pair>,
    /// Tokens a sequence holds before the measured ones
    #[arg(long, short = 'd', alias = "depth", value_name = "TOKENS")]
    #[arg(value_delimiter = ',', default_value = "0")]
    depths: Vec<usize>,
    /// Sequences that decode together
    #[arg(long, short = 's', alias = "batch", short_alias = 'b', value_name = "N")]
    #[arg(value_delimiter = ',', default_value = "1")]
    streams: Vec<usize>,
    /// Most tokens of a step of prefill
    #[arg(long, short = 'u', value_name = "TOKENS", value_delimiter = ',')]
    #[arg(default_values_t = [STEP_TOKENS_MAX])]
    step_tokens: Vec<usize>,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, short = 't', value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// How often each case is measured
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Most tokens of a run of each case before it is measured; 0 for none
    #[arg(long, value_name = "TOKENS", default_value_t = 8)]
    warm_up: usize,
    /// Leave out what the machine can do at most, and the shares of it
    #[arg(long)]
    no_peaks: bool,
    #[command(flatten)]
    output: FormatArgs,
}

const HELP: &str = "\
`read` is the share of the machine's read bandwidth: bytes of the weights that the steps use (the \
experts that their tokens choose, the head, not the table of embeddings), of the keys and values \
they attend to and of recurrent state, by the median time. `compute` is the share of its \
multiply-adds: products of weights, attention and recurrent layers, each against the peak of its \
kind, integers or f32. Peaks are measured first, on the same threads.";

/// Runs `sconce bench engine`.
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let counts = thread_counts(&args.threads);
    let cases = cases(&args, &counts)?;
    let options = PeakOptions::default();
    let peaks = (!args.no_peaks).then_some(&options);
    // Peaks come first, while the machine has its memory and its power to itself.
    let threads = Threads::start(&counts, Isa::current(), peaks)?;
    let model = load_for(&args, &cases)?;
    expect_room(model.as_ref(), &cases)?;
    let context = cases.iter().map(Case::context).max().unwrap_or(0);
    let streams = cases.iter().map(|case| case.streams).max().unwrap_or(1);
    let mut bench = Bench::new(Stepper::new(model), context, streams);
    let plan = Plan { cases: &cases, repetitions: args.repetitions, warm_up: args.warm_up };
    let times = bench
        .measure(plan, &threads)
        .map_err(|error| CliError::Internal(format!("a step failed: {error}")))?;
    let model = bench.stepper().model();
    let peaks = |case: &Case| threads.iter().find(|of| of.count == case.threads)?.peaks;
    let results: Vec<CaseResult> = cases
        .iter()
        .zip(&times)
        .map(|(case, times)| CaseResult::new(*case, times, model, peaks(case)))
        .collect();
    report::write(&args, model, &threads, &results)
}

/// The model, with room for the largest of `cases` in each respect.
fn load_for(args: &Args, cases: &[Case]) -> Result<Box<dyn Model>, CliError> {
    let most = |of: fn(&Case) -> usize| cases.iter().map(of).max().unwrap_or(1);
    let (streams, step_tokens) = (most(|case| case.streams), most(|case| case.step_tokens));
    let options = LoadOptions {
        context_length: Some(most(Case::context)),
        precision: args.precision.precision(),
        sequences_max: streams,
        step_tokens_max: step_tokens.max(streams),
        ..LoadOptions::default()
    };
    load(&args.path, &options, &mut |_| ControlFlow::Continue(())).map_err(|error| {
        // The option is known here by the flags that it was made from.
        let flags = match &error {
            Error::Option { option, .. } => match option.as_str() {
                "context_length" => "--depths, --prompts, --generate or --pairs: ",
                "sequences_max" => "--streams: ",
                // A step of decoding has a token of each stream.
                "step_tokens_max" if streams > step_tokens => "--streams: ",
                "step_tokens_max" => "--step-tokens: ",
                _ => "",
            },
            _ => "",
        };
        CliError::Usage(format!("{flags}{error}"))
    })
}

/// Refuses cases that the pool of state has no pages for, before any is measured.
fn expect_room(model: &dyn Model, cases: &[Case]) -> Result<(), CliError> {
    let layout = model.state().layout();
    let pages = |case: &&Case| layout.pages_for(case.context()).saturating_mul(case.streams);
    match cases.iter().find(|case| pages(case) > layout.pages_max) {
        None => Ok(()),
        Some(case) => Err(CliError::Usage(format!(
            "--streams and --depths: expected state of at most {} pages of {} tokens, found {} \
             sequences of {} tokens",
            layout.pages_max,
            layout.page_tokens,
            case.streams,
            case.context()
        ))),
    }
}
