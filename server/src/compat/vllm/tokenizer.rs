//! The files of the tokenizer as a ZIP archive in chunks, for a gateway that tokenizes itself.

use std::io::{Cursor, Write as _};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use sconce_engine::LoadedModel;
use sconce_proto::compat::smg::grpc::common::GetTokenizerChunk;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::error::CallError;
use crate::models::{ReadyModel, TextFile};

/// Bytes of a chunk; small enough for whoever reads it.
const CHUNK_BYTES: usize = 256 << 10;

/// Keeps the archive that was asked for last, so that whoever reads one slowly holds no copy of their
/// own, and it is packed once for all. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Archives {
    latest: Arc<Mutex<Option<Archive>>>,
}

/// An archive.
#[derive(Debug, Clone)]
struct Archive {
    /// Of which load of a model.
    of: Weak<LoadedModel>,
    bytes: Bytes,
    /// In hexadecimal digits.
    sha256: String,
}

impl Archives {
    /// The archive of a model's tokenizer, in order; the last chunk has its digest.
    ///
    /// # Errors
    /// A model without a tokenizer, or one that cannot be told in files.
    pub(super) async fn chunks(
        &self,
        model: &ReadyModel,
    ) -> Result<impl Iterator<Item = GetTokenizerChunk> + Send + 'static, CallError> {
        let Archive { bytes, sha256, .. } = self.archive(model).await?;
        let last = bytes.len().div_ceil(CHUNK_BYTES) - 1;
        Ok((0..=last).map(move |i| {
            let end = bytes.len().min((i + 1) * CHUNK_BYTES);
            let data = bytes.slice(i * CHUNK_BYTES..end);
            let sha256 = if i == last { sha256.clone() } else { String::new() };
            GetTokenizerChunk { data, sha256 }
        }))
    }

    async fn archive(&self, model: &ReadyModel) -> Result<Archive, CallError> {
        // Held while one is made: who asks meanwhile waits for it instead of making another.
        let mut latest = self.latest.lock().await;
        if let Some(archive) = latest.as_ref()
            && archive.of.ptr_eq(&model.load())
        {
            return Ok(archive.clone());
        }
        let archive = make(model).await?;
        *latest = Some(archive.clone());
        Ok(archive)
    }
}

async fn make(model: &ReadyModel) -> Result<Archive, CallError> {
    let files = model.text_files().await?;
    let packing = tokio::task::spawn_blocking(move || pack(&files).map(|zip| (digest(&zip), zip)));
    let failed = |problem: String| CallError::Internal { problem };
    let packed = packing.await.map_err(|error| failed(error.to_string()))?;
    let (sha256, archive) =
        packed.map_err(|error| failed(format!("the archive of the tokenizer: {error}")))?;
    Ok(Archive { of: model.load(), bytes: Bytes::from(archive), sha256 })
}

/// The same bytes for the same files, so that their digest tells whether anything changed.
fn pack(files: &[TextFile]) -> zip::result::ZipResult<Vec<u8>> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for file in files {
        archive.start_file(file.name, options)?;
        archive.write_all(&file.bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_make_the_same_archive() {
        let files = [TextFile { name: "tokenizer.json", bytes: vec![b'x'; 100_000] }];
        let archive = pack(&files).expect("packs");
        assert!(archive.len() < 10_000, "it is compressed");
        assert_eq!(digest(&archive), digest(&pack(&files).expect("packs")));
    }

    #[test]
    fn a_digest_is_written_in_lower_case() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(b""), empty);
    }
}
