//! `sconce.v1.StateService`: each RPC decodes, asks [`Models`], encodes. What a snapshot's stream
//! looks like is in `export.rs` and `import.rs`.

mod export;
mod import;

use std::pin::Pin;

use futures::Stream;
use sconce_proto::v1::state_service_server::StateService;
use sconce_proto::v1::{
    DescribeCacheRequest, DescribeCacheResponse, DropSnapshotRequest, DropSnapshotResponse,
    ExportSnapshotRequest, ExportSnapshotResponse, ImportSnapshotRequest, ImportSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, MatchPrefixRequest, MatchPrefixResponse,
    SnapshotRequest, SnapshotResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::{call_context, convert};
use crate::caller::Caller;
use crate::layer::access_log::RequestFacts;
use crate::models::Models;

/// See the module.
#[derive(Debug, Clone)]
pub struct State {
    models: Models,
}

impl State {
    /// A service on `models`.
    pub fn new(models: Models) -> Self {
        Self { models }
    }
}

#[tonic::async_trait]
impl StateService for State {
    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let context = call_context(&request)?;
        let facts = RequestFacts::of(request.extensions());
        let call = convert::snapshot_call(request.into_inner())?;
        facts.tell(|facts| {
            facts.model = Some(call.prefix.model.clone());
            facts.snapshot = Some(call.name.clone());
        });
        let kept = self.models.snapshot(call, context).await?;
        facts.tell(|facts| {
            facts.prompt_tokens = Some(kept.tokens);
            facts.bytes = Some(kept.bytes);
        });
        Ok(Response::new(SnapshotResponse { snapshot: Some(convert::snapshot_info(kept)) }))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let ListSnapshotsRequest { model, name } = request.into_inner();
        if let Some(model) = &model {
            convert::model_name(model)?;
        }
        let mut snapshots = self.models.snapshots(caller.namespace()).await?;
        snapshots.retain(|snapshot| {
            model.as_ref().is_none_or(|model| *model == snapshot.model)
                && name.as_ref().is_none_or(|name| *name == snapshot.name)
        });
        let snapshots = snapshots.into_iter().map(convert::snapshot_info).collect();
        Ok(Response::new(ListSnapshotsResponse { snapshots }))
    }

    async fn drop_snapshot(
        &self,
        request: Request<DropSnapshotRequest>,
    ) -> Result<Response<DropSnapshotResponse>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let caller = Caller::of(request.extensions());
        let id = request.into_inner().id;
        convert::snapshot_id(&id)?;
        facts.tell(|facts| facts.snapshot = Some(id.clone()));
        self.models.drop_snapshot(&id, caller.namespace()).await?;
        Ok(Response::new(DropSnapshotResponse {}))
    }

    type ExportSnapshotStream =
        Pin<Box<dyn Stream<Item = Result<ExportSnapshotResponse, Status>> + Send>>;

    async fn export_snapshot(
        &self,
        request: Request<ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportSnapshotStream>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let caller = Caller::of(request.extensions());
        let id = request.into_inner().id;
        convert::snapshot_id(&id)?;
        facts.tell(|facts| facts.snapshot = Some(id.clone()));
        let (file, transfer) = self.models.export_snapshot(&id, caller.namespace()).await?;
        facts.tell(|facts| {
            facts.prompt_tokens = Some(file.tokens);
            facts.bytes = Some(file.bytes);
        });
        Ok(Response::new(Box::pin(export::messages(file, transfer))))
    }

    async fn import_snapshot(
        &self,
        request: Request<Streaming<ImportSnapshotRequest>>,
    ) -> Result<Response<ImportSnapshotResponse>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let caller = Caller::of(request.extensions());
        let mut messages = request.into_inner();
        let (model, file) = import::begin(messages.message().await?)?;
        facts.tell(|facts| {
            facts.model = Some(model.clone());
            facts.snapshot = Some(file.name.clone());
            facts.prompt_tokens = Some(file.tokens);
            facts.bytes = Some(file.bytes);
        });
        let transfer = self.models.expect_snapshot(&model, &file)?;
        let mut assembly = import::Assembly::new(file);
        while let Some(message) = messages.message().await? {
            assembly.take(message)?;
        }
        let file = assembly.finish()?;
        let kept = self.models.import_snapshot(&model, file, transfer, caller.namespace()).await;
        let kept = import::kept(kept)?;
        Ok(Response::new(ImportSnapshotResponse { snapshot: Some(convert::snapshot_info(kept)) }))
    }

    async fn match_prefix(
        &self,
        request: Request<MatchPrefixRequest>,
    ) -> Result<Response<MatchPrefixResponse>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let caller = Caller::of(request.extensions());
        let call = convert::prefix_call(request.into_inner())?;
        facts.tell(|facts| facts.model = Some(call.model.clone()));
        let (tokens, report) = self.models.match_prefix(call, caller.namespace()).await?;
        facts.tell(|facts| {
            facts.prompt_tokens = Some(tokens);
            facts.tell_cache(&report, convert::reason_name(report.reason));
        });
        Ok(Response::new(MatchPrefixResponse {
            prompt_tokens: convert::count(tokens),
            cache: Some(convert::cache_report(&report)),
        }))
    }

    async fn describe_cache(
        &self,
        request: Request<DescribeCacheRequest>,
    ) -> Result<Response<DescribeCacheResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let DescribeCacheRequest { model, nodes_max } = request.into_inner();
        convert::model_name(&model)?;
        let nodes_max = convert::nodes_max(nodes_max)?;
        let (nodes, status) = self.models.describe_cache(&model, caller.namespace()).await?;
        Ok(Response::new(convert::described(&nodes, nodes_max, &status)))
    }
}
