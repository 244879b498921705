//! `sconce bench kernels`: what each operator reaches of the machine's peaks.

mod report;
mod sizes;

use std::ops::ControlFlow;
use std::sync::Arc;

use sconce_bench::{Activations, Error, Isa, Operator, Options, PeakOptions, Pool, WeightFormat};

use self::report::{Run, Writer};
use self::sizes::SizeArgs;
use super::format::FormatArgs;
use super::machine::{Threads, thread_counts};
use crate::cli::error::CliError;

/// Arguments of `sconce bench kernels`. Flags that take several values are combined.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Measure these operators alone: matmul, lm_head, quantize, head_matmul, expert_matmul, route,
    /// attention, latent_attention, gated_delta, short_conv, rms_norm, rms_norm_gated, rope,
    /// gate_mul, embedding
    #[arg(long, value_name = "OPERATOR", value_delimiter = ',')]
    only: Vec<Operator>,
    /// Formats of weights: f32, bf16, f16, q4_0, q4_1, q5_1, q8_0, mlx-4bit, iq4_nl, mxfp4, nvfp4,
    /// mxfp8 [default: all]
    #[arg(long, value_name = "FORMAT", value_delimiter = ',')]
    formats: Vec<WeightFormat>,
    /// How weights of integers read activations: f32, int8, int16 [default: all]
    #[arg(long, value_name = "FORM", value_delimiter = ',')]
    activations: Vec<Activations>,
    /// Rows of a step
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8,64,512")]
    rows: Vec<usize>,
    /// Tokens before those of a step, for attention
    #[arg(long, short = 'd', alias = "depth", value_name = "TOKENS")]
    #[arg(value_delimiter = ',', default_value = "0,2048")]
    depths: Vec<usize>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Instructions to use: portable, avx2, avx512, ... [default: the most this machine has]
    #[arg(long, value_name = "LEVEL", value_delimiter = ',')]
    isa: Vec<String>,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, short = 't', value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// How often each call, or each run of short calls, is timed
    #[arg(long, short = 'r', value_name = "N", default_value_t = 10)]
    repetitions: usize,
    /// Let weights and state stay in caches, instead of copies that take turns
    #[arg(long)]
    warm: bool,
    /// Leave out what the machine can do at most, and the shares of it
    #[arg(long)]
    no_peaks: bool,
    #[command(flatten)]
    output: FormatArgs,
}

const HELP: &str = "\
`share` is the least time that a call could take by the machine's measured peaks, reading memory \
or multiplying, whichever takes longer, by the median time. Weights, keys and values and recurrent \
state come from memory, as several copies take turns; rows of activations come from caches, where \
a step has just put them, so the bytes of operators without weights or state may come faster than \
memory gives them.";

/// Runs `sconce bench kernels`.
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let counts = thread_counts(&args.threads);
    let levels = levels(&args.isa)?;
    let options = Options {
        sizes: args.sizes.sizes(),
        only: args.only,
        formats: args.formats,
        activations: args.activations,
        rows: args.rows,
        depths: args.depths,
        repetitions: args.repetitions,
        cold: !args.warm,
    };
    options.check().map_err(failed)?;
    let peak_options = PeakOptions::default();
    let peaks = (!args.no_peaks).then_some(&peak_options);
    let mut writer = Writer::new(args.output.format(), options);
    let ended = levels.into_iter().try_for_each(|isa| {
        let mut threads = Threads::start(&counts, isa, peaks)?.into_iter();
        threads.try_for_each(|threads| measure(&mut writer, isa, threads))
    });
    // What was measured before a failure is as good as without one.
    writer.finish()?;
    ended
}

/// Measures with one level on some threads, and writes what was measured even if not all could be.
fn measure(writer: &mut Writer, isa: Isa, threads: Threads) -> Result<(), CliError> {
    let (pool, mut run) = (Arc::clone(&threads.pool), Run { isa, threads, measurements: vec![] });
    let mut written = Ok(());
    let mut heard = |found| {
        written = writer.hear(&run, &found);
        run.measurements.push(found);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let measure = || sconce_bench::measure(writer.options(), &mut heard);
    let ended = Pool::with(&pool, || isa.with(measure));
    written?;
    writer.add(run)?;
    ended.map_err(failed)
}

/// The levels that are asked for, all of which this machine has.
fn levels(names: &[String]) -> Result<Vec<Isa>, CliError> {
    if names.is_empty() {
        return Ok(vec![Isa::detected()]);
    }
    let find = |name: &String| {
        Isa::available().find(|isa| isa.to_string() == *name).ok_or_else(|| {
            let known: Vec<String> = Isa::available().map(|isa| isa.to_string()).collect();
            let known = known.join(", ");
            CliError::Usage(format!(
                "--isa: expected some of {known} on this machine, found {name}"
            ))
        })
    };
    names.iter().map(find).collect()
}

fn failed(error: Error) -> CliError {
    match error {
        Error::Option { .. } => CliError::Usage(format!("--{error}")),
        Error::TooLarge { .. } | Error::Nothing => CliError::Usage(error.to_string()),
        error => CliError::Internal(format!("an operator failed: {error}")),
    }
}
