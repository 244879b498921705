//! How much main memory the process may still take, as far as the system tells.

use std::fs;
use std::path::Path;

/// Bytes that can be taken without swapping and without passing the limit of a control group; `None`
/// where the system does not tell.
pub fn available() -> Option<u64> {
    available_at(Path::new("/"))
}

/// [`available`] of the machine whose file system is at `root`.
fn available_at(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let system = read("proc/meminfo").and_then(|text| meminfo(&text));
    let groups = read("proc/self/cgroup").unwrap_or_default();
    // Inside of a container the path may be the host's; then only the top is there. Version 1 of
    // control groups is not asked.
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let folders = Path::new(group).ancestors().map(|group| root.join("sys/fs/cgroup").join(group));
    system.into_iter().chain(folders.filter_map(|folder| cgroup(&folder))).min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The limit of a group (version 2) less what it holds, apart from files that the system would let
/// go of; `None` without a limit.
fn cgroup(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    // `max` is no limit.
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let held: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let reclaimable: u64 = reclaimable.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(held.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  99 kB\nMemFree:  1 kB\nMemAvailable:   12 kB\n");
    const GROUP: (&str, &str) = ("proc/self/cgroup", "0::/outer/inner\n");

    /// What a machine with these files has left.
    fn with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("is made");
            fs::write(path, text).expect("is written");
        }
        available_at(root.path())
    }

    #[test]
    fn without_limits_it_is_what_the_system_says() {
        assert_eq!(with(&[MEMINFO]), Some(12 * 1024));
        assert_eq!(with(&[("proc/meminfo", "MemTotal: 1 kB\n")]), None);
        assert_eq!(with(&[("proc/meminfo", "MemAvailable: many kB\n")]), None);
        assert_eq!(with(&[]), None);
        let unlimited = ("sys/fs/cgroup/outer/inner/memory.max", "max\n");
        assert_eq!(with(&[MEMINFO, GROUP, unlimited]), Some(12 * 1024));
    }

    #[test]
    fn the_least_that_a_group_leaves_counts() {
        let inner = [
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "600\n"),
        ];
        let outer = [
            ("sys/fs/cgroup/outer/memory.max", "1000\n"),
            ("sys/fs/cgroup/outer/memory.current", "600\n"),
        ];
        let files = [&[MEMINFO, GROUP], &inner[..], &outer].concat();
        assert_eq!(with(&files), Some(400));
        let stat = ("sys/fs/cgroup/outer/memory.stat", "anon 300\ninactive_file 250\n");
        assert_eq!(with(&[&files[..], &[stat]].concat()), Some(650));
        let full = ("sys/fs/cgroup/outer/memory.current", "2000\n");
        assert_eq!(with(&[&files[..], &[full]].concat()), Some(0));
    }
}
