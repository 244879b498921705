//! The format of an exported snapshot: a frame around the header, the content and the digest that
//! `ExportSnapshot` streams. `docs/PROTOCOL.md` describes it for others.
//!
//! ```text
//! 8  bytes  magic, "SCONCESN"
//! 4  bytes  version of this frame, little endian
//! 4  bytes  length H of the header, little endian
//! H  bytes  sconce.v1.SnapshotHeader, as protobuf
//! 32 bytes  SHA-256 of the header
//! N  bytes  content, N = SnapshotHeader.bytes
//! 32 bytes  SHA-256 of the content; the last bytes
//! ```
//!
//! Nothing here reads or writes files: `sconce snapshot` does, and fuzzers feed the same functions.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use sconce_proto::v1::SnapshotHeader;
use sha2::{Digest as _, Sha256};

/// What every file begins with.
const MAGIC: [u8; 8] = *b"SCONCESN";

/// Version of the frame.
const VERSION: u32 = 1;

/// Longest header that is read. Real ones have some 200 bytes.
pub const HEADER_BYTES_MAX: usize = 64 << 10;

/// Bytes before the header.
pub const PREFIX_BYTES: usize = 16;

/// Bytes of a SHA-256.
pub const DIGEST_BYTES: usize = 32;

/// A file does not begin as a snapshot does.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SnapshotFileError {
    /// It is something else.
    #[error("expected a snapshot that sconce exported, found another file")]
    Foreign,
    /// It is of another time.
    #[error("expected version {VERSION} of the file, found {found}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// No header is that long.
    #[error("expected a header of at most {HEADER_BYTES_MAX} bytes, found {found}")]
    Length {
        /// How long it says that it is.
        found: u32,
    },
    /// The header is not what was written.
    #[error("the header is damaged: its digest does not hold")]
    Digest,
    /// What was written is no header.
    #[error("the header is damaged: {problem}")]
    Header {
        /// Where it cannot be decoded.
        problem: String,
    },
}

/// Everything before the content.
///
/// # Panics
/// If the header has 4 GiB.
pub fn head(header: &SnapshotHeader) -> Bytes {
    let encoded = header.encode_to_vec();
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + encoded.len() + DIGEST_BYTES);
    head.put_slice(&MAGIC);
    head.put_u32_le(VERSION);
    head.put_u32_le(u32::try_from(encoded.len()).expect("names and numbers take few bytes"));
    head.put_slice(&encoded);
    head.put_slice(&Sha256::digest(&encoded));
    head.freeze()
}

/// Bytes of the header that follows these, at most [`HEADER_BYTES_MAX`]; its digest comes after it.
///
/// # Errors
/// If no snapshot begins like that, or one of another version.
pub fn header_bytes(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, SnapshotFileError> {
    let number = |at: usize| {
        u32::from_le_bytes(prefix[at..at + 4].try_into().expect("a slice of four bytes"))
    };
    if prefix[..8] != MAGIC {
        return Err(SnapshotFileError::Foreign);
    }
    let (version, length) = (number(8), number(12));
    if version != VERSION {
        return Err(SnapshotFileError::Version { found: version });
    }
    usize::try_from(length)
        .ok()
        .filter(|&length| length <= HEADER_BYTES_MAX)
        .ok_or(SnapshotFileError::Length { found: length })
}

/// The header whose encoding is `encoded`.
///
/// # Errors
/// If `digest` is of other bytes, or they are no header.
pub fn decode_header(encoded: &[u8], digest: &[u8]) -> Result<SnapshotHeader, SnapshotFileError> {
    if digest != &Sha256::digest(encoded)[..] {
        return Err(SnapshotFileError::Digest);
    }
    SnapshotHeader::decode(encoded)
        .map_err(|error| SnapshotFileError::Header { problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SnapshotHeader {
        SnapshotHeader {
            format_version: 1,
            model_fingerprint: "0123456789abcdef".into(),
            token_count: 5,
            bytes: 7,
            name: "n".into(),
            ..SnapshotHeader::default()
        }
    }

    /// Reads a head that has all its bytes.
    fn read(head: &[u8]) -> Result<SnapshotHeader, SnapshotFileError> {
        let (prefix, rest) = head.split_first_chunk().expect("a prefix");
        let length = header_bytes(prefix)?.min(rest.len());
        decode_header(&rest[..length], &rest[length..])
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        assert_eq!(read(&head(&header())), Ok(header()));
    }

    #[test]
    fn any_changed_byte_of_a_head_is_found() {
        let whole = head(&header());
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 0x41;
            assert!(read(&changed).is_err(), "byte {at} was changed");
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_refused() {
        let mut file = head(&header()).to_vec();
        file[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&file), Err(SnapshotFileError::Length { found: u32::MAX }));
    }

    #[test]
    fn what_is_no_header_is_refused_in_a_frame_that_holds() {
        // A field of the wire type that does not exist.
        let encoded = [0x07];
        let refused = decode_header(&encoded, &Sha256::digest(encoded));
        assert!(matches!(refused, Err(SnapshotFileError::Header { .. })), "{refused:?}");
    }
}
