//! What was measured, against what was asked for, as lines and as Markdown.

use std::fmt;

use super::clock::Work;

/// The first lines of a table of Markdown.
pub(crate) const HEADER: &str =
    "| work | ours | peer or floor | ratio | bar | met |\n|---|---|---|---|---|---|\n";

/// What a row is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bar {
    /// A ratio of at least this.
    AtLeast(f64),
    /// A ratio of at most this.
    AtMost(f64),
    /// A rate of at least this, in tokens per second.
    Rate(f64),
}

impl Bar {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) | Self::Rate(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bar) => write!(f, "at least {bar:.2}"),
            Self::AtMost(bar) => write!(f, "at most {bar:.2}"),
            Self::Rate(bar) => write!(f, "at least {bar:.0} tokens/s"),
        }
    }
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// What was done.
    pub(crate) work: String,
    /// What it took here.
    pub(crate) ours: String,
    /// What a peer took, or what bounds it.
    pub(crate) peer: String,
    /// Ours against that.
    pub(crate) ratio: Option<f64>,
    /// What is asked for, and the number that is held against it; none if it could not be had.
    pub(crate) bar: Option<(Bar, Option<f64>)>,
    /// Whether it was measured at all.
    pub(crate) failed: bool,
}

impl Row {
    /// A row of which nothing is asked.
    pub(crate) fn told(work: impl Into<String>, ours: String, peer: impl Into<String>) -> Self {
        let (work, peer) = (work.into(), peer.into());
        Self { work, ours, peer, ratio: None, bar: None, failed: false }
    }

    /// The same with a ratio, and what it is to be.
    pub(crate) fn ratio(self, ratio: f64, bar: Option<Bar>) -> Self {
        Self { ratio: Some(ratio), bar: bar.map(|bar| (bar, Some(ratio))), ..self }
    }

    /// What could not be measured, and why.
    pub(crate) fn failed(work: &str, why: &str) -> Self {
        Self { failed: true, ..Self::told(work, "failed".to_owned(), why.replace('\n', " ")) }
    }

    /// Whether nothing that is asked for was missed.
    fn is_met(&self) -> bool {
        let missed = |(bar, found): (Bar, Option<f64>)| found.is_some_and(|it| !bar.is_met(it));
        !self.failed && !self.bar.is_some_and(missed)
    }

    fn verdict(&self) -> &'static str {
        match self.bar {
            _ if self.failed => "FAILED",
            None => "",
            Some((_, None)) => "not judged",
            Some(_) if self.is_met() => "yes",
            Some(_) => "NO",
        }
    }

    /// Its line in a table of Markdown.
    pub(crate) fn markdown(&self) -> String {
        format!("| {} |", self.cells().map(|cell| cell.replace('|', "/")).join(" | "))
    }

    fn cells(&self) -> [String; 6] {
        let ratio = self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let bar = self.bar.map_or_else(String::new, |(bar, _)| bar.to_string());
        let verdict = self.verdict().to_owned();
        [self.work.clone(), self.ours.clone(), self.peer.clone(), ratio, bar, verdict]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [work, ours, peer, ratio, bar, verdict] = self.cells();
        write!(f, "{work:<46} {ours:<26} {peer:<40} {ratio:>8}  {bar:<22} {verdict}")
    }
}

/// All rows of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn push(&mut self, row: Row) {
        self.0.push(row);
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.0
    }

    /// Whether all was measured, and nothing that is asked for was missed.
    pub(crate) fn is_met(&self) -> bool {
        self.0.iter().all(Row::is_met)
    }

    /// As `docs/PERFORMANCE.md` has its tables.
    pub(crate) fn markdown(&self) -> String {
        let lines = self.0.iter().map(|row| row.markdown() + "\n");
        lines.fold(HEADER.to_owned(), |text, line| text + &line)
    }

    /// What became of the bars, in a line.
    pub(crate) fn summary(&self) -> String {
        let count = |verdict| self.0.iter().filter(|row| row.verdict() == verdict).count();
        let [met, missed, open, failed] = ["yes", "NO", "not judged", "FAILED"].map(count);
        format!("bars: {met} met, {missed} missed, {open} not judged, {failed} parts failed")
    }
}

/// Seconds in a unit that suits them.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.2} us", s * 1e6),
        s if s < 1.0 => format!("{:.3} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// What work reaches that moves so many bytes in so many seconds, and whether the device could do better.
pub(crate) fn moving(work: &Work<'_>, bytes: f64, seconds: f64) -> String {
    let bound = if work.is_host_bound() { ", bound by the host" } else { "" };
    format!("{}, {}{bound}", time(seconds), bandwidth(bytes, seconds))
}

/// Bytes per second.
pub(crate) fn bandwidth(bytes: f64, seconds: f64) -> String {
    format!("{:.0} GB/s", bytes / seconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ratio: f64, bar: Bar) -> Row {
        Row::told("work", time(0.5e-3), "peer").ratio(ratio, Some(bar))
    }

    #[test]
    fn a_bar_is_met_from_its_side() {
        for (ratio, bar, met) in [
            (0.71, Bar::AtLeast(0.7), true),
            (0.69, Bar::AtLeast(0.7), false),
            (0.99, Bar::AtMost(1.0), true),
            (1.01, Bar::AtMost(1.0), false),
            (301.0, Bar::Rate(300.0), true),
            (f64::NAN, Bar::AtLeast(0.7), false),
            (f64::NAN, Bar::AtMost(1.0), false),
        ] {
            assert_eq!(row(ratio, bar).is_met(), met, "{ratio} {bar}");
        }
    }

    #[test]
    fn a_table_is_met_if_no_row_missed_or_failed() {
        let mut table = Table::default();
        table.push(row(0.9, Bar::AtLeast(0.7)));
        table.push(Row::told("told", "1".to_owned(), ""));
        let unjudged = (Bar::AtMost(1.0), None);
        table.push(Row { bar: Some(unjudged), ..Row::told("no peer", "1".to_owned(), "") });
        assert!(table.is_met());
        let summary = "bars: 1 met, 0 missed, 1 not judged, 0 parts failed";
        assert_eq!(table.summary(), summary);
        let mut failed = table.clone();
        failed.push(Row::failed("part", "no\ntime"));
        assert!(!failed.is_met() && failed.markdown().contains("| part | failed | no time |"));
        table.push(row(0.6, Bar::AtLeast(0.7)));
        assert!(!table.is_met());
    }

    #[test]
    fn markdown_has_a_line_for_each_row_and_a_cell_for_each_column() {
        let mut table = Table::default();
        table.push(row(0.9, Bar::AtLeast(0.7)));
        let text = table.markdown();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.matches('|').count() == 7), "{text}");
        assert_eq!(lines[2], "| work | 500.00 us | peer | 0.900 | at least 0.70 | yes |");
    }

    #[test]
    fn times_and_rates_have_units_that_suit_them() {
        assert_eq!([1.5e-6, 2.5e-3, 3.0].map(time), ["1.50 us", "2.500 ms", "3.00 s"]);
        assert_eq!(bandwidth(4e9, 0.5), "8 GB/s");
    }
}
