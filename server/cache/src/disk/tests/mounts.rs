//! Disks that are really full and really read-only: small file systems in memory, which only root
//! may mount. Elsewhere `faults` says the same with injected errors.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use super::support::*;
use crate::disk::{Completion, DiskError, DiskTier};

/// A file system of 4 MiB that is unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` where it is not allowed; says so.
    fn new() -> Option<Self> {
        let mount = Self(tempfile::tempdir().unwrap());
        match run(
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]),
            &mount,
        ) {
            Ok(()) => Some(mount),
            Err(reason) => {
                println!("skipped: cannot mount a file system: {reason}");
                // Nothing is mounted, so there is nothing to unmount.
                std::mem::forget(mount);
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]), self).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = run(&mut Command::new("umount"), self);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

fn run(command: &mut Command, mount: &Mount) -> Result<(), String> {
    let output = command.arg(mount.path()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[test]
fn a_full_disk_refuses_a_record_and_takes_one_again_when_there_is_room() {
    let Some(mount) = Mount::new() else { return };
    let mut tier = open(mount.path());
    let header = span(1, 64, 64, 1_000_000);
    let mut ids = Vec::new();
    let (failed, error) = loop {
        let id = write(&mut tier, &header);
        match flush(&mut tier).remove(0) {
            Completion::WriteFailed { id: failed, error } => break (failed, error),
            written => assert_eq!(written, Completion::Written { id }),
        }
        ids.push(id);
    };
    assert_eq!(ids.len(), 4, "4 MiB hold four records of a little more than 1 MB");
    assert!(
        matches!(error, DiskError::Io { kind: ErrorKind::StorageFull, doing: "write", .. }),
        "{error}"
    );
    assert_eq!(tier.status().bytes, 4 * DiskTier::file_bytes(&header));
    let mut expected: Vec<String> = ids.iter().map(|id| format!("{id}.record")).collect();
    expected.push("lock".into());
    assert_eq!(names(mount.path()), expected, "nothing is left of {failed}");
    for id in &ids {
        assert_eq!(read(&mut tier, *id).unwrap(), whole(&payload(&header)));
    }
    tier.remove(ids[0]);
    let id = write(&mut tier, &header);
    assert_eq!(flush(&mut tier), [Completion::Written { id }]);
    drop(tier);
    assert_eq!(everything(&mut open(mount.path())).len(), 4);
}

#[test]
fn a_read_only_disk_is_read_and_written_again_when_it_is_no_longer() {
    let Some(mount) = Mount::new() else { return };
    let header = span(1, 64, 64, 1000);
    {
        let mut tier = open(mount.path());
        write(&mut tier, &header);
        flush(&mut tier);
    }
    mount.remount("ro");
    let mut tier = open(mount.path());
    assert_eq!(everything(&mut tier)[0].2, Ok(whole(&payload(&header))));
    let id = write(&mut tier, &header);
    match flush(&mut tier).remove(0) {
        Completion::WriteFailed { id: failed, error } => {
            assert_eq!(failed, id);
            let read_only = ErrorKind::ReadOnlyFilesystem;
            assert!(matches!(error, DiskError::Io { kind, .. } if kind == read_only), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // It cannot go, so it is still counted and there.
    let first = everything(&mut tier)[0].0;
    tier.remove(first);
    flush(&mut tier);
    assert_eq!(tier.status().bytes, DiskTier::file_bytes(&header));
    mount.remount("rw");
    let id = write(&mut tier, &header);
    assert_eq!(flush(&mut tier), [Completion::Written { id }]);
    let error = DiskTier::open(config(mount.path()), nobody()).unwrap_err();
    assert!(matches!(error, DiskError::Locked { .. }), "{error}");
}
