//! The command line: one file per subcommand, all of them clients of the server's own protocol or
//! readers of files. What they share is in `target.rs` (whom to ask), `prompt.rs` (what to ask),
//! `output.rs` and `progress.rs` (how it looks), `error.rs` (exit codes).

mod bench;
mod cache;
mod chat;
mod complete;
mod completions;
mod config;
mod credentials;
mod detokenize;
mod doctor;
mod error;
mod health;
mod inspect;
mod load;
mod man;
mod models;
mod output;
mod precision;
mod progress;
mod prompt;
mod quantize;
mod serve;
mod snapshot;
mod target;
mod tokenize;
#[cfg(feature = "top")]
mod top;
mod unload;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use self::error::CliError;
use crate::config::LogFormat;

/// Runs language models beside the program that needs them, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "sconce", version = crate::telemetry::version(), propagate_version = true)]
#[command(max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 a promise not kept (bench), 2 wrong usage, 64 wrong configuration, \
                        69 unavailable, 70 internal error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over gRPC until told to stop
    Serve(serve::Args),
    /// Load a model into a running server
    Load(load::Args),
    /// Unload a model from a running server
    Unload(unload::Args),
    /// List the models of a running server
    Models(models::Args),
    /// Complete a prompt and stream the text to standard output
    Complete(complete::Args),
    /// Talk with a model over several turns
    Chat(chat::Args),
    /// Show what a running server remembers of prompts
    Cache(cache::Args),
    /// Keep the state of prompts under names, and move it between servers
    Snapshot(snapshot::Args),
    /// Turn text into token ids
    Tokenize(tokenize::Args),
    /// Turn token ids into text
    Detokenize(detokenize::Args),
    /// Tell what is in a checkpoint and what memory it needs, without loading it
    Inspect(inspect::Args),
    /// Write a checkpoint of full precision anew in fewer bits
    Quantize(quantize::Args),
    /// Measure speed and accuracy
    Bench(bench::Args),
    /// Probe a server's health; the exit code is the answer
    Health(health::Args),
    /// Watch a running server: speeds, memory, models, what is remembered
    #[cfg(feature = "top")]
    Top(top::Args),
    /// Check the build, the machine, the settings and a running server, and say what to do
    Doctor(doctor::Args),
    /// Show or check the configuration
    Config(config::Args),
    /// Write a shell's completion script to standard output
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

/// Parses the command line, runs the subcommand and maps its outcome to an exit code.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Writing the usage fails only if nobody reads it.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(error::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn dispatch(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Load(args) => block_on(load::run(args)),
        Command::Unload(args) => block_on(unload::run(args)),
        Command::Models(args) => block_on(models::run(args)),
        Command::Complete(args) => block_on(complete::run(args)),
        Command::Chat(args) => block_on(chat::run(args)),
        Command::Cache(args) => block_on(cache::run(args)),
        Command::Snapshot(args) => block_on(snapshot::run(args)),
        Command::Tokenize(args) => block_on(tokenize::run(args)),
        Command::Detokenize(args) => block_on(detokenize::run(args)),
        Command::Inspect(args) => inspect::run(args),
        Command::Quantize(args) => block_on(quantize::run(args)),
        Command::Bench(args) => bench::run(args),
        Command::Health(args) => block_on(health::run(args)),
        #[cfg(feature = "top")]
        Command::Top(args) => block_on(top::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Config(args) => config::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// Longest that blocking work (a read, a tokenization) may keep a finished process from its end.
const BLOCKING_WORK_GRACE: Duration = Duration::from_secs(1);

fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("cannot start the async runtime", source))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(BLOCKING_WORK_GRACE);
    outcome
}

/// Logs of commands whose result is on standard output: warnings, unless a variable asks for more.
fn log_quietly() -> Result<(), CliError> {
    crate::telemetry::init(LogFormat::Auto, "warn").map_err(CliError::Settings)
}
