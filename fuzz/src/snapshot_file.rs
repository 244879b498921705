//! The beginning of a snapshot file. The first byte says what the others are: a file as somebody may
//! give it to an import, or a header in a frame that holds, for no fuzzer finds a SHA-256.

use prost::Message as _;
use sconce_proto::v1::SnapshotHeader;
use sconce_server::snapshot_file::{
    DIGEST_BYTES, HEADER_BYTES_MAX, PREFIX_BYTES, SnapshotFileError, decode_header, head,
    header_bytes,
};
use sha2::{Digest as _, Sha256};

const FILE: u8 = 0;
const HEADER: u8 = 1;

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    if kind % 2 == FILE {
        if let Some(Ok(header)) = read(bytes) {
            assert_eq!(read(&head(&header)), Some(Ok(header)), "the same when written again");
        }
        return;
    }
    let encoded = &bytes[..bytes.len().min(HEADER_BYTES_MAX)];
    let mut file = framed(encoded);
    let found = read(&file).expect("nothing is missing");
    match SnapshotHeader::decode(encoded) {
        Ok(header) => assert_eq!(found, Ok(header)),
        Err(_) => assert!(matches!(found, Err(SnapshotFileError::Header { .. })), "{found:?}"),
    }
    // Where is decided by the input, so that all places have their turn.
    let at = encoded.iter().map(|&byte| usize::from(byte)).sum::<usize>() % file.len();
    file[at] ^= kind | 1;
    // A header that is said to be longer goes beyond the file.
    let changed = read(&file);
    assert!(!matches!(changed, Some(Ok(_))), "byte {at} was changed: {changed:?}");
    assert!(!matches!(read(&file[..at]), Some(Ok(_))), "cut at {at}");
}

/// What an import makes of a file; nothing if it ends before the content.
fn read(file: &[u8]) -> Option<Result<SnapshotHeader, SnapshotFileError>> {
    let (prefix, rest) = file.split_first_chunk::<PREFIX_BYTES>()?;
    let length = match header_bytes(prefix) {
        Ok(length) => length,
        Err(error) => return Some(Err(error)),
    };
    assert!(length <= HEADER_BYTES_MAX, "{length} bytes would be read");
    let (encoded, rest) = rest.split_at_checked(length)?;
    Some(decode_header(encoded, rest.get(..DIGEST_BYTES)?))
}

/// A frame around any bytes, with a digest that holds.
fn framed(encoded: &[u8]) -> Vec<u8> {
    let mut file = head(&SnapshotHeader::default())[..PREFIX_BYTES].to_vec();
    let length = u32::try_from(encoded.len()).expect("few bytes");
    file.splice(PREFIX_BYTES - 4.., length.to_le_bytes());
    file.extend_from_slice(encoded);
    file.extend_from_slice(&Sha256::digest(encoded));
    file
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let full = SnapshotHeader {
        format_version: 1,
        model_fingerprint: "0123456789abcdef".to_owned(),
        token_count: 300,
        bytes: 1 << 40,
        name: "a \u{1f600}".to_owned(),
        pinned: true,
        ..SnapshotHeader::default()
    };
    let whole = head(&full);
    let mut longest = head(&SnapshotHeader::default()).to_vec();
    longest.splice(12..PREFIX_BYTES, u32::MAX.to_le_bytes());
    let mut other_version = whole.to_vec();
    other_version[8] = 2;
    let files = [&b""[..], &whole, &whole[..whole.len() - 1], &longest, &other_version];
    let encoded = full.encode_to_vec();
    // A group without an end, a name that is no UTF-8, a number of eleven bytes.
    let headers = [&b""[..], &encoded, &[0x0b], &[0x2a, 1, 0xff], &[0x18; 11], &[0xff; 11]];
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let mut seeds: Vec<Vec<u8>> = files.map(|bytes| with(FILE, bytes)).into();
    seeds.extend(headers.map(|bytes| with(HEADER, bytes)));
    seeds
}
