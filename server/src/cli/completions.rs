//! `sconce completions`: a completion script for a shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::error::CliError;
use super::{Cli, output};

/// Arguments of `sconce completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

/// Runs `sconce completions`.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sconce", &mut script);
    let script = String::from_utf8(script).expect("completion scripts are made of names and help");
    output::write(&script)
}
