//! `sconce man`: manual pages, made from the same descriptions as `--help`.

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::error::CliError;
use super::{Cli, output};

/// Arguments of `sconce man`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Command whose page is written to standard output, such as `cache show`; sconce itself if
    /// there is none
    command: Vec<String>,
    /// Write the pages of all commands into this directory instead, as sconce-COMMAND.1
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// Runs `sconce man`.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    match args.out {
        Some(folder) => all(&folder),
        None => one(&args.command),
    }
}

fn all(folder: &std::path::Path) -> Result<(), CliError> {
    let failed = |source| CliError::io(format!("cannot write to {}", folder.display()), source);
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)
}

fn one(path: &[String]) -> Result<(), CliError> {
    let mut command = Cli::command();
    // Gives subcommands their full names and inherited arguments.
    command.build();
    let mut found = &command;
    for name in path {
        found = found.find_subcommand(name).ok_or_else(|| {
            let names: Vec<&str> = found.get_subcommands().map(clap::Command::get_name).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            CliError::Usage(format!("expected one of the commands {names}, found `{name}`"))
        })?;
    }
    let mut page = Vec::new();
    let rendered = Man::new(found.clone()).render(&mut page);
    rendered.map_err(|source| CliError::io("cannot write a page", source))?;
    output::write(&String::from_utf8_lossy(&page))
}
