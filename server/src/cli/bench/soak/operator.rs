//! Somebody who loads another model, asks it something, and unloads it, again and again.

use std::time::{Duration, Instant};

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{CompleteRequest, LoadRequest, UnloadRequest};
use tonic::{Code, Status};

use super::child::Child;
use crate::cli::error::CliError;

/// The name of the other model.
const OTHER: &str = "other";
/// Between one unload and the next load.
const PAUSE: Duration = Duration::from_secs(2);
/// Tokens that it is asked for.
const TOKENS: u32 = 4;

/// Does so until then. How often it was loaded, and what went wrong first.
pub(super) async fn come_and_go(
    child: &Child,
    path: &str,
    until: Instant,
) -> (u64, Result<(), CliError>) {
    let mut loads = 0;
    loop {
        if let Err(error) = once(child, path).await {
            return (loads, Err(error));
        }
        loads += 1;
        if Instant::now() + PAUSE > until {
            return (loads, Ok(()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(child: &Child, path: &str) -> Result<(), CliError> {
    let mut models = ModelServiceClient::new(child.channel());
    let request =
        LoadRequest { model: OTHER.to_owned(), path: path.to_owned(), ..LoadRequest::default() };
    let mut news = models.load(request).await?.into_inner();
    while news.message().await?.is_some() {}
    match ask(child).await {
        // The queue is everybody's.
        Err(status) if status.code() != Code::ResourceExhausted => return Err(status.into()),
        Err(_) | Ok(()) => {}
    }
    models.unload(UnloadRequest { model: OTHER.to_owned() }).await?;
    Ok(())
}

async fn ask(child: &Child) -> Result<(), Status> {
    let request = CompleteRequest {
        model: OTHER.to_owned(),
        prompt: Some(Prompt::Text("anybody there?".to_owned())),
        max_tokens: Some(TOKENS),
        ..CompleteRequest::default()
    };
    let mut client = InferenceServiceClient::new(child.channel());
    let mut answer = client.complete(request).await?.into_inner();
    while answer.message().await?.is_some() {}
    Ok(())
}
