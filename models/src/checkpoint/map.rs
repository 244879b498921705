//! A checkpoint file mapped into memory: pages are read when touched and shared between processes.
//!
//! The one place of this crate that is `unsafe`. Nothing here interprets the bytes.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::Error;

/// A read-only mapping of a whole file.
///
/// The map shows the file as it is, not as it was: who rewrites a checkpoint in place while it is
/// mapped changes the weights under the reader, and who truncates it makes the next read of the
/// lost pages kill the process (SIGBUS). Replacing a checkpoint by writing beside it and renaming
/// is safe, and so is deleting it, since the mapping keeps the old file. Readers therefore decode
/// bounds once, from the mapped length, and models copy what they need at load instead of keeping
/// the map for the life of the process.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or mapped; [`Error::Format`] if it is empty or is not
    /// a regular file.
    pub fn open(path: &Path) -> Result<MappedFile, Error> {
        // Before it is opened, for opening a pipe waits until somebody writes to it.
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_file() {
            return Err(Error::format(path.display(), "file", "a regular file", "something else"));
        }
        if metadata.len() == 0 {
            return Err(Error::format(path.display(), "file", "at least one byte", "0 bytes"));
        }
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only and only ever seen as `&[u8]`, for which any bytes are
        // valid. That nobody truncates or rewrites the file meanwhile cannot be enforced; the
        // documentation of this type says what happens then.
        #[allow(unsafe_code, reason = "mapping a file is the purpose of this module")]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(MappedFile { path: path.to_path_buf(), map })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_shows_the_bytes_and_survives_the_removal_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, b"sconce").unwrap();
        let file = MappedFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.bytes(), b"sconce");
    }

    #[test]
    fn an_empty_file_and_a_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap_err().to_string().contains("at least one byte"));
        assert!(MappedFile::open(directory.path()).is_err());
    }
}
