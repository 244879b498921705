//! Which sequences of one model hold state, and which tokens of theirs make the next step.
//!
//! Everything here is bookkeeping over a model's [`Memory`]: no model is run. Pages are taken before
//! the step that fills them: those of a prompt at admission, those of a completion one step ahead.
//! What is remembered gives way to what runs.

use std::collections::BTreeMap;
use std::time::Instant;

use sconce_models::{Batch, SequenceId, StateError, StatePool};

use crate::cache::{Memory, Parting, Preparation};
use crate::error::EngineError;
use crate::event::FinishReason;
use crate::page_count::PageCount;
use crate::sequence::{Rank, Sequence};
use crate::status::Counters;

/// While prompts are being read, decode rows leave one in so many tokens of a step to them.
const PREFILL_SHARE: usize = 8;

/// A sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// Index among the running sequences.
    pub(crate) running: usize,
    /// Tokens of it in the step.
    pub(crate) tokens: usize,
    /// Whether they are its last, so that the next token can be sampled.
    pub(crate) samples: bool,
}

/// Why a waiting sequence could not be opened.
enum Shut {
    /// What it found is still being read.
    Reading,
    /// It has to wait for memory.
    NoRoom,
    /// No more than `free` pages will be free for it.
    Never { free: usize },
    /// The device failed.
    Broken(StateError),
}

/// The sequences of one model.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Without state, in the order of admission; new ones and preempted ones.
    waiting: BTreeMap<Rank, Sequence>,
    /// With state, in the order of admission.
    running: Vec<Sequence>,
    running_max: usize,
    /// Which decode row goes first where not all fit a step.
    turn: usize,
    /// Scratch of [`Self::compose`], as the next two.
    prefills: Vec<(usize, usize)>,
    decodes: Vec<usize>,
    ranks: Vec<Rank>,
    pages: PageCount,
}

impl Scheduler {
    /// Without sequences; at most `running_max` will be admitted and not finished.
    pub(crate) fn new(running_max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            running: Vec::new(),
            running_max: running_max.max(1),
            turn: 0,
            prefills: Vec::new(),
            decodes: Vec::new(),
            ranks: Vec::new(),
            pages: PageCount::default(),
        }
    }

    /// Lets a sequence wait for admission.
    pub(crate) fn enqueue(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.rank, sequence);
    }

    /// How many wait, and how many hold state.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// How many hold state while their reader lags.
    pub(crate) fn paused(&self) -> usize {
        self.running.iter().filter(|sequence| !sequence.has_room()).count()
    }

    /// Pages of the running sequences, a shared one counted once.
    pub(crate) fn pages_running(&mut self, pool: &StatePool) -> usize {
        let tables = self.running.iter().filter_map(|sequence| sequence.state);
        self.pages.of(tables.filter_map(|id| pool.page_table(id).ok()), pool.pages_max())
    }

    /// Whether there is no sequence at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The running sequence of a [`Row`].
    pub(crate) fn running_mut(&mut self, index: usize) -> &mut Sequence {
        &mut self.running[index]
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let all = self.waiting.values().chain(&self.running);
        all.filter_map(|sequence| sequence.deadline).min()
    }

    /// Ends the sequences whose caller went away or said stop, or whose deadline passed.
    pub(crate) fn sweep(&mut self, memory: &mut Memory<'_>, now: Instant, counters: &mut Counters) {
        let over = |s: &Sequence| s.is_abandoned() || s.cut(now).is_some();
        let mut ended: Vec<Sequence> =
            self.waiting.extract_if(.., |_, sequence| over(sequence)).map(|(_, s)| s).collect();
        ended.extend(self.running.extract_if(.., |sequence| over(sequence)));
        for mut sequence in ended {
            sequence.release(memory, Parting::Done);
            match sequence.cut(now) {
                Some(reason) if !sequence.is_abandoned() => sequence.finish(reason, now, counters),
                _ => sequence.cancel(now, counters),
            }
        }
    }

    /// Moves waiting sequences to the running ones, in order, while their tokens so far and a page
    /// to go on fit the pool. The first that does not fit holds up those behind it, so that small
    /// requests cannot starve a large one. Calls `admitted` for each that is admitted for the first
    /// time.
    ///
    /// # Errors
    /// The device failed, and with it the sequence that was to be admitted.
    pub(crate) fn admit(
        &mut self,
        memory: &mut Memory<'_>,
        now: Instant,
        counters: &mut Counters,
        mut admitted: impl FnMut(),
    ) -> Result<(), StateError> {
        let mut started =
            self.running.len() + self.waiting.values().filter(|s| s.is_started()).count();
        let mut after = None;
        while let Some(rank) = self.next_admissible(after, started < self.running_max) {
            after = Some(rank);
            let tokens = self.waiting[&rank].tokens.len();
            let (pages, pages_max) =
                (memory.pool.layout().pages_for(tokens), memory.pool.pages_max());
            if pages > pages_max {
                // Only a sequence that was preempted grows out of the pool; others were refused.
                let mut sequence = self.waiting.remove(&rank).expect("it was just found");
                sequence.release(memory, Parting::Failed);
                let error = EngineError::OutOfPages { tokens, pages, pages_max };
                sequence.fail(error, now, counters);
                continue;
            }
            if self.awaits_another(rank, memory) {
                continue;
            }
            let state = match self.open(rank, memory, counters) {
                Ok(state) => state,
                Err(Shut::Reading) => continue,
                Err(Shut::NoRoom) => return Ok(()),
                Err(Shut::Never { free }) => {
                    let mut sequence = self.waiting.remove(&rank).expect("it was just found");
                    sequence.release(memory, Parting::Failed);
                    let error = EngineError::OutOfPages { tokens, pages, pages_max: free };
                    sequence.fail(error, now, counters);
                    continue;
                }
                Err(Shut::Broken(problem)) => {
                    let mut sequence = self.waiting.remove(&rank).expect("it was just found");
                    sequence.release(memory, Parting::Failed);
                    let error = broken(&sequence, &problem);
                    sequence.fail(error, now, counters);
                    return Err(problem);
                }
            };
            let mut sequence = self.waiting.remove(&rank).expect("it was just found");
            if !sequence.is_started() {
                started += 1;
                admitted();
            }
            sequence.admit(state, memory, now);
            self.running.push(sequence);
        }
        Ok(())
    }

    /// Opens the waiting sequence `rank`, if there is room for it.
    fn open(
        &mut self,
        rank: Rank,
        memory: &mut Memory<'_>,
        counters: &mut Counters,
    ) -> Result<SequenceId, Shut> {
        loop {
            let sequence = self.waiting.get_mut(&rank).expect("the caller has just found it");
            let Preparation::Ready { pages } = memory.prepare(sequence) else {
                return Err(Shut::Reading);
            };
            if self.make_room(memory, pages, counters) {
                let sequence = self.waiting.get_mut(&rank).expect("it waits still");
                let found = memory.found(&sequence.footing);
                match memory.open(sequence) {
                    Ok(state) => return Ok(state),
                    Err(error) if is_broken(&error) => return Err(Shut::Broken(error)),
                    // What was brought in has taken the room; less of it will be next time.
                    Err(_) if found > 0 && self.running.is_empty() => {
                        self.give_way(rank, memory);
                        continue;
                    }
                    Err(error) => tracing::debug!(%error, "no room where there was some"),
                }
            }
            // Where others run, theirs will come free.
            if !self.running.is_empty() {
                return Err(Shut::NoRoom);
            }
            if !self.give_way(rank, memory) {
                let free = memory.pool.pages_free();
                return Err(if memory.is_exporting() {
                    Shut::NoRoom
                } else {
                    Shut::Never { free }
                });
            }
        }
    }

    /// Has everybody who waits give up what they found for the waiting sequence `rank`, and that one
    /// a page of what it found if nobody else has anything. False if there is nothing left.
    fn give_way(&mut self, rank: Rank, memory: &mut Memory<'_>) -> bool {
        let others = self.waiting.iter_mut().filter(|(other, _)| **other != rank);
        let mut gave = false;
        for (_, sequence) in others.filter(|(_, sequence)| sequence.footing.is_held()) {
            memory.leave(&mut sequence.footing);
            gave = true;
        }
        gave || self.waiting.get_mut(&rank).is_some_and(|s| memory.resume_less(&mut s.footing))
    }

    /// Whether the waiting sequence does better to wait until a running one has computed what both
    /// begin with.
    fn awaits_another(&mut self, rank: Rank, memory: &Memory<'_>) -> bool {
        let waiting = &self.waiting[&rank];
        let mut running = self.running.iter_mut();
        running.any(|running| memory.meeting_point(waiting, running).is_some())
    }

    /// Has everybody who waits give up what they found, so that it can be evicted, or because a part
    /// of it was lost. They look again when their turn comes.
    pub(crate) fn forget_findings(&mut self, memory: &mut Memory<'_>) {
        self.waiting.values_mut().for_each(|sequence| memory.leave(&mut sequence.footing));
    }

    /// The first waiting sequence past `after` that could run now, apart from memory. One whose
    /// reader lags has to wait for it, and others may pass.
    fn next_admissible(&self, after: Option<Rank>, new_ones: bool) -> Option<Rank> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let admissible = |s: &Sequence| (new_ones || s.is_started()) && s.has_room();
        self.waiting.range((from, Unbounded)).find(|(_, s)| admissible(s)).map(|(rank, _)| *rank)
    }

    /// Sees to it that `pages` are free and one more to go on, by taking them from sequences whose
    /// reader lags where that helps.
    fn make_room(
        &mut self,
        memory: &mut Memory<'_>,
        pages: usize,
        counters: &mut Counters,
    ) -> bool {
        // What is remembered is not evicted in vain.
        if pages > memory.pool.pages_max() - self.pages_kept(memory) {
            return false;
        }
        loop {
            let pool = &memory.pool;
            let headroom = usize::from(pool.sequences() > 0);
            let slots = pool.layout().sequences_max - pool.sequences();
            if slots > 0 && memory.free_pages(pages + headroom) {
                return true;
            }
            let Some(paused) = self.last_running(|sequence| !sequence.has_room()) else {
                return false;
            };
            self.preempt(paused, memory, counters);
        }
    }

    /// Pages of the running sequences whose reader does not lag, a shared one counted once.
    fn pages_kept(&self, memory: &Memory<'_>) -> usize {
        let kept = self.running.iter().filter(|sequence| sequence.has_room());
        let tables = kept.filter_map(|s| s.state).filter_map(|id| memory.pool.page_table(id).ok());
        tables.flatten().collect::<std::collections::HashSet<_>>().len()
    }

    /// Composes the next step into `batch` and `rows`: a token of every sequence that decodes, and
    /// chunks of prompts that share what is left of `tokens_max` evenly.
    ///
    /// # Errors
    /// The device failed, and with it the sequence that was to go on; there is no step then.
    pub(crate) fn compose(
        &mut self,
        memory: &mut Memory<'_>,
        tokens_max: usize,
        (batch, rows): (&mut Batch, &mut Vec<Row>),
        now: Instant,
        counters: &mut Counters,
    ) -> Result<(), StateError> {
        batch.clear();
        rows.clear();
        self.reserve_decodes(memory, now, counters)?;
        let runnable = |s: &Sequence| s.has_room();
        self.prefills.clear();
        for (index, sequence) in self.running.iter().enumerate() {
            if sequence.remaining() > 1 && runnable(sequence) {
                self.prefills.push((sequence.remaining(), index));
            }
        }
        let kept = if self.prefills.is_empty() { 0 } else { tokens_max.div_ceil(PREFILL_SHARE) };
        let decodes_max = (tokens_max - kept).max(1);
        let mut decodes = std::mem::take(&mut self.decodes);
        decodes.clear();
        let running = self.running.iter().enumerate();
        let decoding = running.filter(|(_, s)| s.remaining() == 1 && runnable(s));
        decodes.extend(decoding.map(|(index, _)| index));
        let taken = decodes.len().min(decodes_max);
        if taken < decodes.len() {
            self.turn = (self.turn + taken) % decodes.len();
        }
        for place in 0..taken {
            let index = decodes[(self.turn + place) % decodes.len()];
            self.push_row(memory, (index, 1), batch, rows);
        }
        self.decodes = decodes;
        self.share_among_prefills(memory, tokens_max - taken, batch, rows);
        Ok(())
    }

    /// Shortest first, each gets an even share of what is left or what it needs: short prompts are
    /// done at once, and long ones take what those leave.
    fn share_among_prefills(
        &mut self,
        memory: &mut Memory<'_>,
        tokens: usize,
        batch: &mut Batch,
        rows: &mut Vec<Row>,
    ) {
        let mut prefills = std::mem::take(&mut self.prefills);
        prefills.sort_unstable();
        let mut left = tokens;
        for (place, &(remaining, index)) in prefills.iter().enumerate() {
            let share = left.div_ceil(prefills.len() - place);
            let chunk = remaining.min(share);
            if chunk == 0 {
                break;
            }
            left -= chunk;
            self.push_row(memory, (index, chunk), batch, rows);
        }
        self.prefills = prefills;
    }

    fn push_row(
        &mut self,
        memory: &mut Memory<'_>,
        (index, tokens): (usize, usize),
        batch: &mut Batch,
        rows: &mut Vec<Row>,
    ) {
        let sequence = &mut self.running[index];
        let state = sequence.state.expect("a running sequence has state");
        let samples = tokens == sequence.remaining() && sequence.keep.is_none();
        let from = sequence.computed;
        memory.emits(sequence, (batch.segments.len(), tokens), &mut batch.emits);
        batch.push(state, from, &sequence.tokens[from..from + tokens], samples);
        if samples {
            batch.uses.push(sequence.row_use());
        }
        rows.push(Row { running: index, tokens, samples });
    }

    /// Takes a page for each decoding sequence that needs one, the first in rank first; where there
    /// is none, the last in rank gives its own.
    fn reserve_decodes(
        &mut self,
        memory: &mut Memory<'_>,
        now: Instant,
        counters: &mut Counters,
    ) -> Result<(), StateError> {
        let decodes = |s: &Sequence| s.remaining() == 1 && s.has_room();
        let mut ranks = std::mem::take(&mut self.ranks);
        ranks.clear();
        ranks.extend(self.running.iter().filter(|s| decodes(s)).map(|s| s.rank));
        ranks.sort_unstable();
        for &rank in &ranks {
            // Gone if it was preempted for an earlier one.
            while let Some(index) = self.running.iter().position(|s| s.rank == rank) {
                let sequence = &self.running[index];
                let state = sequence.state.expect("a running sequence has state");
                match memory.pool.reserve(state, 1) {
                    Ok(()) => break,
                    Err(problem) if is_broken(&problem) => {
                        let error = broken(sequence, &problem);
                        self.end(index, memory, now, counters, Err(error));
                        return Err(problem);
                    }
                    Err(_) => {}
                }
                let (tokens, pages_max) = (sequence.tokens.len(), memory.pool.pages_max());
                let pages = memory.pool.layout().pages_for(tokens);
                if pages > pages_max {
                    let error = EngineError::OutOfPages { tokens, pages, pages_max };
                    self.end(index, memory, now, counters, Err(error));
                    break;
                }
                if memory.free_pages(1) {
                    continue;
                }
                if self.waiting.values().any(|s| s.footing.is_held()) {
                    self.forget_findings(memory);
                    continue;
                }
                let paused = self.last_running(|s| !s.has_room());
                let victim = paused.or_else(|| self.last_running(|_| true)).unwrap_or(index);
                self.preempt(victim, memory, counters);
            }
        }
        self.ranks = ranks;
        Ok(())
    }

    /// The running sequence that is last in rank among those that `may` be it.
    fn last_running(&self, may: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let candidates = self.running.iter().enumerate().filter(|(_, sequence)| may(sequence));
        candidates.max_by_key(|(_, sequence)| sequence.rank).map(|(index, _)| index)
    }

    fn preempt(&mut self, index: usize, memory: &mut Memory<'_>, counters: &mut Counters) {
        let mut sequence = self.running.remove(index);
        tracing::debug!(request_id = %sequence.request_id, "preempted");
        counters.preemptions += 1;
        sequence.meter.preempted();
        sequence.release(memory, Parting::Paused);
        self.enqueue(sequence);
    }

    /// Ends the running sequence at `index`.
    pub(crate) fn end(
        &mut self,
        index: usize,
        memory: &mut Memory<'_>,
        now: Instant,
        counters: &mut Counters,
        outcome: Result<FinishReason, EngineError>,
    ) {
        let mut sequence = self.running.remove(index);
        sequence.release(memory, if outcome.is_ok() { Parting::Done } else { Parting::Failed });
        match outcome {
            Ok(reason) => sequence.finish(reason, now, counters),
            Err(error) => sequence.fail(error, now, counters),
        }
    }

    /// Every sequence, with what it holds.
    pub(crate) fn into_sequences(self) -> impl Iterator<Item = Sequence> {
        self.waiting.into_values().chain(self.running)
    }

    /// Fails every sequence with the error that is its own.
    pub(crate) fn fail_all(
        &mut self,
        memory: &mut Memory<'_>,
        parting: Parting,
        now: Instant,
        counters: &mut Counters,
        error: impl Fn(&Sequence) -> EngineError,
    ) {
        let waiting = std::mem::take(&mut self.waiting).into_values();
        for mut sequence in waiting.chain(self.running.drain(..)) {
            sequence.release(memory, parting);
            let error = error(&sequence);
            sequence.fail(error, now, counters);
        }
    }
}

/// Whether the device failed, rather than that there is no room.
fn is_broken(error: &StateError) -> bool {
    matches!(error, StateError::Device(_) | StateError::Copy(_))
}

fn broken(sequence: &Sequence, problem: &StateError) -> EngineError {
    EngineError::Forward { model: sequence.model.clone(), message: problem.to_string() }
}
