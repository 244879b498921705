//! A snapshot from a stream: the order and the sizes of its messages are checked as they come, and
//! its digest before anything is kept. Memory is taken as content arrives, never as announced.

use bytes::Bytes;
use sconce_engine::{SnapshotFile, SnapshotInfo};
use sconce_proto::v1::import_snapshot_request::Part;
use sconce_proto::v1::{ImportSnapshotRequest, SnapshotTrailer};
use sha2::{Digest as _, Sha256};

use crate::error::CallError;
use crate::grpc::convert;

/// Most content of one message, in bytes.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Content is gathered in blocks of this many bytes, so that small chunks cost no more than large.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of a SHA-256.
const DIGEST_BYTES: usize = 32;

/// Checks the first message: the model, and what is to come.
///
/// # Errors
/// The field that is wrong.
pub(super) fn begin(
    first: Option<ImportSnapshotRequest>,
) -> Result<(String, SnapshotFile), CallError> {
    let message = first.unwrap_or_default();
    let header = match message.part {
        Some(Part::Header(header)) => header,
        other => return Err(out_of_order("a header", other.as_ref())),
    };
    convert::model_name(&message.model)?;
    Ok((message.model, convert::snapshot_file(header)?))
}

/// The outcome of an import; what is damaged came with this call.
pub(super) fn kept(outcome: Result<SnapshotInfo, CallError>) -> Result<SnapshotInfo, CallError> {
    outcome.map_err(|error| match error {
        CallError::SnapshotDamaged { problem } => CallError::field("chunk", problem),
        error => error,
    })
}

fn out_of_order(expected: &str, found: Option<&Part>) -> CallError {
    let found = match found {
        Some(Part::Header(_)) => "a header",
        Some(Part::Chunk(_)) => "a chunk",
        Some(Part::Trailer(_)) => "a trailer",
        None => "none",
    };
    CallError::field("part", format!("expected {expected}, found {found}"))
}

/// A snapshot in the middle of its messages.
#[derive(Debug)]
pub(super) struct Assembly {
    file: SnapshotFile,
    received: u64,
    /// The block that is not full yet.
    open: Vec<u8>,
    digest: Sha256,
    complete: bool,
}

impl Assembly {
    /// A snapshot without content.
    pub(super) fn new(file: SnapshotFile) -> Self {
        Self { file, received: 0, open: Vec::new(), digest: Sha256::new(), complete: false }
    }

    /// Takes a message after the first.
    ///
    /// # Errors
    /// The field that is wrong.
    pub(super) fn take(&mut self, message: ImportSnapshotRequest) -> Result<(), CallError> {
        if !message.model.is_empty() {
            let problem = "expected the model in the first message alone, found it in another";
            return Err(CallError::field("model", problem));
        }
        match message.part {
            other if self.complete => {
                Err(out_of_order("the end of the stream after the trailer", other.as_ref()))
            }
            Some(Part::Chunk(chunk)) => self.chunk(&chunk),
            Some(Part::Trailer(trailer)) => self.trailer(&trailer),
            other => Err(out_of_order("a chunk or a trailer", other.as_ref())),
        }
    }

    fn chunk(&mut self, chunk: &Bytes) -> Result<(), CallError> {
        let refuse = |problem| Err(CallError::field("chunk", problem));
        if !(1..=CHUNK_BYTES_MAX).contains(&chunk.len()) {
            return refuse(format!("expected 1 to {CHUNK_BYTES_MAX} bytes, found {}", chunk.len()));
        }
        let (bytes, received) = (self.file.bytes, self.received + chunk.len() as u64);
        if received > bytes {
            return refuse(format!(
                "expected {bytes} bytes of content as announced by `header.bytes`, found {received}"
            ));
        }
        self.received = received;
        self.digest.update(chunk);
        self.gather(chunk);
        Ok(())
    }

    /// Adds to the open block, and closes each that is full.
    fn gather(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            let room = BLOCK_BYTES - self.open.len();
            let (now, later) = rest.split_at(rest.len().min(room));
            self.open.extend_from_slice(now);
            rest = later;
            if self.open.len() == BLOCK_BYTES {
                self.close_block();
            }
        }
    }

    fn close_block(&mut self) {
        if !self.open.is_empty() {
            self.file.content.push(Bytes::copy_from_slice(&self.open));
            self.open.clear();
        }
    }

    fn trailer(&mut self, trailer: &SnapshotTrailer) -> Result<(), CallError> {
        let (bytes, received) = (self.file.bytes, self.received);
        if received != bytes {
            let problem = format!(
                "expected {bytes} bytes of content before the trailer as announced by \
                 `header.bytes`, found {received}"
            );
            return Err(CallError::field("chunk", problem));
        }
        let found = trailer.sha256.len();
        if found != DIGEST_BYTES {
            let problem = format!("expected {DIGEST_BYTES} bytes, found {found}");
            return Err(CallError::field("trailer.sha256", problem));
        }
        if self.digest.finalize_reset()[..] != trailer.sha256[..] {
            let problem = "expected the digest of the content, found another";
            return Err(CallError::field("trailer.sha256", problem));
        }
        self.close_block();
        self.complete = true;
        Ok(())
    }

    /// The snapshot, once the stream has ended.
    ///
    /// # Errors
    /// If there was no trailer.
    pub(super) fn finish(self) -> Result<SnapshotFile, CallError> {
        if self.complete {
            return Ok(self.file);
        }
        let problem = "expected a trailer, found the end of the stream";
        Err(CallError::field("part", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_proto::v1::SnapshotHeader;

    fn header(bytes: u64) -> ImportSnapshotRequest {
        let header = SnapshotHeader {
            format_version: 1,
            model_fingerprint: format!("{:016x}", 7),
            token_count: 3,
            bytes,
            name: "n".into(),
            ..SnapshotHeader::default()
        };
        ImportSnapshotRequest { model: "m".into(), part: Some(Part::Header(header)) }
    }

    fn later(part: Part) -> ImportSnapshotRequest {
        ImportSnapshotRequest { part: Some(part), ..ImportSnapshotRequest::default() }
    }

    fn chunk(content: &[u8]) -> ImportSnapshotRequest {
        later(Part::Chunk(Bytes::copy_from_slice(content)))
    }

    fn trailer(content: &[u8]) -> ImportSnapshotRequest {
        let sha256 = Bytes::copy_from_slice(&Sha256::digest(content));
        later(Part::Trailer(SnapshotTrailer { sha256 }))
    }

    /// What comes of a stream.
    fn run(messages: Vec<ImportSnapshotRequest>) -> Result<SnapshotFile, CallError> {
        let mut messages = messages.into_iter();
        let (model, file) = begin(messages.next())?;
        assert_eq!(model, "m");
        let mut assembly = Assembly::new(file);
        messages.try_for_each(|message| assembly.take(message))?;
        assembly.finish()
    }

    fn refused(messages: Vec<ImportSnapshotRequest>) -> String {
        match run(messages) {
            Err(CallError::InvalidField { field, .. }) => field,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    #[test]
    fn chunks_of_any_size_become_one_content() {
        let content: Vec<u8> = (0..3 * BLOCK_BYTES / 2).map(|i| (i % 251) as u8).collect();
        for size in [1 << 18, 1_000_003, CHUNK_BYTES_MAX] {
            let mut messages = vec![header(content.len() as u64)];
            messages.extend(content.chunks(size).map(chunk));
            messages.push(trailer(&content));
            let file = run(messages).expect("is taken");
            assert_eq!((file.fingerprint, file.tokens, file.name.as_str()), (7, 3, "n"));
            assert_eq!(file.content.concat(), content);
            assert_eq!(file.content.len(), 2);
        }
    }

    #[test]
    fn every_message_out_of_order_is_refused() {
        let whole = || vec![header(3), chunk(b"abc"), trailer(b"abc")];
        assert!(run(whole()).is_ok());
        assert_eq!(refused(vec![]), "part");
        assert_eq!(refused(vec![chunk(b"abc")]), "part");
        assert_eq!(refused(vec![trailer(b"")]), "part");
        let second = ImportSnapshotRequest { model: String::new(), ..header(3) };
        assert_eq!(refused(vec![header(3), second]), "part");
        assert_eq!(refused(vec![header(3), ImportSnapshotRequest::default()]), "part");
        assert_eq!(refused(vec![header(3), chunk(b"abc")]), "part");
        assert_eq!(refused([whole(), vec![chunk(b"d")]].concat()), "part");
        assert_eq!(refused([whole(), vec![trailer(b"abc")]].concat()), "part");
        let nameless = ImportSnapshotRequest { model: String::new(), ..header(3) };
        assert_eq!(refused(vec![nameless]), "model");
        let again = ImportSnapshotRequest { model: "m".into(), ..chunk(b"abc") };
        assert_eq!(refused(vec![header(3), again]), "model");
    }

    #[test]
    fn sizes_are_exactly_as_announced() {
        assert_eq!(refused(vec![header(3), chunk(b"")]), "chunk");
        let large = vec![0; CHUNK_BYTES_MAX + 1];
        assert_eq!(refused(vec![header(1 << 30), chunk(&large)]), "chunk");
        assert_eq!(refused(vec![header(3), chunk(b"ab"), chunk(b"cd")]), "chunk");
        assert_eq!(refused(vec![header(3), chunk(b"ab"), trailer(b"ab")]), "chunk");
    }

    #[test]
    fn a_digest_that_does_not_hold_is_refused() {
        assert_eq!(refused(vec![header(3), chunk(b"abc"), trailer(b"abd")]), "trailer.sha256");
        let short = later(Part::Trailer(SnapshotTrailer { sha256: Bytes::from_static(b"short") }));
        assert_eq!(refused(vec![header(3), chunk(b"abc"), short]), "trailer.sha256");
    }
}
