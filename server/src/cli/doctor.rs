//! `sconce doctor`: looks at the build, the machine and the settings a server would start with, says
//! what of it is in order, and what to do about the rest. It changes nothing and loads nothing.

mod device;
mod limits;
mod machine;
mod report;
mod running;
mod settings;

use std::path::PathBuf;

use sconce_server::serve::ServePlan;

use self::report::{Check, Level};
use super::credentials::CredentialArgs;
use super::error::CliError;
use super::output;
use super::target::SERVER_DEFAULT;
use crate::config::{ConfigError, Layers};

/// Arguments of `sconce doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Read this file instead of /etc/sconce/config.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of a running server to look at too: HOST:PORT or unix:PATH; one that is named and
    /// does not answer is a failure [default: 127.0.0.1:50051, which may be absent]
    #[arg(long, value_name = "ADDR")]
    server: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sconce doctor`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    let planned = plan(args.config.as_deref());
    let mut checks = vec![machine::build(), machine::instructions()];
    checks.extend(device::checks());
    checks.push(settings::configuration(args.config.as_deref(), planned.as_ref()));
    let address = args.server.as_deref().unwrap_or(SERVER_DEFAULT);
    let server = running::look(address, &args.credentials).await;
    if let Ok(plan) = &planned {
        checks.push(machine::threads(plan));
        checks.extend(machine::memory(plan));
        checks.extend(limits::checks(plan));
        checks.extend(settings::models(plan));
        checks.extend(settings::cache_directory(plan, server.is_ok()));
        checks.extend(settings::guards(plan));
        for listen in &plan.listen {
            checks.push(settings::address(listen, server.is_ok()).await);
        }
        checks.extend(plan.admin.iter().map(|listen| settings::admin(listen, server.is_ok())));
    }
    checks.extend(running::checks(address, args.server.is_some(), server));
    if args.json {
        output::json(&report::json(&checks))?;
    } else {
        output::write(&report::text(&checks))?;
    }
    verdict(&checks, planned)
}

fn plan(file: Option<&std::path::Path>) -> Result<ServePlan, ConfigError> {
    let layers = Layers::new(file, Vec::new())?;
    layers.extract()?.plan(&layers)
}

/// The exit code: that of a wrong configuration if it is wrong, else that of what is missing.
fn verdict(checks: &[Check], planned: Result<ServePlan, ConfigError>) -> Result<(), CliError> {
    let failed = checks.iter().filter(|check| check.level == Level::Fail).count();
    planned?;
    match failed {
        0 => Ok(()),
        _ => Err(CliError::Unavailable(format!("{failed} of {} checks failed", checks.len()))),
    }
}
