//! What the machine has: memory within the limits of its control groups, and free space on disk.
//! What of it the server takes is decided elsewhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sconce_models::DeviceChoice;

/// How deep the files of a directory are looked for.
const DEPTH_MAX: usize = 4;

/// The machine a server runs on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Bytes of main memory that this process may use; `None` where the system does not tell.
    pub memory: Option<u64>,
    /// Bytes of memory that a device has to itself; `None` where it computes in main memory.
    pub device_memory: fn(DeviceChoice) -> Option<u64>,
    /// Bytes that the files of a directory may take: what is free on its file system, with what
    /// they take already, so that a server that starts again is not given less.
    pub disk: fn(&Path) -> io::Result<u64>,
}

impl Machine {
    /// This machine, now.
    pub fn read() -> Self {
        let (memory, device_memory) = (memory(Path::new("/")), DeviceChoice::own_memory);
        Self { memory, device_memory, disk: room_for }
    }
}

/// The memory of the machine whose file system is at `root`: the least of what is built in and of
/// what the control groups of this process and the groups around them allow (Linux, both versions).
fn memory(root: &Path) -> Option<u64> {
    let built_in = fs::read_to_string(root.join("proc/meminfo")).ok();
    let built_in = built_in.as_deref().and_then(total_of);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| group_limits(root, line));
    built_in.into_iter().chain(limits).min()
}

/// The line `MemTotal: N kB` of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The limits that a line `ID:CONTROLLERS:PATH` of `/proc/self/cgroup` leads to. Inside of a
/// container the path may be the host's; then only the top of what is mounted is there.
fn group_limits(root: &Path, line: &str) -> Vec<u64> {
    let mut fields = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
    else {
        return Vec::new();
    };
    let (mounted, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|controller| controller == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let group = Path::new(path.trim_start_matches('/'));
    // The last of the ancestors of a relative path is the empty one: the top.
    let groups = group.ancestors().map(|group| root.join(mounted).join(group).join(file));
    groups.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).collect()
}

fn room_for(directory: &Path) -> io::Result<u64> {
    let directory = std::path::absolute(directory)?;
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let space = rustix::fs::statvfs(existing)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    Ok(free.saturating_add(bytes_in(&directory)))
}

/// The bytes of all files in `directory`; what cannot be read counts as nothing.
fn bytes_in(directory: &Path) -> u64 {
    let mut bytes: u64 = 0;
    let mut rest: Vec<(PathBuf, usize)> = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = rest.pop() {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            // Does not follow links.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                bytes = bytes.saturating_add(metadata.len());
            } else if metadata.is_dir() && depth < DEPTH_MAX {
                rest.push((entry.path(), depth + 1));
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16000000 kB\nMemFree:         1 kB\n";
    const ALL: u64 = 16_000_000 * 1024;

    /// What a machine with these files says.
    fn memory_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory(root.path())
    }

    #[test]
    fn without_control_groups_all_memory_is_there() {
        assert_eq!(memory_with(&[("proc/meminfo", MEMINFO)]), Some(ALL));
        assert_eq!(memory_with(&[]), None);
        assert_eq!(memory_with(&[("proc/meminfo", "MemTotal: lots\n")]), None);
    }

    #[test]
    fn the_least_limit_of_the_groups_of_version_2_counts() {
        let group = ("proc/self/cgroup", "0::/pods/one\n");
        let max = |path: &'static str, text: &'static str| (path, text);
        let inner = max("sys/fs/cgroup/pods/one/memory.max", "max\n");
        let outer = max("sys/fs/cgroup/pods/memory.max", "4000\n");
        let other = max("sys/fs/cgroup/other/memory.max", "1\n");
        let meminfo = ("proc/meminfo", MEMINFO);
        assert_eq!(memory_with(&[meminfo, group, inner, other]), Some(ALL));
        assert_eq!(memory_with(&[meminfo, group, inner, outer, other]), Some(4000));
        let inner = max("sys/fs/cgroup/pods/one/memory.max", "3000\n");
        assert_eq!(memory_with(&[meminfo, group, inner, outer]), Some(3000));
        assert_eq!(memory_with(&[group, inner]), Some(3000));
    }

    #[test]
    fn the_limit_of_a_container_stands_at_the_top_of_what_it_sees() {
        let meminfo = ("proc/meminfo", MEMINFO);
        let top = ("sys/fs/cgroup/memory.max", "5000\n");
        assert_eq!(memory_with(&[meminfo, ("proc/self/cgroup", "0::/\n"), top]), Some(5000));
        let groups = ("proc/self/cgroup", "5:cpu,memory:/docker/abc\n4:cpuset:/docker/abc\n0::/\n");
        let top = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "6000\n");
        assert_eq!(memory_with(&[meminfo, groups, top]), Some(6000));
    }

    #[test]
    fn no_limit_of_version_1_is_a_number_that_is_no_limit() {
        let groups = ("proc/self/cgroup", "4:memory:/a\n");
        let limit = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_with(&[("proc/meminfo", MEMINFO), groups, limit]), Some(ALL));
    }

    #[test]
    fn a_directory_may_take_what_is_free_and_what_it_takes() {
        let directory = tempfile::tempdir().unwrap();
        let records = directory.path().join("records/deep");
        assert!(room_for(&records).unwrap() > 0, "of a directory that is not there yet");
        fs::create_dir_all(&records).unwrap();
        fs::write(records.join("a"), [0; 100]).unwrap();
        fs::write(directory.path().join("b"), [0; 23]).unwrap();
        std::os::unix::fs::symlink("/usr", directory.path().join("link")).unwrap();
        assert_eq!(bytes_in(directory.path()), 123);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_memory() {
        assert!(Machine::read().memory.is_some_and(|bytes| bytes > 64 << 20));
    }
}
