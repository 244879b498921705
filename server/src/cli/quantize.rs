//! `sconce quantize`: a checkpoint of full precision into a directory of fewer bits, in this process.

use std::io::{self, IsTerminal as _};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use indicatif::ProgressBar;
use sconce_models::quantize::{QuantizeProgress, QuantizeSummary, quantize};
use sconce_models::{Error, QuantizeFormat};
use serde_json::json;

use super::error::CliError;
use super::{output, progress};
use crate::telemetry::BARS;

/// Without a terminal, a line is written each time this share of the bytes was done.
const PLAIN_STEP_PERCENT: u64 = 25;

/// Names of tensors that were left out that are told one by one.
const LEFT_OUT_TOLD: usize = 3;

/// Arguments of `sconce quantize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checkpoint in F32, F16 or BF16: a directory of safetensors files
    source: PathBuf,
    /// Directory to write, in the format of MLX; must not exist
    output: PathBuf,
    /// What most weights become; embeddings and sensitive ones get 8 bits
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    format: QuantizeFormat,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// The formats by name, for `--help` and for completions.
pub(crate) fn formats() -> impl clap::builder::TypedValueParser<Value = QuantizeFormat> {
    PossibleValuesParser::new(QuantizeFormat::ALL.map(QuantizeFormat::name))
        .try_map(|name| name.parse::<QuantizeFormat>())
}

/// Runs `sconce quantize`; an interrupt removes what was written.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    if let Some(threads) = args.threads {
        sconce_models::threads::configure(threads.get())
            .map_err(|error| CliError::Usage(format!("--threads: {error}")))?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (Args { source, output, format, .. }, stopped) = (&args, Arc::clone(&stop));
    let (source, output, format) = (source.clone(), output.clone(), *format);
    let mut work = tokio::task::spawn_blocking(move || {
        let mut display = Display::new();
        let outcome = quantize(&source, &output, format, &mut |now| {
            display.show(now);
            match stopped.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        display.finish();
        outcome
    });
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        _ = tokio::signal::ctrl_c() => {
            stop.store(true, Ordering::Relaxed);
            work.await
        }
    };
    let outcome = outcome.map_err(|error| CliError::Internal(error.to_string()))?;
    report(&args, &outcome.map_err(failure)?)
}

/// Whose fault it is.
fn failure(error: Error) -> CliError {
    match error {
        Error::Cancelled => CliError::Unavailable("interrupted; nothing was written".to_owned()),
        Error::Io { path, source } if source.kind() != io::ErrorKind::NotFound => {
            CliError::io(path.display().to_string(), source)
        }
        error => CliError::Usage(error.to_string()),
    }
}

fn report(args: &Args, summary: &QuantizeSummary) -> Result<(), CliError> {
    let output = args.output.display();
    if args.json {
        return output::json(&json!({
            "output": output.to_string(),
            "format": args.format.name(),
            "tensors": summary.tensors,
            "quantized": summary.quantized,
            "bytes_before": summary.bytes_before,
            "bytes_after": summary.bytes_after,
            "files": summary.shards,
            "left_out": summary.left_out,
        }));
    }
    if let Some(names) = left_out(&summary.left_out) {
        output::note(&names);
    }
    output::line(format_args!(
        "{output}: {}, {} of {} weights quantized, {} from {}",
        args.format,
        summary.quantized,
        summary.tensors,
        output::bytes(summary.bytes_after),
        output::bytes(summary.bytes_before),
    ))
}

/// Which tensors the directory has not, if there are any.
fn left_out(names: &[String]) -> Option<String> {
    let told = names.get(..LEFT_OUT_TOLD.min(names.len()))?.join(", ");
    match names.len() {
        0 => None,
        count if count <= LEFT_OUT_TOLD => Some(format!("left out: {told}")),
        count => Some(format!("left out: {told} and {} more", count - LEFT_OUT_TOLD)),
    }
}

/// How far it is: a bar on a terminal, a few plain lines elsewhere.
enum Display {
    Bar(ProgressBar),
    /// With the share of the bytes that the last line told.
    Plain(Option<u64>),
}

impl Display {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Plain(None);
        }
        let bar = BARS.add(ProgressBar::new(0));
        bar.set_style(progress::bytes_style());
        bar.set_prefix("quantize");
        Self::Bar(bar)
    }

    fn show(&mut self, now: QuantizeProgress) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(now.bytes_total);
                bar.set_position(now.bytes_done);
                bar.set_message(format!("{} of {} weights", now.tensors_done, now.tensors_total));
            }
            Self::Plain(told) => {
                let percent = (100 * now.bytes_done)
                    .checked_div(now.bytes_total)
                    .map_or(0, |percent| percent / PLAIN_STEP_PERCENT * PLAIN_STEP_PERCENT);
                if *told != Some(percent) {
                    *told = Some(percent);
                    let (done, total) =
                        (output::bytes(now.bytes_done), output::bytes(now.bytes_total));
                    output::note(&format!("quantize: {done} of {total}"));
                }
            }
        }
    }

    fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
            BARS.remove(&bar);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_of_the_tensors_that_were_left_out_are_named() {
        let names = |count| -> Vec<String> { (0..count).map(|n| format!("t{n}")).collect() };
        assert_eq!(left_out(&names(0)), None);
        assert_eq!(left_out(&names(2)).as_deref(), Some("left out: t0, t1"));
        assert_eq!(left_out(&names(5)).as_deref(), Some("left out: t0, t1, t2 and 2 more"));
    }
}
