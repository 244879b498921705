//! The record: one span or one point of cached state, self-describing and checksummed.
//! Layout, bounds, head and tokens are here; payloads pass through `codec`, files through
//! `directory`.
//!
//! All numbers are little-endian. `H` is the length of the head, `S` that of the salt, `n` the
//! number of tokens, `P` the length of the payload; checksums are XXH3 of 128 bits.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `89 73 63 6f 6e 63 65 0a` |
//! | 8 | 2 | major version |
//! | 10 | 2 | minor version |
//! | 12 | 4 | `H` |
//! | 16 | 8 | fingerprint of the model |
//! | 24 | 4 | instance of the model |
//! | 28 | 4 | kind: 0 span, 1 point |
//! | 32 | 4 | start |
//! | 36 | 4 | `n`, which is also the end |
//! | 40 | 4 | tokens of a page |
//! | 44 | 4 | 0 without salt, else `S` + 1 |
//! | 48 | 8 | `P` |
//! | 56 | 16 | checksum of the tokens |
//! | 72 | `S` | salt, UTF-8 |
//! | 72 + `S` | | fields of later minor versions, skipped |
//! | `H` - 16 | 16 | checksum of the bytes before |
//! | `H` | 4 `n` | tokens |
//! | `H` + 4 `n` | `P` | payload |
//! | `H` + 4 `n` + `P` | 16 | checksum of the payload, seeded with the low half of the head's |

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::error::RecordFault;

/// The bytes every record begins with: not text, and broken by a transfer that changes line ends.
pub const MAGIC: [u8; 8] = *b"\x89sconce\n";
/// A record of another major version cannot be read.
pub const VERSION_MAJOR: u16 = 1;
/// A later minor version only adds fields at the end of the head.
pub const VERSION_MINOR: u16 = 0;
/// Most bytes of a head.
pub const HEAD_BYTES_MAX: usize = 4096;
/// Most bytes of a salt.
pub const SALT_BYTES_MAX: usize = 2048;
/// Most tokens of a path.
pub const TOKENS_MAX: usize = 1 << 24;
/// Most tokens of a page.
pub const PAGE_TOKENS_MAX: u32 = 1 << 16;
/// Most bytes of a payload.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 38;
/// File systems hand out space in such blocks; what a record takes is rounded up to them.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes of a checksum.
pub(super) const CHECKSUM_BYTES: usize = 16;
/// Bytes from which the length of the head is known.
pub(super) const PREAMBLE_BYTES: usize = 16;
const FIXED_BYTES: usize = 72;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// State per token, of the tokens from `start` to the end of the path.
    Span,
    /// The whole state after the path; `start` is its end.
    Point,
}

/// What a record says about its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// Which weights the state was computed with.
    pub fingerprint: u64,
    /// Tells models apart that were loaded twice from the same weights.
    pub instance: u32,
    /// Namespace that the client asked for, at most [`SALT_BYTES_MAX`] bytes.
    pub salt: Option<String>,
    /// Span or point.
    pub kind: RecordKind,
    /// First token that the payload is about.
    pub start: u32,
    /// The path from the first token to the end of the payload, at most [`TOKENS_MAX`].
    pub tokens: Vec<u32>,
    /// Tokens of one page, at most [`PAGE_TOKENS_MAX`].
    pub page_tokens: u32,
    /// Bytes of the payload, at most [`PAYLOAD_BYTES_MAX`].
    pub payload_bytes: u64,
}

impl RecordHeader {
    /// Bytes of the encoded record.
    pub fn record_bytes(&self) -> u64 {
        let salt = self.salt.as_ref().map_or(0, String::len);
        record_bytes(FIXED_BYTES + salt + CHECKSUM_BYTES, self.tokens.len(), self.payload_bytes)
    }

    /// Head and tokens as they stand at the beginning of the record.
    ///
    /// # Errors
    /// [`RecordFault::Field`] if a number is outside of its bounds.
    pub(super) fn encode(&self) -> Result<EncodedHeader, RecordFault> {
        let salt = self.salt.as_deref().unwrap_or_default();
        let end = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let tokens: Vec<u8> = self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let mut head = Head {
            bytes: FIXED_BYTES + salt.len() + CHECKSUM_BYTES,
            checksum: 0,
            fingerprint: self.fingerprint,
            instance: self.instance,
            salt: self.salt.clone(),
            kind: self.kind,
            start: self.start,
            end,
            page_tokens: self.page_tokens,
            payload_bytes: self.payload_bytes,
            tokens_checksum: xxh3_128(&tokens),
        };
        head.check()?;
        let mut bytes = head.encode();
        head.checksum = xxh3_128(&bytes);
        bytes.extend_from_slice(&head.checksum.to_le_bytes());
        debug_assert_eq!(bytes.len(), head.bytes, "the head has the length that it says");
        bytes.extend_from_slice(&tokens);
        Ok(EncodedHeader { bytes, head })
    }
}

/// The bytes of head and tokens of a record, and the head that they hold.
#[derive(Debug)]
pub(super) struct EncodedHeader {
    pub(super) bytes: Vec<u8>,
    pub(super) head: Head,
}

/// A record's header without its tokens: what a scan reads of every file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Length of the head.
    pub(super) bytes: usize,
    pub(super) checksum: u128,
    pub(super) fingerprint: u64,
    pub(super) instance: u32,
    pub(super) salt: Option<String>,
    pub(super) kind: RecordKind,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) page_tokens: u32,
    pub(super) payload_bytes: u64,
    tokens_checksum: u128,
}

impl Head {
    /// Length of the head, from the first [`PREAMBLE_BYTES`] of a record.
    ///
    /// # Errors
    /// If they do not begin a record of this major version, or the length is out of bounds.
    pub(super) fn length(preamble: &[u8; PREAMBLE_BYTES]) -> Result<usize, RecordFault> {
        let mut fields = Fields(preamble);
        let magic = fields.take();
        if magic != MAGIC {
            return Err(RecordFault::Magic { expected: MAGIC, found: magic });
        }
        let (major, _minor) = (u16::from_le_bytes(fields.take()), fields.take::<2>());
        if major != VERSION_MAJOR {
            return Err(RecordFault::Version { expected: VERSION_MAJOR, found: major });
        }
        let length = u32::from_le_bytes(fields.take());
        let (least, most) = (FIXED_BYTES + CHECKSUM_BYTES, HEAD_BYTES_MAX);
        within("length of the head", u64::from(length), least as u64, most as u64)?;
        Ok(length as usize)
    }

    /// Reads a whole head, of the length that [`Head::length`] told.
    ///
    /// # Errors
    /// If it does not have its checksum, or a field is outside of its bounds.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        let checksum = u128::from_le_bytes(Fields(checksum).take());
        verify("head", checksum, xxh3_128(content))?;
        let mut fields = Fields(&content[PREAMBLE_BYTES..]);
        let fingerprint = u64::from_le_bytes(fields.take());
        let instance = u32::from_le_bytes(fields.take());
        let kind = match u32::from_le_bytes(fields.take()) {
            0 => RecordKind::Span,
            1 => RecordKind::Point,
            found => return Err(field("kind", "0 or 1".into(), u64::from(found))),
        };
        let start = u32::from_le_bytes(fields.take());
        let end = u32::from_le_bytes(fields.take());
        let page_tokens = u32::from_le_bytes(fields.take());
        let salt_field = u32::from_le_bytes(fields.take());
        let payload_bytes = u64::from_le_bytes(fields.take());
        let tokens_checksum = u128::from_le_bytes(fields.take());
        let salt = match salt_field.checked_sub(1) {
            None => None,
            Some(length) => {
                within("bytes of the salt", u64::from(length), 0, fields.0.len() as u64)?;
                let text = &fields.0[..length as usize];
                Some(std::str::from_utf8(text).map_err(|_| RecordFault::Salt)?.to_owned())
            }
        };
        let head = Self {
            bytes: bytes.len(),
            checksum,
            fingerprint,
            instance,
            salt,
            kind,
            start,
            end,
            page_tokens,
            payload_bytes,
            tokens_checksum,
        };
        head.check()?;
        Ok(head)
    }

    /// Bytes of the tokens.
    pub(super) fn tokens_bytes(&self) -> usize {
        self.end as usize * size_of::<u32>()
    }

    /// Bytes of the whole record.
    pub(super) fn record_bytes(&self) -> u64 {
        record_bytes(self.bytes, self.end as usize, self.payload_bytes)
    }

    /// The header, with the tokens that follow the head.
    ///
    /// # Errors
    /// [`RecordFault::Checksum`] if they are not the tokens that were written.
    pub(super) fn with_tokens(&self, bytes: &[u8]) -> Result<RecordHeader, RecordFault> {
        verify("tokens", self.tokens_checksum, xxh3_128(bytes))?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(RecordHeader {
            fingerprint: self.fingerprint,
            instance: self.instance,
            salt: self.salt.clone(),
            kind: self.kind,
            start: self.start,
            tokens: words.iter().map(|word| u32::from_le_bytes(*word)).collect(),
            page_tokens: self.page_tokens,
            payload_bytes: self.payload_bytes,
        })
    }

    /// Everything before the checksum.
    fn encode(&self) -> Vec<u8> {
        let salt = self.salt.as_deref();
        let mut bytes = Vec::with_capacity(self.bytes + self.tokens_bytes());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION_MAJOR.to_le_bytes());
        bytes.extend_from_slice(&VERSION_MINOR.to_le_bytes());
        bytes.extend_from_slice(&(self.bytes as u32).to_le_bytes());
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        bytes.extend_from_slice(&self.instance.to_le_bytes());
        bytes.extend_from_slice(&(self.kind as u32).to_le_bytes());
        bytes.extend_from_slice(&self.start.to_le_bytes());
        bytes.extend_from_slice(&self.end.to_le_bytes());
        bytes.extend_from_slice(&self.page_tokens.to_le_bytes());
        bytes.extend_from_slice(&salt.map_or(0, |salt| salt.len() as u32 + 1).to_le_bytes());
        bytes.extend_from_slice(&self.payload_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.tokens_checksum.to_le_bytes());
        bytes.extend_from_slice(salt.unwrap_or_default().as_bytes());
        bytes
    }

    fn check(&self) -> Result<(), RecordFault> {
        let salt = self.salt.as_ref().map_or(0, String::len);
        let end = u64::from(self.end);
        within("bytes of the salt", salt as u64, 0, SALT_BYTES_MAX as u64)?;
        within("tokens of the path", end, 1, TOKENS_MAX as u64)?;
        match self.kind {
            RecordKind::Span => within("start of the span", u64::from(self.start), 0, end - 1)?,
            RecordKind::Point => within("start of the point", u64::from(self.start), end, end)?,
        }
        let page = u64::from(self.page_tokens);
        within("tokens of a page", page, 1, u64::from(PAGE_TOKENS_MAX))?;
        within("bytes of the payload", self.payload_bytes, 0, PAYLOAD_BYTES_MAX)
    }
}

/// The checksum of a payload. It begins from the checksum of the head, so that the payload of one
/// record is never taken for that of another.
pub(super) struct PayloadChecksum(Xxh3);

impl PayloadChecksum {
    pub(super) fn new(head_checksum: u128) -> Self {
        Self(Xxh3::with_seed(head_checksum as u64))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn value(&self) -> u128 {
        self.0.digest128()
    }
}

/// Whether a checksum is the one that was written.
pub(super) fn verify(part: &'static str, expected: u128, found: u128) -> Result<(), RecordFault> {
    if expected == found { Ok(()) } else { Err(RecordFault::Checksum { part, expected, found }) }
}

pub(super) fn within(
    name: &'static str,
    found: u64,
    least: u64,
    most: u64,
) -> Result<(), RecordFault> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(field(name, format!("{least} to {most}"), found))
}

/// The blocks that `bytes` of a file take.
pub(super) fn round_to_blocks(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX)
}

fn record_bytes(head: usize, tokens: usize, payload: u64) -> u64 {
    let around = head + tokens * size_of::<u32>() + CHECKSUM_BYTES;
    payload.saturating_add(around as u64)
}

fn field(field: &'static str, expected: String, found: u64) -> RecordFault {
    RecordFault::Field { field, expected, found }
}

/// Takes fields of a known size from the front; the lengths were checked before.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) =
            self.0.split_first_chunk().expect("a head has at least its fixed fields");
        self.0 = rest;
        *first
    }
}
