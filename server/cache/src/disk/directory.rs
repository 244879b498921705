//! The cache directory: which file is what, how one is written so that it is whole or not there,
//! and who may use it. No threads and no accounts.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::codec::{ReadError, Source};
use super::error::{DiskError, RecordFault};
use super::files::{Files, Lock};
use super::manifest;
use super::record::{HEAD_BYTES_MAX, Head, RecordHeader, round_to_blocks};

/// Directory of the records, in the cache directory.
pub const RECORDS: &str = "records";
/// Name of the manifest of snapshots, in the cache directory.
pub const MANIFEST: &str = "snapshots.json";
/// Name of the lock file, in the cache directory.
pub const LOCK: &str = "lock";
/// Extension of a record's file; its name is the number of the record, in 16 hexadecimal digits.
pub const RECORD_EXTENSION: &str = "record";
/// Extension of a file that is being written.
pub const TEMPORARY_EXTENSION: &str = "tmp";

/// The number of a record in its directory. Numbers grow, and are found again after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub(super) u64);

impl RecordId {
    /// A greater number is none of ours, so that those to come do not run out.
    const MAX: u64 = u64::MAX / 2;
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A file whose name is that of a record.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) id: RecordId,
    /// What the file takes, in whole blocks.
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

/// One cache directory, and our lock on it.
pub(super) struct Directory {
    files: Arc<dyn Files>,
    root: PathBuf,
    lock: Mutex<Option<File>>,
}

impl Directory {
    pub(super) fn new(files: Arc<dyn Files>, root: PathBuf) -> Self {
        Self { files, root, lock: Mutex::new(None) }
    }

    /// Creates what is missing and takes the lock, unless it is ours.
    ///
    /// # Errors
    /// [`DiskError::Locked`] if another process has it, [`DiskError::Io`] otherwise.
    pub(super) fn prepare(&self) -> Result<(), DiskError> {
        let records = self.records();
        self.files
            .create_directories(&records)
            .map_err(|error| DiskError::io("create directory", &records, &error))?;
        self.files
            .sync_directory(&self.root)
            .map_err(|error| DiskError::io("sync directory", &self.root, &error))?;
        let path = self.root.join(LOCK);
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.lock(&path, held.take()) {
            Ok(Lock::Held(file)) => {
                *held = Some(file);
                Ok(())
            }
            Ok(Lock::Taken { holder }) => {
                Err(DiskError::Locked { path: self.root.clone(), holder })
            }
            Err(error) => Err(DiskError::io("lock", &path, &error)),
        }
    }

    /// The files that are named like records, and how many temporary files were removed.
    ///
    /// # Errors
    /// [`DiskError::Io`] if the directory cannot be read.
    pub(super) fn list(&self) -> Result<(Vec<Found>, usize), DiskError> {
        let mut found = Vec::new();
        let mut removed = 0;
        let records = self.records();
        for directory in [&records, &self.root] {
            let files = self
                .files
                .list(directory)
                .map_err(|error| DiskError::io("list directory", directory, &error))?;
            for file in files {
                if is_temporary(&file.name) {
                    removed += usize::from(self.remove_file(&directory.join(&file.name)).is_ok());
                } else if let Some(id) = record_id(&file.name).filter(|_| directory == &records) {
                    let bytes = round_to_blocks(file.bytes);
                    found.push(Found { id, bytes, modified: file.modified });
                }
            }
        }
        Ok((found, removed))
    }

    /// Reads the head of a record only.
    ///
    /// # Errors
    /// [`DiskError::Record`] says why it is refused, [`DiskError::Io`] that it could not be read.
    pub(super) fn read_head(&self, id: RecordId) -> Result<Head, DiskError> {
        self.read_with(id, |mut source| source.head())
    }

    /// Reads head and tokens of a record.
    ///
    /// # Errors
    /// As [`Directory::read_head`].
    pub(super) fn read_header(&self, id: RecordId, head: u128) -> Result<RecordHeader, DiskError> {
        self.read_with(id, |mut source| {
            let head = same_head(&mut source, head)?;
            source.tokens(&head)
        })
    }

    /// Reads and verifies a whole record, whose head has the checksum `head`.
    ///
    /// # Errors
    /// As [`Directory::read_head`].
    pub(super) fn read_payload(&self, id: RecordId, head: u128) -> Result<Bytes, DiskError> {
        self.read_with(id, |mut source| {
            let head = same_head(&mut source, head)?;
            source.tokens(&head)?;
            source.payload(&head)
        })
    }

    /// Writes a record: whole and lasting, or not at all.
    ///
    /// # Errors
    /// [`DiskError::Io`]; what is left of it then is for [`Directory::remove_record`].
    pub(super) fn write_record(&self, id: RecordId, pieces: &[&[u8]]) -> Result<(), DiskError> {
        self.write_whole(&self.path(id), pieces)
    }

    /// Removes a record, or what a failed write has left of it under either name. What is not there
    /// is removed already.
    ///
    /// # Errors
    /// [`DiskError::Io`] if something may still be there.
    pub(super) fn remove_record(&self, id: RecordId) -> Result<(), DiskError> {
        let path = self.path(id);
        let temporary = self.remove_file(&path.with_extension(TEMPORARY_EXTENSION));
        self.remove_file(&path).and(temporary)
    }

    /// The content of the manifest, or `None` if there is no such file.
    ///
    /// # Errors
    /// [`DiskError::Manifest`] if it is too long, [`DiskError::Io`] if it could not be read.
    pub(super) fn read_manifest(&self) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.manifest_path();
        let (file, length) = match self.files.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| DiskError::io("open", &path, &error))?,
        };
        manifest::check_length(length)
            .map_err(|reason| DiskError::Manifest { path: path.clone(), reason })?;
        let mut bytes = Vec::new();
        file.take(manifest::MANIFEST_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| DiskError::io("read", &path, &error))?;
        Ok(Some(bytes))
    }

    /// Replaces the manifest.
    ///
    /// # Errors
    /// [`DiskError::Io`]; the old one or the new one is there then.
    pub(super) fn write_manifest(&self, bytes: &[u8]) -> Result<(), DiskError> {
        self.write_whole(&self.manifest_path(), &[bytes])
    }

    /// The file of a record.
    pub(super) fn path(&self, id: RecordId) -> PathBuf {
        self.records().join(format!("{id}.{RECORD_EXTENSION}"))
    }

    /// The file of the manifest.
    pub(super) fn manifest_path(&self) -> PathBuf {
        self.root.join(MANIFEST)
    }

    fn records(&self) -> PathBuf {
        self.root.join(RECORDS)
    }

    fn write_whole(&self, path: &Path, pieces: &[&[u8]]) -> Result<(), DiskError> {
        let directory = path.parent().expect("files lie in the cache directory");
        let temporary = path.with_extension(TEMPORARY_EXTENSION);
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| DiskError::io(doing, &path, &error)
        };
        let write = || -> Result<(), DiskError> {
            let mut file = self.files.create(&temporary).map_err(io("create", &temporary))?;
            for piece in pieces {
                file.write_all(piece).map_err(io("write", &temporary))?;
            }
            file.sync().map_err(io("sync", &temporary))
        };
        write()
            .and_then(|()| self.files.rename(&temporary, path).map_err(io("rename", &temporary)))
            .inspect_err(|_| {
                let _ = self.files.remove(&temporary);
            })?;
        self.files.sync_directory(directory).map_err(io("sync directory", directory))
    }

    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        let Err(error) = self.files.remove(path) else { return Ok(()) };
        // A read-only disk refuses to remove even what is not there.
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if absent(&error) || self.files.open(path).is_err_and(|error| absent(&error)) {
            return Ok(());
        }
        Err(DiskError::io("remove", path, &error))
    }

    fn read_with<T>(
        &self,
        id: RecordId,
        read: impl FnOnce(Source<'_>) -> Result<T, ReadError>,
    ) -> Result<T, DiskError> {
        let path = self.path(id);
        let (file, length) = match self.files.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DiskError::record(&path, RecordFault::Missing));
            }
            opened => opened.map_err(|error| DiskError::io("open", &path, &error))?,
        };
        let mut file = BufReader::with_capacity(HEAD_BYTES_MAX, file);
        read(Source::new(&mut file, length)).map_err(|error| match error {
            ReadError::Fault(fault) => DiskError::record(&path, fault),
            ReadError::Io(error) => DiskError::io("read", &path, &error),
        })
    }
}

impl Drop for Directory {
    /// Closing the file is not enough: a process that another thread is just starting has a copy of
    /// every open file until it runs its own program.
    fn drop(&mut self) {
        let held = self.lock.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = held {
            let _ = file.unlock();
        }
    }
}

/// Reads a head, which must be the one that is expected under this name.
fn same_head(source: &mut Source<'_>, expected: u128) -> Result<Head, ReadError> {
    let head = source.head()?;
    if head.checksum != expected {
        return Err(RecordFault::Replaced { expected, found: head.checksum }.into());
    }
    Ok(head)
}

fn record_id(name: &str) -> Option<RecordId> {
    let digits = name.strip_suffix(RECORD_EXTENSION)?.strip_suffix('.')?;
    let id = RecordId(u64::from_str_radix(digits, 16).ok()?);
    (id.to_string() == digits && id.0 <= RecordId::MAX).then_some(id)
}

/// Only names that we give: a number or the manifest's, and the extension of temporary files.
fn is_temporary(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(TEMPORARY_EXTENSION).and_then(|name| name.strip_suffix('.'))
    else {
        return false;
    };
    let manifest = Path::new(MANIFEST).with_extension("");
    record_id(&format!("{stem}.{RECORD_EXTENSION}")).is_some() || Path::new(stem) == manifest
}
