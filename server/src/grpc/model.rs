//! `sconce.v1.ModelService`: each RPC decodes, asks [`Models`], encodes.

use std::pin::Pin;

use futures::{Stream, stream};
use sconce_proto::v1::load_response::Event;
use sconce_proto::v1::model_service_server::ModelService;
use sconce_proto::v1::{
    EstimateLoadRequest, EstimateLoadResponse, GetStatusRequest, GetStatusResponse,
    ListModelsRequest, ListModelsResponse, LoadRequest, LoadResponse, ModelInfo, UnloadRequest,
    UnloadResponse,
};
use tonic::{Request, Response, Status};

use super::convert;
use crate::layer::access_log::RequestFacts;
use crate::models::{LoadNews, Models, ReadyModel};
use crate::serve::Secrets;

/// See the module.
#[derive(Debug, Clone)]
pub struct ModelManager {
    models: Models,
    secrets: Secrets,
}

impl ModelManager {
    /// A service on `models` that tells of `secrets`.
    pub fn new(models: Models, secrets: Secrets) -> Self {
        Self { models, secrets }
    }
}

type LoadStream = Pin<Box<dyn Stream<Item = Result<LoadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ModelService for ModelManager {
    type LoadStream = LoadStream;

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadStream>, Status> {
        let precision = self.models.precision();
        let facts = RequestFacts::of(request.extensions());
        let (name, mut settings) = convert::load_settings(request.into_inner(), precision)?;
        facts.tell(|facts| {
            facts.model = Some(name.clone());
            facts.path = Some(settings.path.clone());
        });
        settings.path = self.models.admit_path(&settings.path)?;
        let load = self.models.load(&name, settings).await?;
        let news = stream::unfold((load, facts), |(mut load, facts)| async {
            let event = match load.next().await? {
                Ok(LoadNews::Step(step)) => Ok(Event::Progress(convert::progress(&step))),
                Ok(LoadNews::Ready(model)) => {
                    let bytes = model.loaded().footprint.weights_bytes;
                    facts.tell(|facts| facts.bytes = Some(bytes));
                    Ok(Event::ModelInfo(model_info(&model)))
                }
                Err(error) => Err(Status::from(error)),
            };
            Some((event.map(|event| LoadResponse { event: Some(event) }), (load, facts)))
        });
        Ok(Response::new(Box::pin(news)))
    }

    async fn unload(
        &self,
        request: Request<UnloadRequest>,
    ) -> Result<Response<UnloadResponse>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let name = request.into_inner().model;
        convert::model_name(&name)?;
        facts.tell(|facts| facts.model = Some(name.clone()));
        self.models.unload(&name).await?;
        Ok(Response::new(UnloadResponse {}))
    }

    async fn list_models(
        &self,
        _request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let models = self.models.list().await?;
        let models = models.iter().map(model_info).collect();
        Ok(Response::new(ListModelsResponse { models }))
    }

    async fn estimate_load(
        &self,
        request: Request<EstimateLoadRequest>,
    ) -> Result<Response<EstimateLoadResponse>, Status> {
        let precision = self.models.precision();
        let mut settings = convert::estimate(request.into_inner(), precision)?;
        settings.path = self.models.admit_path(&settings.path)?;
        let (estimate, free_bytes) = self.models.estimate(settings).await?;
        let (weights_bytes, workspace_bytes, state_bytes) = (
            estimate.footprint.weights_bytes,
            estimate.footprint.workspace_bytes,
            estimate.state_bytes,
        );
        Ok(Response::new(EstimateLoadResponse {
            weights_bytes,
            workspace_bytes,
            state_bytes,
            total_bytes: weights_bytes.saturating_add(workspace_bytes).saturating_add(state_bytes),
            context_length: convert::count(estimate.context_length),
            free_bytes,
        }))
    }

    async fn get_status(
        &self,
        _request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let (status, models) = (self.models.status(), &self.models);
        Ok(Response::new(convert::status(
            &status,
            models.is_draining(),
            models.uptime(),
            self.secrets.status(),
        )))
    }
}

fn model_info(model: &ReadyModel) -> ModelInfo {
    convert::model_info(model.loaded(), model.sampling_defaults(), model.has_chat_template())
}
