//! A snapshot as a stream: header, chunks, trailer with the digest of the content.

use bytes::Bytes;
use futures::{Stream, stream};
use sconce_engine::SnapshotFile;
use sconce_proto::v1::export_snapshot_response::Part;
use sconce_proto::v1::{ExportSnapshotResponse, SnapshotTrailer};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::error::CallError;
use crate::grpc::convert;
use crate::models::Transfer;

/// Content of one message; with what is around it below the 1 MiB of a streamed message.
const CHUNK_BYTES: usize = 512 << 10;

/// The messages of an export, one at a time as the reader takes them.
pub(super) fn messages(
    file: SnapshotFile,
    transfer: Transfer,
) -> impl Stream<Item = Result<ExportSnapshotResponse, Status>> + Send {
    // Held until the stream is done or dropped.
    stream::unfold((Parts::new(file), transfer), |(mut parts, transfer)| async {
        let part = parts.next()?;
        let message = part.map(|part| ExportSnapshotResponse { part: Some(part) });
        Some((message.map_err(Status::from), (parts, transfer)))
    })
}

/// What is yet to be sent.
struct Parts {
    header: Option<Part>,
    blocks: std::vec::IntoIter<Bytes>,
    /// The rest of the block that is being sent.
    open: Bytes,
    digest: Option<Sha256>,
    announced: u64,
    sent: u64,
}

impl Parts {
    fn new(file: SnapshotFile) -> Self {
        Self {
            header: Some(Part::Header(convert::snapshot_header(&file))),
            announced: file.bytes,
            blocks: file.content.into_iter(),
            open: Bytes::new(),
            digest: Some(Sha256::new()),
            sent: 0,
        }
    }

    /// The next part; `None` after the trailer or an error.
    fn next(&mut self) -> Option<Result<Part, CallError>> {
        if let Some(header) = self.header.take() {
            return Some(Ok(header));
        }
        while self.open.is_empty() {
            match self.blocks.next() {
                Some(block) => self.open = block,
                None => return self.digest.take().map(|digest| self.trailer(digest)),
            }
        }
        let chunk = self.open.split_to(self.open.len().min(CHUNK_BYTES));
        self.digest.as_mut()?.update(&chunk);
        self.sent += chunk.len() as u64;
        Some(Ok(Part::Chunk(chunk)))
    }

    fn trailer(&self, digest: Sha256) -> Result<Part, CallError> {
        let (announced, sent) = (self.announced, self.sent);
        if sent != announced {
            let problem = format!("a snapshot of {announced} bytes turned out to have {sent}");
            return Err(CallError::Internal { problem });
        }
        let sha256 = Bytes::copy_from_slice(&digest.finalize());
        Ok(Part::Trailer(SnapshotTrailer { sha256 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64, blocks: &[&[u8]]) -> SnapshotFile {
        SnapshotFile {
            fingerprint: 1,
            tokens: 1,
            name: "n".into(),
            pinned: false,
            ttl: None,
            bytes,
            content: blocks.iter().map(|block| Bytes::copy_from_slice(block)).collect(),
        }
    }

    #[test]
    fn the_digest_is_that_of_all_chunks_together() {
        let large = vec![7; CHUNK_BYTES + 1];
        let mut parts = Parts::new(file(CHUNK_BYTES as u64 + 4, &[b"abc", b"", &large]));
        assert!(matches!(parts.next(), Some(Ok(Part::Header(header))) if header.bytes > 0));
        let mut content = Vec::new();
        let trailer = loop {
            match parts.next().expect("a part").expect("no error") {
                Part::Chunk(chunk) => {
                    assert!((1..=CHUNK_BYTES).contains(&chunk.len()));
                    content.extend_from_slice(&chunk);
                }
                Part::Trailer(trailer) => break trailer,
                Part::Header(_) => panic!("a second header"),
            }
        };
        assert_eq!(content, [b"abc", &large[..]].concat());
        assert_eq!(trailer.sha256[..], Sha256::digest(&content)[..]);
        assert!(parts.next().is_none());
    }

    #[test]
    fn content_that_is_not_as_announced_ends_without_a_trailer() {
        let mut parts = Parts::new(file(4, &[b"abc"]));
        assert!(matches!(parts.next(), Some(Ok(Part::Header(_)))));
        assert!(matches!(parts.next(), Some(Ok(Part::Chunk(_)))));
        assert!(matches!(parts.next(), Some(Err(CallError::Internal { .. }))));
        assert!(parts.next().is_none());
    }
}
