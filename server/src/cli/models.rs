//! `sconce models`: the models of a running server, as a table or as JSON.

use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{ListModelsRequest, ModelInfo};
use serde_json::{Value, json};

use super::error::CliError;
use super::output;
use super::target::ServerArgs;

/// Arguments of `sconce models`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `sconce models`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let channel = args.server.connect().await?;
    let mut client = ModelServiceClient::new(channel);
    let models = client.list_models(ListModelsRequest {}).await?.into_inner().models;
    if args.json {
        return output::json(&models.iter().map(to_json).collect());
    }
    let rows: Vec<Vec<String>> = models.iter().map(row).collect();
    let header = ["model", "architecture", "weights", "context", "memory", "path"];
    output::write(&output::table(&header, &[3, 4], &rows))
}

fn row(info: &ModelInfo) -> Vec<String> {
    vec![
        info.model.clone(),
        info.architecture.clone(),
        info.weight_format.clone(),
        info.context_length.to_string(),
        output::bytes(info.weights_bytes + info.workspace_bytes),
        info.path.clone(),
    ]
}

/// A model in one sentence.
pub(crate) fn describe(info: &ModelInfo) -> String {
    format!(
        "{}: {}, {:.1} M parameters, {}, context {}, {} in memory",
        info.model,
        info.architecture,
        info.parameters as f64 / 1e6,
        info.weight_format,
        info.context_length,
        output::bytes(info.weights_bytes + info.workspace_bytes),
    )
}

/// A model as JSON, named as in the protocol.
pub(crate) fn to_json(info: &ModelInfo) -> Value {
    json!({
        "model": info.model,
        "path": info.path,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "weight_format": info.weight_format,
        "context_length": info.context_length,
        "context_length_trained": info.context_length_trained,
        "vocab_size": info.vocab_size,
        "layers": info.layers,
        "hidden_size": info.hidden_size,
        "eos_token_ids": info.eos_token_ids,
        "bos_token_id": info.bos_token_id,
        "has_chat_template": info.has_chat_template,
        "fingerprint": info.fingerprint,
        "weights_bytes": info.weights_bytes,
        "workspace_bytes": info.workspace_bytes,
    })
}
