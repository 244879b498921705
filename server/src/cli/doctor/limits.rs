//! Limits of the system on a process: files, locked memory, the size of pages.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use sconce_server::serve::ServePlan;

use super::Check;
use crate::cli::output;

/// Files that a server opens besides its connections: weights, records of the cache, sockets.
const FILES_BESIDES: u64 = 256;
/// What Linux says of pages of 2 MiB.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Every limit that a server may run into.
pub(super) fn checks(plan: &ServePlan) -> Vec<Check> {
    let files = getrlimit(Resource::Nofile);
    let mut checks = vec![open_files(files.current, plan.limits.connections_max as u64)];
    let locked = getrlimit(Resource::Memlock).current;
    checks.push(Check::ok(
        "locked memory",
        match locked {
            None => "no limit".to_owned(),
            Some(bytes) => format!(
                "at most {}; a server locks none by itself, a GPU's driver what cache.host takes",
                output::bytes(bytes)
            ),
        },
    ));
    checks.extend(std::fs::read_to_string(Path::new(HUGE_PAGES)).ok().map(|it| huge_pages(&it)));
    checks
}

fn open_files(limit: Option<u64>, connections_max: u64) -> Check {
    let wanted = connections_max.saturating_add(FILES_BESIDES);
    match limit {
        None => Check::ok("open files", "no limit"),
        Some(limit) => {
            let found = format!("at most {limit}, {connections_max} connections may take {wanted}");
            if limit >= wanted {
                return Check::ok("open files", found);
            }
            let advice = format!(
                "`ulimit -n {wanted}` or LimitNOFILE={wanted} in the unit, or a lower \
                 server.connections_max"
            );
            Check::warn("open files", found, advice)
        }
    }
}

/// `text` lists the choices, the one in force in brackets.
fn huge_pages(text: &str) -> Check {
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("never") => Check::warn(
            "huge pages",
            "never",
            format!("long contexts are read faster with them: echo madvise > {HUGE_PAGES}"),
        ),
        Some(chosen) => Check::ok("huge pages", chosen),
        None => Check::ok("huge pages", "the system does not tell"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn files_must_do_for_every_connection() {
        assert_eq!(open_files(None, 1 << 20).level, Level::Ok);
        assert_eq!(open_files(Some(65_536), 1024).level, Level::Ok);
        let few = open_files(Some(1024), 1024);
        assert_eq!(few.level, Level::Warn);
        assert!(few.advice.contains("LimitNOFILE=1280"), "{few:?}");
    }

    #[test]
    fn the_choice_of_huge_pages_is_read_as_linux_writes_it() {
        assert_eq!(huge_pages("always [madvise] never\n"), Check::ok("huge pages", "madvise"));
        assert_eq!(huge_pages("always madvise [never]\n").level, Level::Warn);
        assert_eq!(huge_pages("").level, Level::Ok);
    }
}
