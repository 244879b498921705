//! The `sconce` binary: parse, run, answer with an exit code. What it can do is in `cli/`.

#![forbid(unsafe_code)]

mod cli;
mod config;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
