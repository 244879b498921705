//! Whether a server under load kept what is promised.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Cycle;
use super::child::Reading;
use crate::cli::bench::stats::median;
use crate::cli::output;
use crate::config::Span;

/// What is promised.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Bounds")]
pub(super) struct Bounds {
    /// Share of the peak's tokens that an overload completes at least, as the median of the cycles
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    goodput_share: f64,
    /// By how much memory and the ledger may have grown
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    leak_share: f64,
    /// Longest time until what is too much is refused, but for the slowest percent, as the median
    /// of the cycles
    #[arg(long, value_name = "TIME", default_value = "50ms")]
    refusal_time: Span,
}

/// Share of the refusals that keep the bound: one that the machine's other work held up is no broken
/// promise.
const REFUSALS_IN_TIME: f64 = 0.99;

/// What was found.
#[derive(Debug)]
pub(super) struct Findings {
    /// Streams of the peak.
    pub(super) streams: usize,
    /// What the server held after the warm-up, and at the end.
    pub(super) first: Reading,
    /// See above.
    pub(super) last: Reading,
    /// In order; at least one.
    pub(super) cycles: Vec<Cycle>,
    /// Answers that should not have been.
    pub(super) violations: Vec<String>,
}

impl Findings {
    fn goodput_share(&self) -> f64 {
        median(self.cycles.iter().map(Cycle::goodput_share).collect()).unwrap_or(0.0)
    }

    /// The median over the cycles of what each refused, at a percentile.
    fn refusal(&self, share: f64) -> Option<f64> {
        median(self.cycles.iter().filter_map(|cycle| cycle.overload.refusals.at(share)).collect())
    }

    /// Promises that were not kept.
    pub(super) fn broken(&self, bounds: &Bounds) -> Vec<String> {
        let mut broken = self.violations.clone();
        let (first, last) = (self.first, self.last);
        let grown = |what: &str, before: u64, after: u64, share: f64| {
            let most = (before as f64 * (1.0 + share)) as u64;
            (after > most)
                .then(|| format!("{what}: expected at most {most} at the end, found {after}"))
        };
        broken.extend(grown("resident bytes", first.resident, last.resident, bounds.leak_share));
        broken.extend(grown("open files", first.files, last.files, 0.0));
        broken.extend(grown("bytes of the ledger", first.ledger, last.ledger, bounds.leak_share));
        let share = self.goodput_share();
        if share < bounds.goodput_share {
            broken.push(format!(
                "goodput under overload: expected {} of the peak, found {share:.3}",
                bounds.goodput_share
            ));
        }
        let bound = bounds.refusal_time.0;
        match self.refusal(REFUSALS_IN_TIME) {
            None => broken.push("expected refusals under overload, found none".to_owned()),
            Some(found) if found > bound.as_secs_f64() => broken.push(format!(
                "99th percentile of the time until a refusal: expected at most {bound:?}, \
                 found {:.1} ms",
                1e3 * found
            )),
            Some(_) => {}
        }
        broken
    }

    /// For people.
    pub(super) fn table(&self, bounds: &Bounds) -> String {
        let rows: Vec<Vec<String>> = self.cycles.iter().enumerate().map(row).collect();
        let header = [
            "cycle",
            "peak tok/s",
            "overload tok/s",
            "%",
            "done",
            "refused",
            "p50 ms",
            "p99 ms",
            "loads",
            "RSS MiB",
            "files",
        ];
        let mut text = output::table(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &rows);
        let milliseconds =
            |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{:.2} ms", 1e3 * time));
        let _ = write!(
            text,
            "\npeak at {} streams; under overload {:.1} % of it (at least {:.0} %)\n\
             refused after {} (median), {} (99th percentile; at most {:?})\n\
             after the warm-up: {}\nat the end:        {}\n",
            self.streams,
            100.0 * self.goodput_share(),
            100.0 * bounds.goodput_share,
            milliseconds(self.refusal(0.5)),
            milliseconds(self.refusal(REFUSALS_IN_TIME)),
            bounds.refusal_time.0,
            self.first,
            self.last,
        );
        text
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Value {
        let cycles: Vec<Value> = self
            .cycles
            .iter()
            .map(|cycle| {
                json!({
                    "goodput_share": cycle.goodput_share(),
                    "peak_tokens_per_second": cycle.peaks,
                    "overload": cycle.overload.to_json(),
                    "reading": cycle.reading.to_json(),
                })
            })
            .collect();
        json!({
            "streams": self.streams,
            "goodput_share": self.goodput_share(),
            "refusal_seconds_p50": self.refusal(0.5),
            "refusal_seconds_p99": self.refusal(REFUSALS_IN_TIME),
            "first": self.first.to_json(),
            "last": self.last.to_json(),
            "cycles": cycles,
            "violations": self.violations,
        })
    }
}

fn row((index, cycle): (usize, &Cycle)) -> Vec<String> {
    let refusals = &cycle.overload.refusals;
    let at = |share| refusals.at(share).map_or("-".to_owned(), |time| format!("{:.2}", 1e3 * time));
    vec![
        (index + 1).to_string(),
        format!("{:.1}", (cycle.peaks[0] + cycle.peaks[1]) / 2.0),
        format!("{:.1}", cycle.overload.token_rate()),
        format!("{:.1}", 100.0 * cycle.goodput_share()),
        cycle.overload.done.to_string(),
        refusals.count().to_string(),
        at(0.5),
        at(0.99),
        cycle.overload.loads.to_string(),
        format!("{:.1}", cycle.reading.resident as f64 / f64::from(1 << 20)),
        cycle.reading.files.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::bench::server::percentiles::Percentiles;
    use crate::cli::bench::soak::traffic::Segment;

    const FIRST: Reading =
        Reading { resident: 1_000_000, anonymous: 900_000, files: 20, ledger: 5000, cached: 5000 };

    fn bounds() -> Bounds {
        Bounds {
            goodput_share: 0.9,
            leak_share: 0.02,
            refusal_time: Span(Duration::from_millis(50)),
        }
    }

    /// A server that keeps everything, and completes `tokens` a second of 100 at its peak.
    fn findings(tokens: usize, refusals: Vec<f64>) -> Findings {
        let overload = Segment::of(10.0, 10 * tokens, Percentiles::of(refusals));
        let cycle = Cycle { overload, peaks: [90.0, 110.0], reading: FIRST };
        Findings {
            streams: 4,
            first: FIRST,
            last: FIRST,
            cycles: vec![cycle],
            violations: Vec::new(),
        }
    }

    fn broken(last: Reading) -> String {
        Findings { last, ..findings(95, vec![0.001]) }.broken(&bounds()).join("; ")
    }

    #[test]
    fn what_keeps_every_promise_has_broken_none() {
        let last = Reading { resident: 1_020_000, files: 19, ledger: 5100, ..FIRST };
        assert_eq!(broken(last), "");
    }

    #[test]
    fn each_leak_is_told() {
        let resident = broken(Reading { resident: 1_020_001, ..FIRST });
        assert_eq!(resident, "resident bytes: expected at most 1020000 at the end, found 1020001");
        assert!(broken(Reading { files: 21, ..FIRST }).starts_with("open files: "));
        assert!(broken(Reading { ledger: 5101, ..FIRST }).starts_with("bytes of the ledger: "));
    }

    #[test]
    fn what_gives_in_under_overload_is_told() {
        let told = |findings: Findings| findings.broken(&bounds()).join("; ");
        let goodput = told(findings(89, vec![0.001]));
        assert!(goodput.starts_with("goodput under overload: "), "{goodput}");
        let none = told(findings(95, vec![]));
        assert_eq!(none, "expected refusals under overload, found none");
        let violations = vec!["completed with 0 tokens".to_owned()];
        let all = Findings { violations: violations.clone(), ..findings(95, vec![0.001]) };
        assert_eq!(all.broken(&bounds()), violations);
    }

    #[test]
    fn all_but_the_slowest_percent_of_the_refusals_are_in_time() {
        let told = |slow: usize| {
            let mut times = vec![0.001; 200 - slow];
            times.extend(vec![0.2; slow]);
            findings(95, times).broken(&bounds()).join("; ")
        };
        assert_eq!(told(0), "");
        assert_eq!(told(2), "", "one of a hundred");
        let broken = "99th percentile of the time until a refusal: expected at most 50ms, \
                      found 200.0 ms";
        assert_eq!(told(3), broken);
    }

    #[test]
    fn the_bound_is_that_of_the_promise() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            bounds: Bounds,
        }
        let line: Line = clap::Parser::parse_from(["soak"]);
        assert_eq!(line.bounds.refusal_time.0, bounds().refusal_time.0);
    }
}
