//! How much memory this process may have. Linux and its control groups; elsewhere a careful guess.

use std::fs;

/// Assumed where the machine does not say: few machines that run a model have less.
const FALLBACK_BYTES: u64 = 8 << 30;

/// Bytes of memory: of the machine, or of the control group if that is less.
pub(crate) fn machine_bytes() -> u64 {
    let machine = read("/proc/meminfo").and_then(|text| meminfo_bytes(&text));
    let group = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    match (machine, group) {
        (Some(machine), Some(group)) => u64::min(machine, group),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => FALLBACK_BYTES,
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// `MemTotal` of `/proc/meminfo`, which counts in units of 1024 bytes.
fn meminfo_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_bytes() {
        let text = "MemTotal:       24576 kB\nMemFree:   1 kB\n";
        assert_eq!(meminfo_bytes(text), Some(24576 * 1024));
        assert_eq!(meminfo_bytes("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_machine_has_some_memory() {
        assert!(machine_bytes() > 1 << 20);
    }
}
