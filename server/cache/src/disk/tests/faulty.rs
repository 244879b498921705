//! A file system that fails on demand: any operation with any error, short reads and writes, a disk
//! that is full after so many bytes, a gate that holds an operation up, a panic.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::super::files::{Files, Listed, Lock, NewFile, RealFiles};

/// What the disk tier asks of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Op {
    CreateDirectories,
    List,
    Create,
    Write,
    Sync,
    Open,
    Read,
    Rename,
    Remove,
    SyncDirectory,
    Lock,
}

impl Op {
    /// Operations that writing a record takes.
    pub(super) const WRITING: [Self; 5] =
        [Self::Create, Self::Write, Self::Sync, Self::Rename, Self::SyncDirectory];
    /// Operations that a disk refuses that is mounted read-only.
    pub(super) const CHANGING: [Self; 6] = [
        Self::CreateDirectories,
        Self::Create,
        Self::Write,
        Self::Rename,
        Self::Remove,
        Self::Lock,
    ];
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// With an error of the system, by number.
    Error(i32),
    /// Reads and writes at most so many bytes at a time, and every other attempt is interrupted.
    Short(usize),
    /// Writes fail after so many more bytes, as on a full disk.
    FullAfter(usize),
    /// Waits until the fault is taken away.
    Gate,
    /// As a bug would.
    Panic,
}

pub(super) const EIO: i32 = 5;
pub(super) const EACCES: i32 = 13;
pub(super) const ENOSPC: i32 = 28;
pub(super) const EROFS: i32 = 30;

/// A real file system with faults; clones share them.
#[derive(Clone, Default)]
pub(super) struct FaultyFiles {
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    by_op: Mutex<HashMap<Op, Fault>>,
    changed: Condvar,
    read_bytes: AtomicUsize,
    /// A copy of the lock file that stays open, as in a process that was started in the meantime.
    inherited: Mutex<Option<File>>,
    /// Whether the last short operation was interrupted; every other one is.
    interrupted: AtomicBool,
}

impl FaultyFiles {
    pub(super) fn fail(&self, ops: &[Op], fault: Fault) {
        self.lock().extend(ops.iter().map(|op| (*op, fault)));
    }

    pub(super) fn heal_one(&self, op: Op) {
        self.lock().remove(&op);
        self.faults.changed.notify_all();
    }

    pub(super) fn heal(&self) {
        self.lock().clear();
        self.faults.changed.notify_all();
    }

    /// Bytes that were read from all files so far.
    pub(super) fn read_bytes(&self) -> usize {
        self.faults.read_bytes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Op, Fault>> {
        self.faults.by_op.lock().unwrap()
    }

    /// Fails, waits, or tells how many of `bytes` may be read or written.
    fn at(&self, op: Op, bytes: usize) -> io::Result<usize> {
        let mut faults = self.lock();
        while faults.get(&op) == Some(&Fault::Gate) {
            faults = self.faults.changed.wait(faults).unwrap();
        }
        match faults.get_mut(&op) {
            None | Some(Fault::Gate) => Ok(bytes),
            Some(Fault::Error(number)) => Err(io::Error::from_raw_os_error(*number)),
            Some(Fault::Short(most)) => {
                if !self.faults.interrupted.fetch_not(Ordering::Relaxed) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Ok(bytes.min(*most))
            }
            Some(Fault::FullAfter(left)) if *left == 0 => Err(io::Error::from_raw_os_error(ENOSPC)),
            Some(Fault::FullAfter(left)) => {
                let now = bytes.min(*left);
                *left -= now;
                Ok(now)
            }
            Some(Fault::Panic) => {
                drop(faults);
                panic!("a bug in {op:?}");
            }
        }
    }
}

impl Files for FaultyFiles {
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        // On a read-only disk, directories that exist are fine.
        if !path.is_dir() {
            self.at(Op::CreateDirectories, 0)?;
        }
        RealFiles.create_directories(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        self.at(Op::List, 0)?;
        RealFiles.list(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        self.at(Op::Create, 0)?;
        Ok(Box::new(FaultyFile { files: self.clone(), file: RealFiles.create(path)? }))
    }

    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read>, u64)> {
        self.at(Op::Open, 0)?;
        let (file, length) = RealFiles.open(path)?;
        Ok((Box::new(FaultyFile { files: self.clone(), file }), length))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at(Op::Rename, 0)?;
        RealFiles.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.at(Op::Remove, 0)?;
        RealFiles.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.at(Op::SyncDirectory, 0)?;
        RealFiles.sync_directory(path)
    }

    fn lock(&self, path: &Path, held: Option<File>) -> io::Result<Lock> {
        self.at(Op::Lock, 0)?;
        let lock = RealFiles.lock(path, held)?;
        if let Lock::Held(file) = &lock {
            *self.faults.inherited.lock().unwrap() = Some(file.try_clone()?);
        }
        Ok(lock)
    }
}

struct FaultyFile<F: ?Sized> {
    files: FaultyFiles,
    file: Box<F>,
}

impl Write for FaultyFile<dyn NewFile> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = self.files.at(Op::Write, bytes.len())?;
        self.file.write(&bytes[..now])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewFile for FaultyFile<dyn NewFile> {
    fn sync(&mut self) -> io::Result<()> {
        self.files.at(Op::Sync, 0)?;
        self.file.sync()
    }
}

impl Read for FaultyFile<dyn Read> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let now = self.files.at(Op::Read, into.len())?;
        let read = self.file.read(&mut into[..now])?;
        self.files.faults.read_bytes.fetch_add(read, Ordering::Relaxed);
        Ok(read)
    }
}
