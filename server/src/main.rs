//! The `sconce` binary: parse, run, answer with an exit code. What it can do is in `cli/`.

#![forbid(unsafe_code)]

mod cli;
mod telemetry;

use std::process::ExitCode;

// So that it has the same name in all parts of the program.
use sconce_server::config;

fn main() -> ExitCode {
    cli::run()
}
