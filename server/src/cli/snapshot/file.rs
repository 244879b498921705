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

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use sconce_proto::v1::SnapshotHeader;
use sha2::{Digest as _, Sha256};

use super::place::Source;
use crate::cli::error::CliError;

/// What every file begins with.
const MAGIC: [u8; 8] = *b"SCONCESN";

/// Version of the frame.
const VERSION: u32 = 1;

/// Longest header that is read. Real ones have some 200 bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Bytes of a SHA-256.
pub(super) const DIGEST_BYTES: usize = 32;

/// Everything before the content.
pub(super) fn head(header: &SnapshotHeader) -> Bytes {
    let encoded = header.encode_to_vec();
    let mut head = BytesMut::new();
    head.put_slice(&MAGIC);
    head.put_u32_le(VERSION);
    head.put_u32_le(u32::try_from(encoded.len()).expect("names and numbers take few bytes"));
    head.put_slice(&encoded);
    head.put_slice(&Sha256::digest(&encoded));
    head.freeze()
}

/// Reads everything before the content.
///
/// # Errors
/// If `source` is not a snapshot, or a damaged one, or of another version.
pub(super) async fn read_head(source: &mut Source) -> Result<SnapshotHeader, CliError> {
    let fixed = source.exact(16).await?;
    let number = |at: usize| {
        u32::from_le_bytes(fixed[at..at + 4].try_into().expect("a slice of four bytes"))
    };
    if fixed[..8] != MAGIC {
        return Err(source.wrong("expected a snapshot that sconce exported, found another file"));
    }
    if number(8) != VERSION {
        let found = number(8);
        return Err(source.wrong(format!("expected version {VERSION} of the file, found {found}")));
    }
    let length = number(12) as usize;
    if length > HEADER_BYTES_MAX {
        let problem =
            format!("expected a header of at most {HEADER_BYTES_MAX} bytes, found {length}");
        return Err(source.wrong(problem));
    }
    let encoded = source.exact(length).await?;
    if source.exact(DIGEST_BYTES).await?[..] != Sha256::digest(&encoded)[..] {
        return Err(source.wrong("the header is damaged: its digest does not hold"));
    }
    SnapshotHeader::decode(encoded)
        .map_err(|error| source.wrong(format!("the header is damaged: {error}")))
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

    async fn read(file: &[u8]) -> Result<SnapshotHeader, String> {
        let mut source = Source::of_bytes(Bytes::copy_from_slice(file));
        read_head(&mut source).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_head_is_read_as_it_was_written() {
        assert_eq!(read(&head(&header())).await, Ok(header()));
    }

    #[tokio::test]
    async fn any_changed_or_missing_byte_of_a_head_is_found() {
        let whole = head(&header());
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 0x41;
            assert!(read(&changed).await.is_err(), "byte {at} was changed");
            assert!(read(&whole[..at]).await.is_err(), "cut at {at}");
        }
    }

    #[tokio::test]
    async fn a_length_out_of_bounds_is_refused_before_it_is_read() {
        let mut file = head(&header()).to_vec();
        file[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let problem = read(&file).await.expect_err("is refused");
        assert!(problem.contains("at most 65536 bytes"), "{problem}");
    }
}
