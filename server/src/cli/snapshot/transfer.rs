//! `sconce snapshot export` and `import`: between a server's stream and a file, without holding more
//! than a few messages of it in memory.

use bytes::Bytes;
use sconce_proto::v1::export_snapshot_response::Part as ExportPart;
use sconce_proto::v1::import_snapshot_request::Part as ImportPart;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::{
    ExportSnapshotRequest, ExportSnapshotResponse, ImportSnapshotRequest, SnapshotHeader,
    SnapshotTrailer,
};
use sconce_server::snapshot_file::{self, DIGEST_BYTES};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::file::read_head;
use super::place::{Sink, Source};
use super::{ModelArgs, tell};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::target::ServerArgs;

/// Content of one message of an import.
const CHUNK_BYTES: usize = 512 << 10;

/// Messages read from a file and not sent yet.
const MESSAGES_AHEAD: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Id of the snapshot, as `sconce snapshot list` tells it
    id: String,
    /// File to write: a path, or a URL such as s3://bucket/key in a build with object stores
    destination: String,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// File to read: a path, or a URL such as s3://bucket/key in a build with object stores
    source: String,
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sconce snapshot export`.
pub(super) async fn export(args: ExportArgs) -> Result<(), CliError> {
    let mut client = StateServiceClient::new(args.server.connect().await?);
    let mut sink = Sink::create(&args.destination, args.overwrite).await?;
    let request = ExportSnapshotRequest { id: args.id };
    let mut parts = client.export_snapshot(request).await?.into_inner();
    let header = write(&mut parts, &mut sink).await?;
    sink.commit().await?;
    output::line(format_args!(
        "{}: {} tokens as {}, {}",
        args.destination,
        header.token_count,
        header.name,
        output::bytes(header.bytes)
    ))
}

/// Writes a stream to a file; the file is whole when this returns without an error.
async fn write(
    parts: &mut Streaming<ExportSnapshotResponse>,
    sink: &mut Sink,
) -> Result<SnapshotHeader, CliError> {
    let Some(ExportPart::Header(header)) = next(parts).await? else {
        return Err(disorder("expected a header first"));
    };
    sink.write(snapshot_file::head(&header)).await?;
    let mut digest = Sha256::new();
    let mut written = 0;
    loop {
        match next(parts).await? {
            Some(ExportPart::Chunk(chunk)) => {
                digest.update(&chunk);
                written += chunk.len() as u64;
                sink.write(chunk).await?;
            }
            Some(ExportPart::Trailer(trailer)) => {
                let digest = Bytes::copy_from_slice(&digest.finalize());
                if written != header.bytes || trailer.sha256 != digest {
                    return Err(disorder("its digest does not hold"));
                }
                sink.write(digest).await?;
                return Ok(header);
            }
            Some(ExportPart::Header(_)) | None => return Err(disorder("it ended early")),
        }
    }
}

async fn next(
    parts: &mut Streaming<ExportSnapshotResponse>,
) -> Result<Option<ExportPart>, CliError> {
    Ok(parts.message().await?.and_then(|message| message.part))
}

fn disorder(problem: &str) -> CliError {
    CliError::Internal(format!("the server's snapshot is not in order: {problem}"))
}

/// Runs `sconce snapshot import`.
pub(super) async fn import(args: ImportArgs) -> Result<(), CliError> {
    let mut source = Source::open(&args.source).await?;
    let header = read_head(&mut source).await?;
    let (channel, model) = args.model.open().await?;
    let (messages, receiver) = mpsc::channel(MESSAGES_AHEAD);
    let mut client = StateServiceClient::new(channel);
    let answer = client.import_snapshot(ReceiverStream::new(receiver));
    let (sent, answer) = tokio::join!(send(source, header, model, messages), answer);
    // A file that is cut short is the cause of what the server then says.
    sent?;
    tell(&answer?.into_inner().snapshot.unwrap_or_default(), args.json)
}

/// Sends a file; stops without an error when the server does not want more of it.
async fn send(
    mut source: Source,
    header: SnapshotHeader,
    model: String,
    messages: mpsc::Sender<ImportSnapshotRequest>,
) -> Result<(), CliError> {
    let mut rest = header.bytes;
    let first = ImportSnapshotRequest { model, part: Some(ImportPart::Header(header)) };
    if messages.send(first).await.is_err() {
        return Ok(());
    }
    while rest > 0 {
        let most = usize::try_from(rest).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let chunk = source.take(most).await?;
        rest -= chunk.len() as u64;
        if messages.send(later(ImportPart::Chunk(chunk))).await.is_err() {
            return Ok(());
        }
    }
    let sha256 = source.exact(DIGEST_BYTES).await?;
    if !source.is_at_end().await? {
        return Err(source.wrong("expected the end of the file after the digest, found more"));
    }
    // If the server has ended the call, its answer says why.
    let _ = messages.send(later(ImportPart::Trailer(SnapshotTrailer { sha256 }))).await;
    Ok(())
}

fn later(part: ImportPart) -> ImportSnapshotRequest {
    ImportSnapshotRequest { part: Some(part), ..ImportSnapshotRequest::default() }
}
