//! Reads the beginning of a snapshot file from wherever it lies.

use sconce_proto::v1::SnapshotHeader;
use sconce_server::snapshot_file::{DIGEST_BYTES, PREFIX_BYTES, decode_header, header_bytes};

use super::place::Source;
use crate::cli::error::CliError;

/// Reads everything before the content.
///
/// # Errors
/// If `source` is not a snapshot, or a damaged one, or of another version.
pub(super) async fn read_head(source: &mut Source) -> Result<SnapshotHeader, CliError> {
    let prefix = source.exact(PREFIX_BYTES).await?;
    let prefix = prefix.first_chunk().expect("as many bytes as were asked for");
    let length = header_bytes(prefix).map_err(|problem| source.wrong(problem))?;
    let encoded = source.exact(length).await?;
    let digest = source.exact(DIGEST_BYTES).await?;
    decode_header(&encoded, &digest).map_err(|problem| source.wrong(problem))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sconce_server::snapshot_file::head;

    use super::*;

    async fn read(file: &[u8]) -> Result<SnapshotHeader, String> {
        let mut source = Source::of_bytes(Bytes::copy_from_slice(file));
        read_head(&mut source).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_head_is_read_as_it_was_written_and_not_if_it_is_cut() {
        let header = SnapshotHeader { token_count: 5, name: "n".into(), ..Default::default() };
        let whole = head(&header);
        for at in 0..whole.len() {
            assert!(read(&whole[..at]).await.is_err(), "cut at {at}");
        }
        assert_eq!(read(&whole).await, Ok(header));
    }

    #[tokio::test]
    async fn a_length_out_of_bounds_is_refused_before_it_is_read() {
        let mut file = head(&SnapshotHeader::default()).to_vec();
        file[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let problem = read(&file).await.expect_err("is refused");
        assert!(problem.contains("at most 65536 bytes"), "{problem}");
    }
}
