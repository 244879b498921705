//! `sconce bench`: how fast a model steps, how exact it is, what the cache saves, and what operators
//! reach of the machine's peaks. The first two drive the model itself, without queue, sampler or
//! wire, so that the numbers are the kernels' own; `cache` drives the engine, `kernels` neither.
//! `server` and `soak` are clients: they load a whole server over its protocol.

mod accuracy;
mod cache;
mod engine;
mod format;
mod kernels;
mod machine;
mod prose;
mod server;
mod soak;
mod stats;
mod stepper;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use sconce_models::Precision;
use sconce_models::load::{LoadOptions, load};
use sconce_server::models::ModelText;

use self::stepper::Stepper;
use super::error::CliError;

/// Arguments of `sconce bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measure tokens per second of prefill and decode
    Engine(engine::Args),
    /// Compare a computation with the exact one on a page of text
    Accuracy(accuracy::Args),
    /// Measure what prompts cost that share something with one before
    Cache(cache::Args),
    /// Measure what each operator reaches of the machine's peaks
    Kernels(Box<kernels::Args>),
    /// Measure what a server gives under load: latencies, rates, refusals
    Server(Box<server::Args>),
    /// Overload a server for long, and see that it neither leaks, sticks nor gives in
    Soak(Box<soak::Args>),
}

/// Runs `sconce bench`.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    match args.command {
        Command::Engine(args) => engine::run(args),
        Command::Accuracy(args) => accuracy::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Kernels(args) => kernels::run(*args),
        Command::Server(args) => super::block_on(server::run(*args)),
        Command::Soak(args) => super::block_on(soak::run(*args)),
    }
}

/// Which model is measured.
#[derive(Debug, clap::Args)]
struct ModelArgs {
    /// Checkpoint: a directory, a .gguf file, or sim:
    #[arg(long, value_name = "PATH")]
    path: String,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl ModelArgs {
    /// Loads the checkpoint for `sequences` of `context` tokens each.
    fn load(
        &self,
        precision: Precision,
        context: usize,
        sequences: usize,
    ) -> Result<Stepper, CliError> {
        self.configure_threads()?;
        let options = LoadOptions {
            context_length: Some(context),
            precision,
            sequences_max: sequences,
            ..LoadOptions::default()
        };
        let model = load(&self.path, &options, &mut |_| ControlFlow::Continue(()));
        model.map(Stepper::new).map_err(|error| CliError::Usage(error.to_string()))
    }

    /// Has as many threads compute as the option says.
    fn configure_threads(&self) -> Result<(), CliError> {
        match self.threads {
            Some(threads) => sconce_models::threads::configure(threads.get())
                .map_err(|error| CliError::Usage(format!("--threads: {error}"))),
            None => Ok(()),
        }
    }

    /// Token ids of `text`.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, CliError> {
        let usage = |error| CliError::Usage(format!("{}: {error}", self.path));
        ModelText::open(&self.path)
            .and_then(|model| model.encode(text, true, "text"))
            .map_err(usage)
    }
}
