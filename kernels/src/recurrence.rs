//! Which rows advance which recurrent states, and where states on the way are copied out. What a
//! state holds is the operator's: `short_conv` keeps inputs, `gated_delta` matrices.

use std::cell::RefCell;

use crate::access::check;
use crate::error::{Error, Result};

/// Consecutive rows of a step that are consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecurrentSegment {
    /// Row of the first token in the step.
    pub first_row: usize,
    /// Number of tokens.
    pub len: usize,
    /// Slot that holds the sequence's state before the first token, and after the last one when the
    /// operator returns. Zeros are the state before a sequence's first token.
    pub slot: u32,
}

/// A state to be kept on the way through a segment, without cutting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Emit {
    /// Index of the segment.
    pub segment: usize,
    /// Tokens of the segment after which the state is copied, 1 to its length.
    pub offset: usize,
    /// Slot that receives the copy.
    pub slot: u32,
}

/// What a step does to the recurrent states of a layer.
///
/// Segments are in the order of their rows and disjoint; rows outside of all segments are not
/// written. A slot appears once among all segments and emits; emits come in any order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recurrence<'a> {
    /// The segments of the step.
    pub segments: &'a [RecurrentSegment],
    /// States to copy out.
    pub emits: &'a [Emit],
}

thread_local! {
    /// Slots of the call being checked; grows to the largest one this thread has seen.
    static SLOTS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Recurrence<'_> {
    /// Refuses segments outside of `rows` or out of order, emits outside of their segment, slots
    /// outside of `slots`, and slots that are used twice.
    pub(crate) fn check(&self, op: &'static str, rows: usize, slots: usize) -> Result<()> {
        let mut next_row = 0;
        for segment in self.segments {
            let end = segment.first_row.checked_add(segment.len);
            let fits = segment.first_row >= next_row && end.is_some_and(|end| end <= rows);
            check(op, "segments", fits, || {
                (format!("disjoint and in order within {rows} rows"), format!("{segment:?}"))
            })?;
            next_row = segment.first_row + segment.len;
        }
        for (position, emit) in self.emits.iter().enumerate() {
            let Some(segment) = self.segments.get(emit.segment) else {
                let (found, limit) = (emit.segment, self.segments.len());
                return Err(Error::Index { op, operand: "emits", position, found, limit });
            };
            let inside = (1..=segment.len).contains(&emit.offset);
            check(op, "emits", inside, || {
                (format!("at offsets 1 to {}", segment.len), format!("{emit:?}"))
            })?;
        }
        SLOTS.with_borrow_mut(|used| {
            used.clear();
            used.extend(self.segments.iter().map(|segment| segment.slot));
            used.extend(self.emits.iter().map(|emit| emit.slot));
            check_slots(op, used, slots)
        })
    }

    /// The next offset after `done` tokens of segment `segment` at which a state is copied out or
    /// the segment ends.
    pub(crate) fn next_stop(&self, segment: usize, done: usize) -> usize {
        let offsets = self.emits.iter().filter(|emit| emit.segment == segment);
        let later = offsets.map(|emit| emit.offset).filter(|offset| *offset > done);
        later.min().unwrap_or(self.segments[segment].len)
    }

    /// Slots that receive the state after `offset` tokens of segment `segment`.
    pub(crate) fn emitted_at(
        &self,
        segment: usize,
        offset: usize,
    ) -> impl Iterator<Item = usize> + '_ {
        let hit = move |emit: &&Emit| emit.segment == segment && emit.offset == offset;
        self.emits.iter().filter(hit).map(|emit| emit.slot as usize)
    }

    /// Tokens of all segments.
    pub(crate) fn tokens(&self) -> usize {
        self.segments.iter().map(|segment| segment.len).sum()
    }
}

/// Refuses a slot that is not below `limit` or comes twice; sorts `used`.
fn check_slots(op: &'static str, used: &mut [u32], limit: usize) -> Result<()> {
    if let Some(position) = used.iter().position(|slot| *slot as usize >= limit) {
        let found = used[position] as usize;
        return Err(Error::Index { op, operand: "slots", position, found, limit });
    }
    used.sort_unstable();
    let twice = used.windows(2).find(|pair| pair[0] == pair[1]);
    check(op, "slots", twice.is_none(), || {
        let slot = twice.map_or(0, |pair| pair[0]);
        ("different for all segments and emits".to_owned(), format!("slot {slot} twice"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: [RecurrentSegment; 2] = [
        RecurrentSegment { first_row: 0, len: 3, slot: 4 },
        RecurrentSegment { first_row: 3, len: 2, slot: 0 },
    ];

    fn check_of(segments: &[RecurrentSegment], emits: &[Emit]) -> Result<()> {
        Recurrence { segments, emits }.check("op", 5, 6)
    }

    #[test]
    fn segments_and_emits_that_fit_are_accepted() {
        let emits = [
            Emit { segment: 1, offset: 2, slot: 1 },
            Emit { segment: 0, offset: 1, slot: 2 },
            Emit { segment: 0, offset: 1, slot: 3 },
        ];
        check_of(&SEGMENTS, &emits).unwrap();
        check_of(&[], &[]).unwrap();
    }

    #[test]
    fn segments_out_of_order_or_outside_of_the_rows_are_refused() {
        let backwards = [SEGMENTS[1], SEGMENTS[0]];
        assert!(matches!(check_of(&backwards, &[]), Err(Error::Shape { .. })));
        for segment in [
            RecurrentSegment { first_row: 4, len: 2, slot: 0 },
            RecurrentSegment { first_row: 1, len: usize::MAX, slot: 0 },
        ] {
            assert!(matches!(check_of(&[segment], &[]), Err(Error::Shape { .. })));
        }
    }

    #[test]
    fn a_slot_that_is_used_twice_is_refused() {
        let shared = [SEGMENTS[0], RecurrentSegment { slot: 4, ..SEGMENTS[1] }];
        let error = check_of(&shared, &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "op: slots must be different for all segments and emits, found slot 4 twice"
        );
        let onto_a_segment = [Emit { segment: 0, offset: 1, slot: 0 }];
        assert!(matches!(check_of(&SEGMENTS, &onto_a_segment), Err(Error::Shape { .. })));
        let emit = Emit { segment: 0, offset: 1, slot: 2 };
        let twice = [emit, Emit { offset: 2, ..emit }];
        assert!(matches!(check_of(&SEGMENTS, &twice), Err(Error::Shape { .. })));
    }

    #[test]
    fn emits_and_slots_that_do_not_exist_are_refused() {
        let emit = Emit { segment: 1, offset: 2, slot: 1 };
        for offset in [0, 3] {
            let found = check_of(&SEGMENTS, &[Emit { offset, ..emit }]);
            assert!(matches!(found, Err(Error::Shape { operand: "emits", .. })));
        }
        let found = check_of(&SEGMENTS, &[Emit { segment: 2, ..emit }]);
        assert!(matches!(found, Err(Error::Index { operand: "emits", limit: 2, .. })));
        let found = check_of(&SEGMENTS, &[Emit { slot: 6, ..emit }]);
        assert!(matches!(found, Err(Error::Index { operand: "slots", found: 6, limit: 6, .. })));
    }

    #[test]
    fn stops_are_the_emits_of_a_segment_and_its_end() {
        let emits = [
            Emit { segment: 0, offset: 2, slot: 1 },
            Emit { segment: 1, offset: 1, slot: 2 },
            Emit { segment: 0, offset: 2, slot: 3 },
        ];
        let recurrence = Recurrence { segments: &SEGMENTS, emits: &emits };
        assert_eq!(recurrence.next_stop(0, 0), 2);
        assert_eq!(recurrence.next_stop(0, 2), 3);
        assert_eq!(recurrence.next_stop(1, 0), 1);
        assert_eq!(recurrence.emitted_at(0, 2).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(recurrence.emitted_at(0, 3).count(), 0);
    }
}
