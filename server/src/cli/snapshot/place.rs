//! Where snapshot files lie: paths of this machine, and URLs of object stores in builds that can
//! reach those. What is written appears whole or not at all.

#[cfg(feature = "object-store")]
mod object;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt as _;

use crate::cli::error::CliError;

/// Bytes read from a file at once.
const READ_BYTES: usize = 512 << 10;

/// Whether `place` is a URL and not a path.
fn is_url(place: &str) -> bool {
    place.contains("://")
}

/// A file to be; dropped without [`commit`](Self::commit), there is none.
pub(super) enum Sink {
    /// Beside its path under another name, until it is whole.
    File { file: NamedTempFile, path: PathBuf, overwrite: bool },
    /// Uploaded in parts.
    #[cfg(feature = "object-store")]
    Object(object::Upload),
}

impl Sink {
    /// A file at `place`. Unless `overwrite`, there must be none.
    pub(super) async fn create(place: &str, overwrite: bool) -> Result<Self, CliError> {
        if is_url(place) {
            return Self::create_object(place, overwrite).await;
        }
        let path = PathBuf::from(place);
        if !overwrite && path.exists() {
            return Err(exists(place));
        }
        // In the same folder, for a file cannot be renamed from one file system to another.
        let file = NamedTempFile::new_in(folder(&path))
            .map_err(|source| CliError::io(format!("cannot create `{place}`"), source))?;
        Ok(Self::File { file, path, overwrite })
    }

    #[cfg(feature = "object-store")]
    async fn create_object(place: &str, overwrite: bool) -> Result<Self, CliError> {
        object::Upload::create(place, overwrite).await.map(Self::Object)
    }

    #[cfg(not(feature = "object-store"))]
    async fn create_object(place: &str, _overwrite: bool) -> Result<Self, CliError> {
        Err(no_object_stores(place))
    }

    /// Adds to the file.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), CliError> {
        match self {
            // Nothing else runs on this thread that a write could hold up.
            Self::File { file, path, .. } => file.write_all(&bytes).map_err(|source| {
                CliError::io(format!("cannot write `{}`", path.display()), source)
            }),
            #[cfg(feature = "object-store")]
            Self::Object(upload) => upload.write(bytes).await,
        }
    }

    /// Makes the file appear.
    pub(super) async fn commit(self) -> Result<(), CliError> {
        match self {
            Self::File { file, path, overwrite } => commit_file(file, &path, overwrite),
            #[cfg(feature = "object-store")]
            Self::Object(upload) => upload.commit().await,
        }
    }
}

fn commit_file(file: NamedTempFile, path: &Path, overwrite: bool) -> Result<(), CliError> {
    let place = path.display().to_string();
    let failed = |source| CliError::io(format!("cannot write `{place}`"), source);
    file.as_file().sync_all().map_err(failed)?;
    let persisted = if overwrite { file.persist(path) } else { file.persist_noclobber(path) };
    persisted.map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(&place),
        _ => failed(error.error),
    })?;
    // The rename itself lasts once the folder is written.
    std::fs::File::open(folder(path)).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn exists(place: &str) -> CliError {
    CliError::Usage(format!("`{place}` is there already; --overwrite replaces it"))
}

#[cfg(not(feature = "object-store"))]
fn no_object_stores(place: &str) -> CliError {
    CliError::Usage(format!(
        "`{place}` is in an object store, which this build cannot reach; build it with \
         `cargo build --release -p sconce-server --features object-store`, or give a path"
    ))
}

/// A file being read from its beginning to its end.
pub(super) struct Source {
    place: String,
    chunks: BoxStream<'static, Result<Bytes, CliError>>,
    /// What was read and not taken yet.
    open: Bytes,
}

impl Source {
    /// The file at `place`.
    pub(super) async fn open(place: &str) -> Result<Self, CliError> {
        let chunks =
            if is_url(place) { Self::open_object(place).await? } else { read_file(place).await? };
        Ok(Self { place: place.to_owned(), chunks, open: Bytes::new() })
    }

    #[cfg(feature = "object-store")]
    async fn open_object(
        place: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, CliError>>, CliError> {
        object::download(place).await
    }

    #[cfg(not(feature = "object-store"))]
    async fn open_object(
        place: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, CliError>>, CliError> {
        Err(no_object_stores(place))
    }

    /// The next bytes, at least one and at most `most`.
    pub(super) async fn take(&mut self, most: usize) -> Result<Bytes, CliError> {
        if !self.fill().await? {
            return Err(self.wrong("expected more, found the end of the file"));
        }
        Ok(self.open.split_to(self.open.len().min(most)))
    }

    /// The next `length` bytes, which the caller has found to be few.
    pub(super) async fn exact(&mut self, length: usize) -> Result<Bytes, CliError> {
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            let next = self.take(length - bytes.len()).await?;
            bytes.extend_from_slice(&next);
        }
        Ok(bytes.freeze())
    }

    /// Whether everything was read.
    pub(super) async fn is_at_end(&mut self) -> Result<bool, CliError> {
        Ok(!self.fill().await?)
    }

    /// An error about what the file holds.
    pub(super) fn wrong(&self, problem: impl std::fmt::Display) -> CliError {
        CliError::Usage(format!("`{}`: {problem}", self.place))
    }

    /// Whether there is something to take.
    async fn fill(&mut self) -> Result<bool, CliError> {
        while self.open.is_empty() {
            match self.chunks.next().await.transpose()? {
                Some(chunk) => self.open = chunk,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// A file that holds `bytes`.
    #[cfg(test)]
    pub(super) fn of_bytes(bytes: Bytes) -> Self {
        let chunks = stream::iter([Ok(bytes)]).boxed();
        Self { place: "test".to_owned(), chunks, open: Bytes::new() }
    }
}

async fn read_file(place: &str) -> Result<BoxStream<'static, Result<Bytes, CliError>>, CliError> {
    let context = format!("cannot read `{place}`");
    let opened = tokio::fs::File::open(place).await;
    let file = opened.map_err(|source| CliError::io(context.as_str(), source))?;
    let chunks = stream::try_unfold((file, context), |(mut file, context)| async {
        let mut chunk = BytesMut::with_capacity(READ_BYTES);
        match file.read_buf(&mut chunk).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some((chunk.freeze(), (file, context)))),
            Err(source) => Err(CliError::io(context, source)),
        }
    });
    Ok(chunks.boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn a_file_appears_when_it_is_whole_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.snapshot");
        let place = path.to_str().expect("UTF-8");
        let mut given_up = Sink::create(place, false).await.expect("is created");
        given_up.write(Bytes::from_static(b"half")).await.expect("is written");
        assert!(!path.exists());
        drop(given_up);
        assert!(names(folder.path()).is_empty());

        let mut sink = Sink::create(place, false).await.expect("is created");
        sink.write(Bytes::from_static(b"who")).await.expect("is written");
        sink.write(Bytes::from_static(b"le")).await.expect("is written");
        sink.commit().await.expect("is committed");
        assert_eq!(names(folder.path()), ["a.snapshot"]);
        let mut source = Source::open(place).await.expect("opens");
        assert_eq!(source.exact(5).await.expect("is there"), "whole");
        assert!(source.is_at_end().await.expect("reads"));
        assert!(source.take(1).await.is_err());
    }

    #[tokio::test]
    async fn a_file_is_replaced_only_when_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let place = path.to_str().expect("UTF-8");
        let late = Sink::create(place, false).await.expect("nothing is there yet");
        std::fs::write(&path, "old").expect("is written");
        let refused = Sink::create(place, false).await.err().expect("is refused");
        assert!(matches!(&refused, CliError::Usage(text) if text.contains("--overwrite")));
        assert!(matches!(late.commit().await, Err(CliError::Usage(_))));
        let mut sink = Sink::create(place, true).await.expect("is created");
        sink.write(Bytes::from_static(b"new")).await.expect("is written");
        sink.commit().await.expect("is committed");
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), "new");
    }

    #[cfg(not(feature = "object-store"))]
    #[tokio::test]
    async fn a_build_without_object_stores_says_how_to_get_them() {
        let refused = Source::open("s3://bucket/key").await.err().expect("is refused");
        assert!(refused.to_string().contains("--features object-store"), "{refused}");
    }
}
