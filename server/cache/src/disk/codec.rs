//! Records as a stream of bytes: for files, and for snapshots on their way to another server.
//! Nothing is taken on trust: every length is bounded before memory is taken for it, and memory
//! grows only as bytes arrive.

use std::io::{self, Read};

use bytes::Bytes;

use super::error::RecordFault;
use super::record::{
    CHECKSUM_BYTES, Head, PAYLOAD_BYTES_MAX, PREAMBLE_BYTES, PayloadChecksum, RecordHeader,
    TOKENS_MAX, verify, within,
};

/// A decoded payload comes in pieces of at most this many bytes.
pub const PIECE_BYTES: usize = 1 << 20;

/// A whole record. The pieces of the payload follow one another; where they are cut means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it says about its payload.
    pub header: RecordHeader,
    /// The payload.
    pub payload: Vec<Bytes>,
}

/// The record as pieces that follow one another: head and tokens, the pieces of `payload`
/// themselves (not copied), checksum.
///
/// # Errors
/// [`RecordFault::Field`] if a number of the header is outside of its bounds, or the payload is not
/// as long as the header says.
pub fn encode(header: &RecordHeader, payload: &[Bytes]) -> Result<Vec<Bytes>, RecordFault> {
    check_payload(header, payload)?;
    let encoded = header.encode()?;
    let trailer = trailer(encoded.head.checksum, payload);
    let mut pieces = Vec::with_capacity(payload.len() + 2);
    pieces.push(Bytes::from(encoded.bytes));
    pieces.extend(payload.iter().cloned());
    pieces.push(Bytes::from_owner(trailer));
    Ok(pieces)
}

/// Whether the pieces together are as long as the header says.
pub(super) fn check_payload(header: &RecordHeader, payload: &[Bytes]) -> Result<(), RecordFault> {
    let bytes: u64 = payload.iter().map(|piece| piece.len() as u64).sum();
    within("bytes of the payload", bytes, header.payload_bytes, header.payload_bytes)
}

/// What follows the payload.
pub(super) fn trailer(head_checksum: u128, payload: &[Bytes]) -> [u8; CHECKSUM_BYTES] {
    let mut checksum = PayloadChecksum::new(head_checksum);
    payload.iter().for_each(|piece| checksum.update(piece));
    checksum.value().to_le_bytes()
}

/// Most that a [`Decoder`] accepts of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most tokens of a path.
    pub tokens_max: usize,
    /// Most bytes of a payload.
    pub payload_bytes_max: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { tokens_max: TOKENS_MAX, payload_bytes_max: PAYLOAD_BYTES_MAX }
    }
}

/// Reads records, one after another, from bytes that arrive in parts of any size.
#[derive(Debug)]
pub struct Decoder {
    limits: DecodeLimits,
    stage: Stage,
    /// Bytes of the stage that have arrived; of the payload, those of the last piece.
    buffer: Vec<u8>,
    /// Bytes of the record that have arrived.
    received: u64,
    failed: Option<RecordFault>,
}

impl Decoder {
    /// A decoder at the beginning of a record.
    pub fn new(limits: DecodeLimits) -> Self {
        Self { limits, stage: Stage::Preamble, buffer: Vec::new(), received: 0, failed: None }
    }

    /// Takes the next bytes and returns the records that they complete.
    ///
    /// # Errors
    /// Why the stream is refused, now and at every later call: after damage nobody can tell where
    /// the next record begins.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<Record>, RecordFault> {
        if let Some(fault) = &self.failed {
            return Err(fault.clone());
        }
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let wanted = self.stage.wanted() - self.buffer.len();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            self.received += now.len() as u64;
            bytes = later;
            if now.len() == wanted {
                match self.advance() {
                    Ok(record) => records.extend(record),
                    Err(fault) => {
                        self.failed = Some(fault.clone());
                        return Err(fault);
                    }
                }
            }
        }
        Ok(records)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`RecordFault::Length`] in the middle of a record; what `feed` has refused already.
    pub fn finish(self) -> Result<(), RecordFault> {
        if let Some(fault) = self.failed {
            return Err(fault);
        }
        if self.received == 0 {
            return Ok(());
        }
        let least = self.received + (self.stage.wanted() - self.buffer.len()) as u64;
        let expected = self.stage.head().map_or(least, Head::record_bytes);
        Err(RecordFault::Length { expected, found: self.received })
    }

    /// The stage has all its bytes: checks them and goes to the next.
    fn advance(&mut self) -> Result<Option<Record>, RecordFault> {
        let bytes = &self.buffer;
        let stage = match std::mem::replace(&mut self.stage, Stage::Preamble) {
            Stage::Preamble => {
                let preamble = bytes.first_chunk().expect("the stage wants a preamble");
                self.stage = Stage::Head { bytes: Head::length(preamble)? };
                // The preamble is part of the head and of its checksum.
                return Ok(None);
            }
            Stage::Head { .. } => {
                let head = Head::decode(bytes)?;
                within("tokens of the path", head.end.into(), 0, self.limits.tokens_max as u64)?;
                let most = self.limits.payload_bytes_max;
                within("bytes of the payload", head.payload_bytes, 0, most)?;
                Stage::Tokens { head }
            }
            Stage::Tokens { head } => Partial {
                header: head.with_tokens(bytes)?,
                pieces: Vec::new(),
                missing: head.payload_bytes,
                checksum: PayloadChecksum::new(head.checksum),
                head,
            }
            .next(),
            Stage::Payload(mut partial) => {
                partial.checksum.update(bytes);
                partial.missing -= bytes.len() as u64;
                partial.pieces.push(Bytes::copy_from_slice(bytes.as_slice()));
                partial.next()
            }
            Stage::Trailer(partial) => {
                let trailer = bytes.first_chunk().expect("the stage wants a checksum");
                verify("payload", u128::from_le_bytes(*trailer), partial.checksum.value())?;
                (self.buffer, self.received) = (Vec::new(), 0);
                return Ok(Some(Record { header: partial.header, payload: partial.pieces }));
            }
        };
        self.stage = stage;
        self.buffer.clear();
        Ok(None)
    }
}

/// What a decoder is waiting for.
#[derive(Debug)]
enum Stage {
    Preamble,
    Head { bytes: usize },
    Tokens { head: Head },
    Payload(Partial),
    Trailer(Partial),
}

impl Stage {
    /// Bytes that it takes to get further.
    fn wanted(&self) -> usize {
        match self {
            Self::Preamble => PREAMBLE_BYTES,
            Self::Head { bytes } => *bytes,
            Self::Tokens { head } => head.tokens_bytes(),
            Self::Payload(partial) => partial.missing.min(PIECE_BYTES as u64) as usize,
            Self::Trailer(_) => CHECKSUM_BYTES,
        }
    }

    fn head(&self) -> Option<&Head> {
        match self {
            Self::Preamble | Self::Head { .. } => None,
            Self::Tokens { head } => Some(head),
            Self::Payload(partial) | Self::Trailer(partial) => Some(&partial.head),
        }
    }
}

/// A record whose payload is arriving.
struct Partial {
    header: RecordHeader,
    head: Head,
    pieces: Vec<Bytes>,
    missing: u64,
    checksum: PayloadChecksum,
}

impl Partial {
    fn next(self) -> Stage {
        if self.missing > 0 { Stage::Payload(self) } else { Stage::Trailer(self) }
    }
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partial").field("head", &self.head).field("missing", &self.missing).finish()
    }
}

/// Why a record could not be read from a file.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Fault(RecordFault),
}

impl From<RecordFault> for ReadError {
    fn from(fault: RecordFault) -> Self {
        Self::Fault(fault)
    }
}

/// A file that is read from its beginning to its end.
pub(super) struct Source<'a> {
    file: &'a mut dyn Read,
    length: u64,
    read: u64,
}

impl<'a> Source<'a> {
    /// A file of `length` bytes, at its beginning.
    pub(super) fn new(file: &'a mut dyn Read, length: u64) -> Self {
        Self { file, length, read: 0 }
    }

    /// Reads the head. The file must have the length that the head tells, so that what is read
    /// after it takes no more memory than the file has bytes.
    pub(super) fn head(&mut self) -> Result<Head, ReadError> {
        let mut preamble = [0; PREAMBLE_BYTES];
        self.fill(&mut preamble, PREAMBLE_BYTES as u64)?;
        let mut bytes = vec![0; Head::length(&preamble)?];
        bytes[..PREAMBLE_BYTES].copy_from_slice(&preamble);
        let head_bytes = bytes.len() as u64;
        self.fill(&mut bytes[PREAMBLE_BYTES..], head_bytes)?;
        let head = Head::decode(&bytes)?;
        if head.record_bytes() != self.length {
            let (expected, found) = (head.record_bytes(), self.length);
            return Err(RecordFault::Length { expected, found }.into());
        }
        Ok(head)
    }

    /// Reads and verifies the tokens that follow the head.
    pub(super) fn tokens(&mut self, head: &Head) -> Result<RecordHeader, ReadError> {
        let mut bytes = vec![0; head.tokens_bytes()];
        self.fill(&mut bytes, head.record_bytes())?;
        Ok(head.with_tokens(&bytes)?)
    }

    /// Reads and verifies the payload that follows the tokens.
    pub(super) fn payload(&mut self, head: &Head) -> Result<Bytes, ReadError> {
        let bytes = usize::try_from(head.payload_bytes).map_err(|_| RecordFault::Field {
            field: "bytes of the payload",
            expected: format!("0 to {}", usize::MAX),
            found: head.payload_bytes,
        })?;
        let mut payload = vec![0; bytes];
        self.fill(&mut payload, head.record_bytes())?;
        let mut trailer = [0; CHECKSUM_BYTES];
        self.fill(&mut trailer, head.record_bytes())?;
        let mut checksum = PayloadChecksum::new(head.checksum);
        checksum.update(&payload);
        verify("payload", u128::from_le_bytes(trailer), checksum.value())?;
        Ok(payload.into())
    }

    /// A file that ends early is a fault of the record, not of the disk.
    fn fill(&mut self, into: &mut [u8], expected: u64) -> Result<(), ReadError> {
        let mut filled = 0;
        while filled < into.len() {
            match self.file.read(&mut into[filled..]) {
                Ok(0) => return Err(RecordFault::Length { expected, found: self.read }.into()),
                Ok(bytes) => {
                    filled += bytes;
                    self.read += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        Ok(())
    }
}
