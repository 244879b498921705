//! The few file operations that the disk tier uses, behind a trait so that tests can make any of
//! them fail. No policy: what to do about a failure is the business of `directory` and `worker`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::SystemTime;

/// Most bytes of a lock file that are read to tell who has it.
const HOLDER_BYTES_MAX: u64 = 128;

/// A file system, or a test's idea of one.
pub(super) trait Files: Send + Sync {
    /// Creates a directory and those above it, readable by the owner only; one that exists is fine.
    fn create_directories(&self, path: &Path) -> io::Result<()>;
    /// The files in a directory, in no particular order; directories are left out.
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>>;
    /// Creates an empty file for writing, in place of what is there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>>;
    /// Opens a file for reading and tells its length.
    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read>, u64)>;
    /// Renames within a directory, in place of what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory survive a loss of power.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Locks a file, creating it if needed; `held` is the lock that the caller has already.
    fn lock(&self, path: &Path, held: Option<File>) -> io::Result<Lock>;
}

/// A file that is being written.
pub(super) trait NewFile: Write {
    /// Makes the content survive a loss of power.
    fn sync(&mut self) -> io::Result<()>;
}

/// One file of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

/// What became of an attempt to lock.
#[derive(Debug)]
pub(super) enum Lock {
    /// It is ours until the file is closed.
    Held(File),
    /// Somebody else has it.
    Taken { holder: String },
}

/// The file system of the machine.
#[derive(Debug)]
pub(super) struct RealFiles;

impl Files for RealFiles {
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            // A name that is not UTF-8 is none that we gave; a file that has just gone is gone.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push(Listed { name, bytes: metadata.len(), modified });
            }
        }
        Ok(files)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        Ok(Box::new(private_file().write(true).create(true).truncate(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read>, u64)> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((Box::new(file), length))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path, held: Option<File>) -> io::Result<Lock> {
        if let Some(file) = held.filter(|file| is_at(file, path)) {
            return Ok(Lock::Held(file));
        }
        let mut file = open_lock_file(path)?;
        match file.try_lock() {
            Ok(()) => {
                // Only for people and messages; on a read-only disk it is not worth an error.
                let holder = format!("process {}", std::process::id());
                let _ = file.set_len(0).and_then(|()| file.rewind());
                let _ = file.write_all(holder.as_bytes());
                Ok(Lock::Held(file))
            }
            Err(TryLockError::WouldBlock) => Ok(Lock::Taken { holder: said_by(file) }),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl NewFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Who uses a cache directory, as its lock file says; `None` if nobody does. Makes nothing; while it
/// looks, which takes a moment, nobody else can take the lock.
///
/// # Errors
/// A lock file that is there and cannot be read.
pub fn holder(directory: &Path) -> io::Result<Option<String>> {
    let file = match File::open(directory.join(super::LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(said_by(file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What whoever locked a file says of himself in it.
fn said_by(file: File) -> String {
    let mut holder = String::new();
    // It is for people; without it they know at least that there is somebody.
    let _ = file.take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
    if holder.is_empty() { "another process".to_owned() } else { holder }
}

/// Options for files that only the owner may read: they tell what was asked of a model.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// On a read-only disk a lock file that exists can still be locked.
fn open_lock_file(path: &Path) -> io::Result<File> {
    let options = private_file().read(true).write(true).create(true).truncate(false).open(path);
    options.or_else(|error| File::open(path).map_err(|_| error))
}

/// Whether an open file is still the one at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Elsewhere an open file cannot be replaced.
#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}
