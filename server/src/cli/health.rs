//! `sconce health`: asks the standard health service; the exit code is the answer.

use std::time::Duration;

use sconce_proto::health::HealthCheckRequest;
use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::health::health_client::HealthClient;
use tonic::Request;

use super::error::CliError;
use super::output;
use super::target::ServerArgs;
use crate::config::Span;

/// Between two tries to reach a server that is waited for.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `sconce health`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which service: empty for the whole server, liveness, readiness, or a full service name
    #[arg(long, value_name = "NAME", default_value = "")]
    service: String,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "5s")]
    timeout: Span,
    /// Wait until the server is there and serves, as long as --timeout allows
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `sconce health`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let limit = args.timeout.0;
    let probe = async { if args.wait { wait(&args).await } else { check(&args).await } };
    tokio::time::timeout(limit, probe).await.unwrap_or_else(|_| {
        let limit = args.timeout;
        Err(CliError::Unavailable(format!("{} did not serve within {limit}", args.server.server)))
    })
}

async fn check(args: &Args) -> Result<(), CliError> {
    let channel = args.server.connect().await?;
    let request = Request::new(HealthCheckRequest { service: args.service.clone() });
    let answer = HealthClient::new(channel).check(request).await?.into_inner();
    match answer.status() {
        ServingStatus::Serving => output::line("SERVING"),
        other => Err(CliError::Unavailable(other.as_str_name().to_owned())),
    }
}

async fn wait(args: &Args) -> Result<(), CliError> {
    let channel = loop {
        match args.server.connect().await {
            Ok(channel) => break channel,
            Err(CliError::Unavailable(_)) => tokio::time::sleep(CONNECT_INTERVAL).await,
            Err(error) => return Err(error),
        }
    };
    let request = Request::new(HealthCheckRequest { service: args.service.clone() });
    let mut changes = HealthClient::new(channel).watch(request).await?.into_inner();
    while let Some(answer) = changes.message().await? {
        if answer.status() == ServingStatus::Serving {
            return output::line("SERVING");
        }
    }
    Err(CliError::Unavailable("the server stopped while it was waited for".to_owned()))
}
