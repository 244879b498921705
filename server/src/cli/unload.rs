//! `sconce unload`: makes a running server let a model go.

use sconce_proto::v1::UnloadRequest;
use sconce_proto::v1::model_service_client::ModelServiceClient;

use super::error::CliError;
use super::output;
use super::target::ServerArgs;

/// Arguments of `sconce unload`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name the model is served under
    name: String,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `sconce unload`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let channel = args.server.connect().await?;
    let request = UnloadRequest { model: args.name.clone() };
    ModelServiceClient::new(channel).unload(request).await?;
    output::line(format_args!("{} is unloaded", args.name))
}
