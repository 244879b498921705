//! `sconce config`: what the settings are, where each comes from, and whether they hold.

use std::path::PathBuf;

use super::error::CliError;
use super::output;
use crate::config::{Layers, to_toml};

/// Arguments of `sconce config`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the settings as TOML, merged from defaults, file and environment
    Show {
        /// Read this file instead of /etc/sconce/config.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Check the settings; the exit code is the answer
    Check {
        /// Read this file instead of /etc/sconce/config.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Runs `sconce config`.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::Show { config, origin } => {
            let layers = checked(config)?;
            output::write(&to_toml(&layers.origins()?, origin))
        }
        Command::Check { config } => {
            checked(config)?;
            output::line("the configuration is valid")
        }
    }
}

fn checked(file: Option<PathBuf>) -> Result<Layers, CliError> {
    let layers = Layers::new(file.as_deref(), Vec::new())?;
    layers.extract()?.plan(&layers)?;
    Ok(layers)
}
