//! What a batch means to the operators: its rules checked, then the position and slot of every row
//! and the pages that every segment reads.

use sconce_kernels::{Emit, Recurrence, RecurrentSegment, attention};

use crate::error::Error;
use crate::model::{Batch, Segment};
use crate::state::{SequenceId, StateLayout, StatePool};

/// Bounds that a batch has to keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepLimits {
    /// Tokens of a step.
    pub(crate) tokens: usize,
    /// Tokens of a sequence.
    pub(crate) context_length: usize,
    /// Token ids are below it.
    pub(crate) vocab_size: usize,
}

/// A batch in the terms of the operators. Kept from step to step, for its memory.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Position of each row in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Where the keys and values of each row are written.
    pub(crate) slots: Vec<u32>,
    /// Runs of rows, with the pages they read.
    pub(crate) segments: Vec<attention::Segment>,
    /// Pages of all segments.
    pub(crate) pages: Vec<u32>,
    /// The same runs of rows, with the slots of the recurrent states they advance.
    pub(crate) recurrent: Vec<RecurrentSegment>,
    /// Recurrent states to copy out on the way, and their slots.
    pub(crate) emits: Vec<Emit>,
    /// Of both the segments of one token, as in decoding.
    pub(crate) single: RecurrentPart,
    /// Of both the longer segments.
    pub(crate) long: RecurrentPart,
    /// Rows whose logits are wanted.
    pub(crate) logits_rows: Vec<u32>,
    /// Sequences of the batch, to find one that comes twice.
    seen: Vec<SequenceId>,
}

/// Some of a step's recurrent segments, with their emits.
#[derive(Debug, Default)]
pub(crate) struct RecurrentPart {
    segments: Vec<RecurrentSegment>,
    emits: Vec<Emit>,
}

impl RecurrentPart {
    fn new(segments: usize, emits: usize) -> Self {
        Self { segments: Vec::with_capacity(segments), emits: Vec::with_capacity(emits) }
    }

    /// What it does to the states of a layer.
    pub(crate) fn recurrence(&self) -> Recurrence<'_> {
        Recurrence { segments: &self.segments, emits: &self.emits }
    }

    /// Takes those segments, and their emits, of which `len` says so.
    fn take(&mut self, segments: &[RecurrentSegment], emits: &[Emit], len: impl Fn(usize) -> bool) {
        for (index, segment) in segments.iter().enumerate().filter(|(_, found)| len(found.len)) {
            let own = emits.iter().filter(|emit| emit.segment == index);
            self.emits.extend(own.map(|emit| Emit { segment: self.segments.len(), ..*emit }));
            self.segments.push(*segment);
        }
    }
}

impl Step {
    /// Room for steps that keep to `limits`, over the state of `layout`. Only sequences that share
    /// pages may name more of them in a step than there are, for which the list grows then.
    pub(crate) fn new(limits: StepLimits, layout: &StateLayout) -> Self {
        let sequences = layout.sequences_max.min(limits.tokens);
        Self {
            positions: Vec::with_capacity(limits.tokens),
            slots: Vec::with_capacity(limits.tokens),
            segments: Vec::with_capacity(sequences),
            pages: Vec::with_capacity(layout.pages_max),
            recurrent: Vec::with_capacity(sequences),
            emits: Vec::with_capacity(layout.points_max),
            single: RecurrentPart::new(sequences, layout.points_max),
            long: RecurrentPart::new(sequences, layout.points_max),
            logits_rows: Vec::with_capacity(sequences),
            seen: Vec::with_capacity(sequences),
        }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.positions.len()
    }

    /// Checks every rule of a batch and lays it out.
    ///
    /// # Errors
    /// [`Error::Batch`] or [`Error::State`]; the state has not changed.
    pub(crate) fn plan(
        &mut self,
        batch: &Batch,
        state: &StatePool,
        limits: StepLimits,
    ) -> Result<(), Error> {
        self.clear();
        check_tokens(batch, limits)?;
        for segment in &batch.segments {
            check_segment(segment, state, limits.context_length)?;
            self.push(segment, state)?;
        }
        self.check_sequences()?;
        self.push_emits(batch, state)?;
        self.single.take(&self.recurrent, &self.emits, |len| len == 1);
        self.long.take(&self.recurrent, &self.emits, |len| len > 1);
        Ok(())
    }

    fn clear(&mut self) {
        self.positions.clear();
        self.slots.clear();
        self.segments.clear();
        self.pages.clear();
        self.recurrent.clear();
        self.emits.clear();
        for part in [&mut self.single, &mut self.long] {
            part.segments.clear();
            part.emits.clear();
        }
        self.logits_rows.clear();
        self.seen.clear();
    }

    fn push(&mut self, segment: &Segment, state: &StatePool) -> Result<(), Error> {
        let page_tokens = state.layout().page_tokens;
        let table = state.page_table(segment.sequence)?;
        let end = segment.first_position + segment.len;
        let page_count = end.div_ceil(page_tokens);
        self.segments.push(attention::Segment {
            first_row: self.positions.len(),
            len: segment.len,
            first_position: segment.first_position,
            first_page: self.pages.len(),
            page_count,
        });
        self.pages.extend_from_slice(&table[..page_count]);
        self.recurrent.push(RecurrentSegment {
            first_row: self.positions.len(),
            len: segment.len,
            slot: state.recurrent_slot(segment.sequence)?,
        });
        for position in segment.first_position..end {
            let slot =
                table[position / page_tokens] as usize * page_tokens + position % page_tokens;
            // A layout's slots fit 32 bits, see `StateLayout`.
            self.slots.push(slot as u32);
            self.positions.push(position);
        }
        if segment.logits {
            self.logits_rows.push(self.positions.len() as u32 - 1);
        }
        self.seen.push(segment.sequence);
        Ok(())
    }

    fn push_emits(&mut self, of: &Batch, state: &StatePool) -> Result<(), Error> {
        if !of.emits.is_empty() && state.layout().recurrent.is_none() {
            return Err(batch("no emits from a model without recurrent layers", of.emits.len()));
        }
        for emit in &of.emits {
            let Some(segment) = of.segments.get(emit.segment) else {
                let expected = format!("emits from {} segments", of.segments.len());
                return Err(batch(expected, format!("segment {}", emit.segment)));
            };
            if !(1..=segment.len).contains(&emit.offset) {
                let expected = format!("an emit after 1 to {} tokens", segment.len);
                return Err(batch(expected, emit.offset));
            }
            let slot = state.point_slot(emit.point)?;
            if self.emits.iter().any(|other| other.slot == slot) {
                return Err(batch("one emit for each point", format!("two of {}", emit.point)));
            }
            self.emits.push(Emit { segment: emit.segment, offset: emit.offset, slot });
        }
        Ok(())
    }

    fn check_sequences(&mut self) -> Result<(), Error> {
        self.seen.sort_unstable();
        match self.seen.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(()),
            Some(pair) => {
                Err(batch("one segment for each sequence", format!("two of {}", pair[0])))
            }
        }
    }
}

fn check_tokens(of: &Batch, limits: StepLimits) -> Result<(), Error> {
    let count = of.tokens.len();
    if count == 0 || count > limits.tokens {
        return Err(batch(format!("1 to {} tokens", limits.tokens), count));
    }
    let sum = of.segments.iter().map(|segment| segment.len).fold(0, usize::saturating_add);
    if sum != count {
        return Err(batch(format!("segments of {count} tokens together"), sum));
    }
    match of.tokens.iter().find(|token| **token as usize >= limits.vocab_size) {
        None => Ok(()),
        Some(token) => Err(batch(format!("token ids below {}", limits.vocab_size), token)),
    }
}

fn check_segment(segment: &Segment, state: &StatePool, context: usize) -> Result<(), Error> {
    let id = segment.sequence;
    let (len, room) = (state.len(id)?, state.room(id)?);
    if segment.len == 0 {
        return Err(batch(format!("at least one token for {id}"), 0));
    }
    if segment.first_position != len {
        return Err(batch(format!("{id} to go on at position {len}"), segment.first_position));
    }
    if segment.len > context - len.min(context) {
        let expected = format!("{id} to stay within {context} tokens");
        return Err(batch(expected, len + segment.len));
    }
    if segment.len > room {
        return Err(batch(format!("{id} to keep to the {room} tokens reserved"), segment.len));
    }
    Ok(())
}

fn batch(expected: impl ToString, found: impl ToString) -> Error {
    Error::Batch { expected: expected.to_string(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::state::StateLayout;

    const LIMITS: StepLimits = StepLimits { tokens: 8, context_length: 10, vocab_size: 100 };

    fn pool() -> StatePool {
        let layout = StateLayout {
            attention: vec![],
            recurrent: None,
            page_tokens: 4,
            pages_max: 8,
            sequences_max: 3,
            points_max: 0,
        };
        StatePool::new(layout, &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_know_their_position_slot_and_pages() {
        let mut pool = pool();
        let (first, second) = (pool.open().unwrap(), pool.open().unwrap());
        pool.reserve(first, 3).unwrap();
        pool.reserve(second, 2).unwrap();
        pool.advance(first, 3).unwrap();
        pool.reserve(first, 2).unwrap();
        let mut batch = Batch::default();
        batch.push(first, 3, &[1, 2], true);
        batch.push(second, 0, &[3], false);
        let mut step = Step::default();
        step.plan(&batch, &pool, LIMITS).unwrap();

        assert_eq!(step.positions, [3, 4, 0]);
        // The first sequence has pages 0 and 2, the second page 1.
        assert_eq!(step.slots, [3, 8, 4]);
        assert_eq!(step.pages, [0, 2, 1]);
        assert_eq!(step.logits_rows, [1]);
        let second = attention::Segment {
            first_row: 2,
            len: 1,
            first_position: 0,
            first_page: 2,
            page_count: 1,
        };
        assert_eq!(step.segments[1], second);
        let slot = pool.recurrent_slot(batch.segments[1].sequence).unwrap();
        assert_eq!(step.recurrent[1], RecurrentSegment { first_row: 2, len: 1, slot });
    }

    #[test]
    fn parts_of_recurrent_segments_keep_their_emits() {
        let segment = |first_row, len| RecurrentSegment { first_row, len, slot: first_row as u32 };
        let segments = [segment(0, 3), segment(3, 1), segment(4, 2), segment(6, 1)];
        let emit = |segment, slot| Emit { segment, offset: 1, slot };
        let emits = [emit(3, 7), emit(0, 8), emit(2, 9), emit(0, 10)];
        let (mut single, mut long) = (RecurrentPart::default(), RecurrentPart::default());
        single.take(&segments, &emits, |len| len == 1);
        long.take(&segments, &emits, |len| len > 1);
        assert_eq!(single.recurrence().segments, [segments[1], segments[3]]);
        assert_eq!(single.recurrence().emits, [emit(1, 7)]);
        assert_eq!(long.recurrence().segments, [segments[0], segments[2]]);
        assert_eq!(long.recurrence().emits, [emit(0, 8), emit(0, 10), emit(1, 9)]);
    }

    #[test]
    fn every_broken_rule_is_named() {
        let mut pool = pool();
        let id = pool.open().unwrap();
        pool.reserve(id, 9).unwrap();
        let closed = pool.open().unwrap();
        pool.close(closed).unwrap();
        let one = |first_position, tokens: &[u32]| {
            let mut batch = Batch::default();
            batch.push(id, first_position, tokens, true);
            batch
        };
        let mut twice = one(0, &[1]);
        twice.push(id, 0, &[2], true);
        let mut short = one(0, &[1, 2]);
        short.segments[0].len = 1;
        let mut stale = Batch::default();
        stale.push(closed, 0, &[1], true);
        let mut empty = one(0, &[1]);
        empty.push(id, 0, &[], true);

        for (batch, expected) in [
            (Batch::default(), "1 to 8 tokens"),
            (one(0, &[1; 9]), "1 to 8 tokens"),
            (one(0, &[100]), "token ids below 100"),
            (one(1, &[1]), "to go on at position 0"),
            (twice, "one segment for each sequence"),
            (short, "segments of 2 tokens together"),
            (stale, "is not open"),
            (empty, "at least one token for"),
        ] {
            let error = Step::default().plan(&batch, &pool, LIMITS).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_context_and_the_reservation_bound_a_segment() {
        let mut pool = pool();
        let id = pool.open().unwrap();
        pool.reserve(id, 8).unwrap();
        pool.advance(id, 8).unwrap();
        let mut batch = Batch::default();
        batch.push(id, 8, &[1, 2, 3], true);
        let error = Step::default().plan(&batch, &pool, LIMITS).unwrap_err().to_string();
        assert!(error.contains("within 10 tokens, found 11"), "{error}");
        batch.clear();
        batch.push(id, 8, &[1, 2], true);
        let error = Step::default().plan(&batch, &pool, LIMITS).unwrap_err().to_string();
        assert!(error.contains("to keep to the 0 tokens reserved, found 2"), "{error}");
    }
}
