//! The machine that is measured, in words and in peaks.

use std::sync::Arc;

use sconce_bench::{Isa, PeakOptions, Peaks, Pool};
use serde_json::{Value, json};

use crate::cli::error::CliError;

/// Most threads that can be asked for.
const THREADS_MAX: usize = 1024;

/// The processor's name, where the machine says it; else its architecture.
pub(super) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    model_name(&text).unwrap_or(std::env::consts::ARCH).to_owned()
}

fn model_name(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim()).filter(|name| !name.is_empty())
}

/// What is the same for all numbers of threads and all instructions, for programs.
pub(super) fn describe() -> Value {
    json!({
        "processor": processor(),
        "architecture": std::env::consts::ARCH,
        "system": std::env::consts::OS,
        "logical_processors": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// Numbers of threads to measure on: those of a command line, else that of a server.
pub(super) fn thread_counts(asked: &[usize]) -> Vec<usize> {
    match asked {
        [] => vec![sconce_models::threads::count()],
        asked => asked.to_vec(),
    }
}

/// Threads that are measured on: a number of them, a pool of as many, and what they can do.
pub(super) struct Threads {
    pub(super) count: usize,
    pub(super) pool: Arc<Pool>,
    /// `None` if nobody wants to know.
    pub(super) peaks: Option<Peaks>,
}

impl Threads {
    /// Threads for each of `counts`, with the peaks of `isa` unless `options` is `None`.
    ///
    /// # Errors
    /// A number outside of 1 to 1024, or of more threads than the system has to give.
    pub(super) fn start(
        counts: &[usize],
        isa: Isa,
        options: Option<&PeakOptions>,
    ) -> Result<Vec<Self>, CliError> {
        let start = |&count: &usize| {
            if !(1..=THREADS_MAX).contains(&count) {
                let message = format!("--threads: expected 1 to {THREADS_MAX}, found {count}");
                return Err(CliError::Usage(message));
            }
            let pool = Pool::new(count)
                .map_err(|source| CliError::io(format!("cannot start {count} threads"), source))?;
            let pool = Arc::new(pool);
            let measure = |options| Pool::with(&pool, || isa.with(|| Peaks::measure(options)));
            let peaks = options.map(measure);
            Ok(Self { count, pool, peaks })
        };
        counts.iter().map(start).collect()
    }

    /// The peaks for programs, `null` if they were not measured.
    pub(super) fn peaks_to_json(&self) -> Value {
        json!({
            "threads": self.count,
            "read_bytes_per_second": self.peaks.map(|peaks| peaks.read_bytes),
            "float_macs_per_second": self.peaks.map(|peaks| peaks.float_macs),
            "integer_macs_per_second": self.peaks.map(|peaks| peaks.integer_macs),
        })
    }

    /// The peaks for people; `None` if they were not measured.
    pub(super) fn peaks_in_words(&self) -> Option<String> {
        let peaks = self.peaks?;
        Some(format!(
            "{} thread{}, {}: reads {:.1} GB/s, {:.0} GMAC/s f32, {:.0} GMAC/s int8",
            self.count,
            if self.count == 1 { "" } else { "s" },
            peaks.isa,
            peaks.read_bytes / 1e9,
            peaks.float_macs / 1e9,
            peaks.integer_macs / 1e9,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_processor_is_read_as_linux_writes_it() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t: fpu\n";
        assert_eq!(model_name(text), Some("A CPU @ 3 GHz"));
        assert_eq!(model_name("model name\t:\n"), None);
        assert_eq!(model_name(""), None);
        assert!(!processor().is_empty());
    }

    #[test]
    fn a_number_of_threads_that_nobody_has_is_refused() {
        for count in [0, THREADS_MAX + 1] {
            let found = Threads::start(&[1, count], Isa::Portable, None);
            let message = found.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains("--threads") && message.contains(&count.to_string()));
        }
    }
}
