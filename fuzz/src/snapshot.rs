//! Imports of a snapshot that something happened to on its way: what is taken is what was exported,
//! byte for byte; all else is refused.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use futures::stream;
use sconce_proto::v1::import_snapshot_request::Part;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::{
    ExportSnapshotRequest, ImportSnapshotRequest, SnapshotHeader, SnapshotRequest, SnapshotTrailer,
    export_snapshot_response, snapshot_request,
};
use tonic::Code;

use crate::server::{MODEL, Server, answered, check, with};
use crate::text::{count, noises, text};

/// Most things that happen to it.
const CHANGES_MAX: usize = 4;
/// Longest chunk as it is sent, so that there are several.
const CHUNK_BYTES: usize = 1500;

/// A stream as an export made it.
static EXPORTED: LazyLock<Vec<Part>> = LazyLock::new(|| with(export));

pub(crate) fn run(bytes: &[u8]) {
    let exported = LazyLock::force(&EXPORTED);
    with(async |server| {
        let _ = import(server, exported, &mut Unstructured::new(bytes)).await;
    });
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = noises(32, 40);
    seeds.push(vec![0; 8]);
    seeds
}

async fn export(server: &Server) -> Vec<Part> {
    let mut client = StateServiceClient::new(server.service.clone());
    let request = SnapshotRequest {
        model: MODEL.to_owned(),
        prompt: Some(snapshot_request::Prompt::Text("a prompt of some length. ".repeat(6))),
        name: "exported".to_owned(),
        ..SnapshotRequest::default()
    };
    let kept = client.snapshot(request).await.expect("a snapshot").into_inner();
    let id = kept.snapshot.expect("its name").id;
    let mut parts =
        client.export_snapshot(ExportSnapshotRequest { id }).await.expect("an export").into_inner();
    let mut exported = Vec::new();
    while let Some(message) = parts.message().await.expect("an export") {
        match message.part.expect("every message has a part") {
            export_snapshot_response::Part::Header(header) => exported.push(Part::Header(header)),
            export_snapshot_response::Part::Trailer(trailer) => {
                exported.push(Part::Trailer(trailer))
            }
            export_snapshot_response::Part::Chunk(chunk) => {
                exported.extend(
                    chunk.chunks(CHUNK_BYTES).map(|part| Part::Chunk(part.to_vec().into())),
                );
            }
        }
    }
    exported
}

async fn import(server: &Server, exported: &[Part], u: &mut Unstructured<'_>) -> Result<()> {
    let mut parts = exported.to_vec();
    for _ in 0..u.int_in_range(0..=CHANGES_MAX)? {
        change(&mut parts, u)?;
    }
    let hang_up = u.ratio(1, 10)?;
    if hang_up {
        parts.truncate(u.int_in_range(0..=parts.len())?);
    }
    let model = if u.ratio(1, 20)? { text(u, 10)? } else { MODEL.to_owned() };
    let data = |parts: &[Part]| -> Vec<u8> {
        let chunks = parts.iter().filter_map(|part| match part {
            Part::Chunk(chunk) => Some(chunk.as_ref()),
            _ => None,
        });
        chunks.collect::<Vec<&[u8]>>().concat()
    };
    let sent = data(&parts);
    let messages: Vec<ImportSnapshotRequest> = parts
        .into_iter()
        .map(|part| ImportSnapshotRequest { model: model.clone(), part: Some(part) })
        .collect();
    let mut client = StateServiceClient::new(server.service.clone());
    match answered("ImportSnapshot", client.import_snapshot(stream::iter(messages))).await {
        Ok(_) => assert!(sent == data(exported), "another snapshot was taken"),
        Err(status) => {
            // What arrived is not what was sent.
            if status.code() != Code::DataLoss {
                check("ImportSnapshot", &status);
            }
        }
    }
    Ok(())
}

fn change(parts: &mut Vec<Part>, u: &mut Unstructured<'_>) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    let index = u.choose_index(parts.len())?;
    match u.int_in_range(0..=7)? {
        0 => {
            parts.remove(index);
        }
        1 => parts.insert(index, parts[index].clone()),
        2 => {
            let other = u.choose_index(parts.len())?;
            parts.swap(index, other);
        }
        3 => parts.insert(index, Part::Trailer(SnapshotTrailer { sha256: vec![0; 32].into() })),
        4 => parts.insert(index, Part::Chunk(vec![u.arbitrary()?; u.int_in_range(0..=40)?].into())),
        _ => match &mut parts[index] {
            Part::Header(header) => change_header(header, u)?,
            Part::Chunk(chunk) => {
                let mut bytes = chunk.to_vec();
                if !bytes.is_empty() {
                    let at = u.choose_index(bytes.len())?;
                    bytes[at] ^= u.int_in_range(1..=255)?;
                }
                *chunk = bytes.into();
            }
            Part::Trailer(trailer) => {
                trailer.sha256 = vec![u.arbitrary()?; u.int_in_range(0..=40)?].into()
            }
        },
    }
    Ok(())
}

fn change_header(header: &mut SnapshotHeader, u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=5)? {
        0 => header.format_version = count(u)?,
        1 => header.model_fingerprint = text(u, 40)?,
        2 => header.token_count = count(u)?,
        3 => header.bytes = u.arbitrary()?,
        4 => header.name = text(u, 300)?,
        _ => header.pinned = !header.pinned,
    }
    Ok(())
}
