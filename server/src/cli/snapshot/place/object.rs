//! Objects of object stores (`s3://`, `gs://`, `az://`, `file://`), over the crate `object_store`.
//! Credentials and endpoints come from the environment, in the variables that its builders read.

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, WriteMultipart};
use url::Url;

use crate::cli::error::CliError;

/// Bytes of a part of an upload. Stores take at most 10,000 parts, so that this bounds an object to
/// 160 GB, well above the largest snapshot.
const PART_BYTES: usize = 16 << 20;

/// Parts on their way at once.
const PARTS_MAX: usize = 4;

/// An object on its way; dropped without [`commit`](Self::commit), it does not come to be.
pub(crate) struct Upload {
    place: String,
    parts: WriteMultipart,
}

impl Upload {
    /// Begins an object. Unless `overwrite`, there must be none at `place`; one that comes to be
    /// meanwhile is replaced, for stores offer no more.
    pub(super) async fn create(place: &str, overwrite: bool) -> Result<Self, CliError> {
        let (store, path) = store(place)?;
        if !overwrite {
            match store.head(&path).await {
                Ok(_) => return Err(super::exists(place)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(place, &error)),
            }
        }
        let upload = store.put_multipart(&path).await.map_err(|error| failed(place, &error))?;
        let parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        Ok(Self { place: place.to_owned(), parts })
    }

    /// Adds to the object, when at most so many parts are on their way.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), CliError> {
        let room = self.parts.wait_for_capacity(PARTS_MAX).await;
        room.map_err(|error| failed(&self.place, &error))?;
        self.parts.put(bytes);
        Ok(())
    }

    /// Makes the object appear.
    pub(super) async fn commit(self) -> Result<(), CliError> {
        let Self { place, parts } = self;
        parts.finish().await.map(drop).map_err(|error| failed(&place, &error))
    }
}

/// The content of the object at `place`.
pub(super) async fn download(
    place: &str,
) -> Result<BoxStream<'static, Result<Bytes, CliError>>, CliError> {
    let (store, path) = store(place)?;
    let found = store.get(&path).await.map_err(|error| failed(place, &error))?;
    let place = place.to_owned();
    Ok(found.into_stream().map_err(move |error| failed(&place, &error)).boxed())
}

fn store(place: &str) -> Result<(Box<dyn ObjectStore>, Path), CliError> {
    let url = Url::parse(place)
        .map_err(|error| CliError::Usage(format!("expected a URL, found `{place}`: {error}")))?;
    // Variables that are not UTF-8 are not of the stores.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    // The HTTP client takes the cryptography of the process. Another may have been chosen already.
    drop(rustls::crypto::ring::default_provider().install_default());
    object_store::parse_url_opts(&url, variables).map_err(|error| failed(place, &error))
}

fn failed(place: &str, error: &Error) -> CliError {
    match error {
        Error::NotFound { .. } => CliError::Usage(format!("there is nothing at `{place}`")),
        error => CliError::Unavailable(format!("`{place}`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Sink, Source};
    use super::*;

    #[tokio::test]
    async fn an_object_is_read_as_it_was_written_and_replaced_only_when_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = format!("file://{}/a/b.snapshot", folder.path().display());
        let mut sink = Sink::create(&place, false).await.expect("is created");
        sink.write(Bytes::from(vec![1; PART_BYTES])).await.expect("is written");
        sink.write(Bytes::from(vec![2; 5])).await.expect("is written");
        sink.commit().await.expect("is committed");
        let mut source = Source::open(&place).await.expect("opens");
        let read = source.exact(PART_BYTES + 5).await.expect("is there");
        assert!(read[..PART_BYTES].iter().all(|&byte| byte == 1) && read[PART_BYTES..] == [2; 5]);
        assert!(source.is_at_end().await.expect("reads"));
        assert!(matches!(Sink::create(&place, false).await, Err(CliError::Usage(_))));
        assert!(Sink::create(&place, true).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_by_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = format!("file://{}/none", folder.path().display());
        let refused = Source::open(&place).await.err().expect("is refused");
        assert!(refused.to_string().contains(&place), "{refused}");
        assert!(Source::open("gopher://x/y").await.is_err());
    }
}
