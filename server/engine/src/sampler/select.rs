//! The likeliest tokens of a row without sorting it.

use std::cmp::Ordering;

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) id: u32,
}

/// Likelier first; of equals, the lower id.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    // The row is finite, and 0.0 must equal -0.0 as it does for argmax.
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Fills `top` with the `count` likeliest tokens of `row` (all, if it has fewer), likeliest first.
///
/// One pass over the row: what can still be among them is collected, and cut back to `count` whenever
/// there is twice as much. Each cut is linear and doubles what may follow before the next, so the
/// whole is linear in the row, plus the sort of `count`.
pub(super) fn select_top(row: &[f32], count: usize, top: &mut Vec<Candidate>) {
    top.clear();
    if count == 0 {
        return;
    }
    let keep = count.min(row.len());
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in row.iter().enumerate() {
        // An equal one comes later, so it has the higher id and loses the tie.
        if logit > floor || top.len() < keep {
            top.push(Candidate { logit, id: id as u32 });
            if top.len() >= keep.saturating_mul(2) {
                top.select_nth_unstable_by(keep - 1, order);
                top.truncate(keep);
                floor = top[keep - 1].logit;
            }
        }
    }
    if top.len() > keep {
        top.select_nth_unstable_by(keep - 1, order);
        top.truncate(keep);
    }
    top.sort_unstable_by(order);
}
