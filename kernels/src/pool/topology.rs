//! How many cores there are: hyper-threads of one core share its vector units, so they do not help.

use std::collections::BTreeSet;
use std::path::Path;

/// Physical cores this process may use, at least one.
pub(super) fn physical_cores() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    match sibling_sets(Path::new("/sys/devices/system/cpu"), usable.saturating_mul(8)) {
        0 => usable,
        cores => usable.min(cores),
    }
}

/// Number of distinct sets of hyper-threads among the first `limit` logical processors of a Linux
/// `cpu` directory; 0 where it says nothing.
fn sibling_sets(root: &Path, limit: usize) -> usize {
    let sets: BTreeSet<String> = (0..limit)
        .map_while(|cpu| {
            let path = root.join(format!("cpu{cpu}/topology/thread_siblings_list"));
            std::fs::read_to_string(path).ok()
        })
        .collect();
    sets.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_at_least_one_core() {
        assert!(physical_cores() >= 1);
    }

    #[test]
    fn a_machine_that_does_not_say_has_no_sibling_sets() {
        assert_eq!(sibling_sets(Path::new("/nonexistent"), 64), 0);
    }
}
