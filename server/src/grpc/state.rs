//! `sconce.v1.StateService`: part of the protocol, not served by this server; every RPC says so.

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

use crate::error::CallError;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoState;

fn not_offered<T>(rpc: &str) -> Result<T, Status> {
    Err(CallError::not_offered(format!("StateService.{rpc}")).into())
}

#[tonic::async_trait]
impl StateService for NoState {
    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        not_offered("Snapshot")
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        not_offered("ListSnapshots")
    }

    async fn drop_snapshot(
        &self,
        _: Request<DropSnapshotRequest>,
    ) -> Result<Response<DropSnapshotResponse>, Status> {
        not_offered("DropSnapshot")
    }

    type ExportSnapshotStream =
        Pin<Box<dyn Stream<Item = Result<ExportSnapshotResponse, Status>> + Send>>;

    async fn export_snapshot(
        &self,
        _: Request<ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportSnapshotStream>, Status> {
        not_offered("ExportSnapshot")
    }

    async fn import_snapshot(
        &self,
        _: Request<Streaming<ImportSnapshotRequest>>,
    ) -> Result<Response<ImportSnapshotResponse>, Status> {
        not_offered("ImportSnapshot")
    }

    async fn match_prefix(
        &self,
        _: Request<MatchPrefixRequest>,
    ) -> Result<Response<MatchPrefixResponse>, Status> {
        not_offered("MatchPrefix")
    }

    async fn describe_cache(
        &self,
        _: Request<DescribeCacheRequest>,
    ) -> Result<Response<DescribeCacheResponse>, Status> {
        not_offered("DescribeCache")
    }
}
