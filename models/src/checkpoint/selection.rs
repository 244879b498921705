//! Which rows of a weight a matrix is made of: all, one run, or several runs one after another.
//!
//! Checkpoints put more into one tensor than a model wants in one matrix: the experts of a stack,
//! gate and up projection, query and gate of each head in turn. Rows are counted over the whole
//! stack, as if all dimensions but the last were one.

use std::ops::Range;

/// Rows of a weight `[.., rows, cols]`, counted over the flattened leading dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSelection {
    /// `None` for all rows, however many there are.
    ranges: Option<Vec<Range<usize>>>,
}

impl RowSelection {
    /// Every row, in order.
    pub fn all() -> RowSelection {
        RowSelection { ranges: None }
    }

    /// The rows of one run, such as those of an expert.
    pub fn range(range: Range<usize>) -> RowSelection {
        RowSelection { ranges: Some(vec![range]) }
    }

    /// The rows of several runs, in the order given; a row may come more than once.
    pub fn ranges(ranges: Vec<Range<usize>>) -> RowSelection {
        RowSelection { ranges: Some(ranges) }
    }

    /// Rows of the selection among `rows` rows.
    ///
    /// # Errors
    /// The run that does not lie among them.
    pub(crate) fn count(self, rows: usize) -> Result<usize, Range<usize>> {
        self.resolve(rows).map(|selected| selected.count())
    }

    /// The selection among `rows` rows.
    ///
    /// # Errors
    /// The run that does not lie among them, or with which the selection outgrows memory.
    pub(super) fn resolve(self, rows: usize) -> Result<SelectedRows, Range<usize>> {
        let ranges = match self.ranges {
            Some(ranges) => ranges,
            None => std::iter::once(0..rows).collect(),
        };
        let mut runs: Vec<Run> = Vec::with_capacity(ranges.len());
        let mut count = 0_usize;
        for range in ranges {
            if range.start > range.end || range.end > rows {
                return Err(range);
            }
            if range.is_empty() {
                continue;
            }
            let continued =
                runs.last().is_some_and(|run| run.source + (count - run.first) == range.start);
            if !continued {
                runs.push(Run { first: count, source: range.start });
            }
            count = count.checked_add(range.len()).ok_or(range)?;
        }
        Ok(SelectedRows { runs, count })
    }
}

/// Rows of a weight that are there, by their number in a selection.
#[derive(Debug, Clone)]
pub(super) struct SelectedRows {
    /// In order of `first`, the first of which is 0.
    runs: Vec<Run>,
    count: usize,
}

/// Consecutive rows, up to where the next run begins.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Number of its first row in the selection.
    first: usize,
    /// Number of that row in the weight.
    source: usize,
}

impl SelectedRows {
    /// Rows of the selection.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The row of the weight that is row `row < count()` of the selection.
    pub(super) fn row(&self, row: usize) -> usize {
        let run = self.runs[self.runs.partition_point(|run| run.first <= row) - 1];
        run.source + (row - run.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(selection: RowSelection, rows: usize) -> Vec<usize> {
        let selected = selection.resolve(rows).unwrap();
        (0..selected.count()).map(|row| selected.row(row)).collect()
    }

    #[test]
    fn runs_follow_one_another_in_the_order_given() {
        assert_eq!(rows(RowSelection::all(), 3), [0, 1, 2]);
        assert_eq!(rows(RowSelection::range(4..6), 8), [4, 5]);
        assert_eq!(rows(RowSelection::ranges(vec![4..6, 0..2, 3..3, 1..3]), 6), [4, 5, 0, 1, 1, 2]);
        assert!(rows(RowSelection::all(), 0).is_empty());
        assert!(rows(RowSelection::ranges(Vec::new()), 5).is_empty());
    }

    #[test]
    fn adjacent_runs_become_one() {
        let selected = RowSelection::ranges(vec![0..2, 2..5, 7..8]).resolve(8).unwrap();
        assert_eq!(selected.runs.len(), 2);
        assert_eq!((selected.count(), selected.row(4), selected.row(5)), (6, 4, 7));
    }

    #[test]
    fn a_run_outside_of_the_weight_is_refused() {
        assert_eq!(RowSelection::range(2..9).resolve(8).unwrap_err(), 2..9);
        let backwards = Range { start: 3, end: 1 };
        assert_eq!(RowSelection::range(backwards.clone()).resolve(8).unwrap_err(), backwards);
        let everything = vec![0..usize::MAX, 0..usize::MAX];
        assert!(RowSelection::ranges(everything).resolve(usize::MAX).is_err());
    }
}
