//! `sconce load`: makes a running server load a model, and shows how far it is.

use sconce_models::QuantizeFormat;
use sconce_proto::v1::load_response::Event;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{LoadRequest, ModelInfo};

use super::credentials::Connection;
use super::error::CliError;
use super::progress::LoadDisplay;
use super::target::{ServerArgs, absolute};
use super::{models, output, quantize};
use crate::config::Span;

/// Arguments of `sconce load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name to serve the model under
    name: String,
    /// Checkpoint, as this machine sees it: a directory, a .gguf file, or sim:
    path: String,
    /// Most tokens of prompt and completion together
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<u32>,
    /// Unload the model after it was idle this long, such as 10m
    #[arg(long, value_name = "TIME")]
    keep_alive: Option<Span>,
    /// Quantize the weights of a checkpoint of full precision
    #[arg(long, value_name = "FORMAT", value_parser = quantize::formats())]
    quantize: Option<QuantizeFormat>,
    /// Take PATH as it is, for a server that sees other folders than this machine
    #[arg(long)]
    remote_path: bool,
    /// Print what was loaded as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `sconce load`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let channel = args.server.connect().await?;
    let path = if args.remote_path { args.path } else { absolute(&args.path)? };
    let keep_alive = args.keep_alive.map(|Span(time)| prost_types::Duration::try_from(time));
    let request = LoadRequest {
        model: args.name,
        path,
        quantize: args.quantize.map(|format| format.name().to_owned()),
        context_length: args.context_length,
        keep_alive: keep_alive
            .transpose()
            .map_err(|error| CliError::Usage(format!("--keep-alive: {error}")))?,
    };
    let info = load(channel, request).await?;
    if args.json {
        return output::json(&models::to_json(&info));
    }
    output::line(models::describe(&info))
}

/// Loads a model and shows the progress on standard error.
pub(crate) async fn load(channel: Connection, request: LoadRequest) -> Result<ModelInfo, CliError> {
    let mut display = LoadDisplay::new(&request.model, output::note);
    let outcome = follow(channel, request, &mut display).await;
    display.finish();
    outcome
}

async fn follow(
    channel: Connection,
    request: LoadRequest,
    display: &mut LoadDisplay,
) -> Result<ModelInfo, CliError> {
    let mut stream = ModelServiceClient::new(channel).load(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        match message.event {
            Some(Event::Progress(progress)) => display.show(&progress),
            Some(Event::ModelInfo(info)) => return Ok(info),
            None => {}
        }
    }
    Err(CliError::Internal("the server ended the load without saying what it loaded".to_owned()))
}
