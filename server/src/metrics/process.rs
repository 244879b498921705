//! What the system says of this process, under the names that Prometheus's own clients use. Read from
//! `/proc`; where there is none, as on macOS, nothing is told.

use std::path::Path;

/// The process at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) threads: u64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) open_fds: u64,
    /// `None` for no limit.
    pub(super) max_fds: Option<u64>,
    /// Seconds since 1970.
    pub(super) start_time: f64,
}

impl Process {
    /// This process, if the system tells all of it.
    pub(super) fn read() -> Option<Self> {
        let proc = Path::new("/proc");
        let text = |name: &str| std::fs::read_to_string(proc.join(name)).ok();
        let open_fds = std::fs::read_dir(proc.join("self/fd")).ok()?.count() as u64;
        let limits = text("self/limits").unwrap_or_default();
        parse(&text("self/stat")?, &text("stat")?, &limits, open_fds)
    }
}

/// From `/proc/self/stat`, `/proc/stat` and `/proc/self/limits`; see proc(5).
fn parse(own: &str, all: &str, limits: &str, open_fds: u64) -> Option<Process> {
    // The name before may have spaces and brackets in it.
    let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    // The first after the name is number 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let boot = all.lines().find_map(|line| line.strip_prefix("btime "))?;
    let max_fds = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        threads: field(20)?,
        resident_bytes: field(24)? * rustix::param::page_size() as u64,
        virtual_bytes: field(23)?,
        open_fds,
        max_fds,
        start_time: boot.trim().parse::<f64>().ok()? + field(22)? as f64 / ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let own = "7 (a) b) (c) S 1 7 7 0 -1 4194560 90 0 0 0 250 150 0 0 20 0 11 0 3000 4096000 50 \
                   18446744073709551615 1 1";
        let limits = "Limit   Soft Limit   Hard Limit   Units\n\
                      Max open files            1024                 524288               files\n";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let found = parse(own, "cpu 1 2\nbtime 1700000000\n", limits, 9).expect("parses");
        let expected = Process {
            cpu_seconds: 400.0 / ticks,
            threads: 11,
            resident_bytes: 50 * rustix::param::page_size() as u64,
            virtual_bytes: 4_096_000,
            open_fds: 9,
            max_fds: Some(1024),
            start_time: 1_700_000_000.0 + 3000.0 / ticks,
        };
        assert_eq!(found, expected);
        assert_eq!(parse("7 (a", "btime 1", limits, 9), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_read() {
        let found = Process::read().expect("linux has /proc");
        assert!(found.resident_bytes > 0 && found.open_fds > 2 && found.threads > 0, "{found:?}");
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).expect("it is past 1970");
        assert!(found.start_time <= now.as_secs_f64() + 1.0, "{found:?}");
    }
}
