//! The pool against a model that keeps every sequence and every held prefix as a plain list of what was
//! written, in random histories, with recurrent layers and without.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// One step of a random history; indices choose among what there is.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Open,
    Extend(Index, usize),
    Reserve(Index, usize),
    Fork(Index),
    Truncate(Index, usize),
    Close(Index),
    /// Holds what a sequence has.
    Hold(Index),
    /// Holds what a sequence has, and closes it.
    CloseAndHold(Index),
    Drop(Index),
    /// Opens a sequence at a held prefix, at so many tokens less where that can be.
    Resume(Index, usize),
    /// Copies a held prefix out of the pool and lets it go.
    PageOut(Index),
    /// Brings it back.
    PageIn(Index),
    /// Opens a sequence with what is outside of the pool.
    ResumeStored(Index),
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    let which = any::<Index>;
    prop_oneof![
        1 => Just(Action::Open),
        4 => (which(), 0..3 * PAGE).prop_map(|(which, n)| Action::Extend(which, n)),
        1 => (which(), 0..2 * PAGE).prop_map(|(which, n)| Action::Reserve(which, n)),
        1 => which().prop_map(Action::Fork),
        1 => (which(), 0..4 * PAGE).prop_map(|(which, n)| Action::Truncate(which, n)),
        1 => which().prop_map(Action::Close),
        2 => which().prop_map(Action::Hold),
        1 => which().prop_map(Action::CloseAndHold),
        2 => which().prop_map(Action::Drop),
        2 => (which(), 0..2 * PAGE).prop_map(|(which, n)| Action::Resume(which, n)),
        1 => which().prop_map(Action::PageOut),
        1 => which().prop_map(Action::PageIn),
        1 => which().prop_map(Action::ResumeStored),
    ]
}

/// A prefix that is held in the pool.
#[derive(Debug)]
struct Held {
    values: Vec<f32>,
    pages: Vec<u32>,
    point: Option<PointId>,
}

/// A prefix outside of it.
#[derive(Debug)]
struct Stored {
    values: Vec<f32>,
    pages: Vec<Vec<u8>>,
    point: Option<Vec<u8>>,
}

/// The pool, and what should be in it.
struct World {
    pool: StatePool,
    sequences: BTreeMap<SequenceId, Vec<f32>>,
    held: Vec<Held>,
    stored: Vec<Stored>,
    next: f32,
}

/// The recurrent state that goes with a list of values.
fn state(values: &[f32]) -> f32 {
    values.last().copied().unwrap_or(0.0)
}

impl World {
    fn new(pool: StatePool) -> Self {
        Self { pool, sequences: BTreeMap::new(), held: vec![], stored: vec![], next: 1.0 }
    }

    fn is_recurrent(&self) -> bool {
        self.pool.layout().recurrent.is_some()
    }

    /// Counts that no failed action changes.
    fn counts(&self) -> [usize; 3] {
        [self.pool.pages_free(), self.pool.sequences(), self.pool.points_used()]
    }

    fn apply(&mut self, action: &Action) {
        let before = self.counts();
        if let Err(error) = self.try_apply(action) {
            assert_eq!(before, self.counts(), "{action:?}: {error}");
        }
    }

    fn try_apply(&mut self, action: &Action) -> Result<(), StateError> {
        match action {
            Action::Open => {
                let id = self.pool.open()?;
                self.sequences.insert(id, vec![]);
                Ok(())
            }
            Action::Extend(which, _)
            | Action::Reserve(which, _)
            | Action::Fork(which)
            | Action::Truncate(which, _)
            | Action::Close(which)
            | Action::Hold(which)
            | Action::CloseAndHold(which) => {
                let ids: Vec<_> = self.sequences.keys().copied().collect();
                match ids.is_empty() {
                    true => Ok(()),
                    false => self.apply_to_sequence(*which.get(&ids), action),
                }
            }
            Action::Drop(which) | Action::Resume(which, _) | Action::PageOut(which) => {
                match self.held.len() {
                    0 => Ok(()),
                    count => self.apply_to_held(which.index(count), action),
                }
            }
            Action::PageIn(which) | Action::ResumeStored(which) => match self.stored.len() {
                0 => Ok(()),
                count => self.apply_to_stored(which.index(count), action),
            },
        }
    }

    fn apply_to_sequence(&mut self, id: SequenceId, action: &Action) -> Result<(), StateError> {
        match *action {
            Action::Extend(_, tokens) => {
                let values: Vec<f32> = (0..tokens).map(|n| self.next + n as f32).collect();
                self.next += tokens as f32;
                extend(&mut self.pool, id, &values)?;
                let all = self.sequences.get_mut(&id).unwrap();
                all.extend(values);
                if self.pool.layout().recurrent.is_some() {
                    fill(&self.pool, self.pool.recurrent_slot(id)?, state(all));
                }
            }
            Action::Reserve(_, tokens) => self.pool.reserve(id, tokens)?,
            Action::Fork(_) => {
                let fork = self.pool.fork(id)?;
                self.sequences.insert(fork, self.sequences[&id].clone());
            }
            Action::Truncate(_, len) => {
                self.pool.truncate(id, len)?;
                self.sequences.get_mut(&id).unwrap().truncate(len);
            }
            Action::Close(_) => {
                self.pool.close(id)?;
                self.sequences.remove(&id);
            }
            Action::Hold(_) => self.hold(id, false)?,
            Action::CloseAndHold(_) => self.hold(id, true)?,
            _ => unreachable!("not of a sequence"),
        }
        Ok(())
    }

    fn hold(&mut self, id: SequenceId, close: bool) -> Result<(), StateError> {
        let values = self.sequences[&id].clone();
        let pages = self.pool.page_table(id)?[..values.len().div_ceil(PAGE)].to_vec();
        self.pool.share_pages(&pages)?;
        let point = match (self.is_recurrent(), close) {
            (true, true) => self.pool.close_to_point(id).map(Some),
            (true, false) => self.pool.save_point(id).map(Some),
            (false, true) => self.pool.close(id).map(|()| None),
            (false, false) => Ok(None),
        };
        let point = point.inspect_err(|_| self.pool.release_pages(&pages).unwrap())?;
        if close {
            self.sequences.remove(&id);
        }
        self.held.push(Held { values, pages, point });
        Ok(())
    }

    fn apply_to_held(&mut self, index: usize, action: &Action) -> Result<(), StateError> {
        if let Action::Resume(_, less) = *action {
            let Held { values, pages, point } = &self.held[index];
            let less = if self.is_recurrent() { 0 } else { less };
            let len = values.len().saturating_sub(less);
            let point = match point {
                Some(point) if len > 0 => PrefixPoint::Slot(*point),
                _ => PrefixPoint::None,
            };
            let pages = &pages[..len.div_ceil(PAGE)];
            let id = self.pool.open_at(Prefix { len, pages, point })?;
            self.sequences.insert(id, values[..len].to_vec());
            return Ok(());
        }
        let held = self.held.swap_remove(index);
        if let Action::PageOut(_) = action {
            let stored = self.copy_out(&held);
            self.stored.push(stored);
        }
        self.pool.release_pages(&held.pages)?;
        held.point.map_or(Ok(()), |point| self.pool.release_point(point))
    }

    fn copy_out(&self, held: &Held) -> Stored {
        let tokens = |(index, page): (usize, &u32)| (*page, held.values.len() - index * PAGE);
        let wanted: Vec<_> = held.pages.iter().enumerate().map(tokens).collect();
        let mut pages = vec![vec![7; self.pool.layout().bytes_per_page() as usize]; wanted.len()];
        let mut blocks: Vec<_> = pages.iter_mut().map(Vec::as_mut_slice).collect();
        self.pool.read_pages(&wanted, &mut blocks).unwrap();
        let point = held.point.map(|point| {
            let mut bytes = vec![7; self.pool.layout().bytes_per_sequence() as usize];
            self.pool.read_point(point, &mut bytes).unwrap();
            bytes
        });
        Stored { values: held.values.clone(), pages, point }
    }

    fn apply_to_stored(&mut self, index: usize, action: &Action) -> Result<(), StateError> {
        let Stored { values, pages: bytes, point } = &self.stored[index];
        let pages = self.pool.take_pages(bytes.len())?;
        let blocks: Vec<_> = bytes.iter().map(Vec::as_slice).collect();
        self.pool.write_pages(&pages, &blocks)?;
        if let Action::ResumeStored(_) = action {
            let point = match point {
                Some(bytes) if !values.is_empty() => PrefixPoint::Bytes(bytes),
                _ => PrefixPoint::None,
            };
            let opened = self.pool.open_at(Prefix { len: values.len(), pages: &pages, point });
            self.pool.release_pages(&pages)?;
            self.sequences.insert(opened?, values.clone());
            return Ok(());
        }
        let taken = point.as_ref().map(|_| self.pool.take_point()).transpose();
        let taken = taken.inspect_err(|_| self.pool.release_pages(&pages).unwrap())?;
        if let (Some(bytes), Some(taken)) = (point, taken) {
            self.pool.write_point(taken, bytes)?;
        }
        let Stored { values, .. } = self.stored.swap_remove(index);
        self.held.push(Held { values, pages, point: taken });
        Ok(())
    }

    /// Everything reads as it was written, and nothing else is held.
    fn check(&self) -> Result<(), TestCaseError> {
        self.pool.check_invariants().map_err(TestCaseError::fail)?;
        let mut pages = BTreeSet::<u32>::new();
        for (&id, values) in &self.sequences {
            prop_assert_eq!(&read(&self.pool, id), values);
            if self.is_recurrent() {
                let slot = self.pool.recurrent_slot(id).unwrap();
                prop_assert_eq!(filled(&self.pool, slot), state(values));
            }
            pages.extend(self.pool.page_table(id).unwrap());
        }
        for held in &self.held {
            prop_assert_eq!(values_of(&self.copy_out(held)), &held.values[..]);
            if let Some(point) = held.point {
                let slot = self.pool.point_slot(point).unwrap();
                prop_assert_eq!(filled(&self.pool, slot), state(&held.values));
            }
            pages.extend(&held.pages);
        }
        prop_assert_eq!(self.pool.sequences(), self.sequences.len());
        prop_assert_eq!(self.pool.pages_used(), pages.len());
        let points = self.held.iter().filter(|held| held.point.is_some()).count();
        prop_assert_eq!(self.pool.points_used(), points);
        Ok(())
    }
}

/// The values that the bytes of pages say; whatever is behind them must be zero.
fn values_of(stored: &Stored) -> Vec<f32> {
    let mut values = Vec::new();
    for bytes in &stored.pages {
        let elements =
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
        // Of four blocks of two heads each, those of the second layer.
        let blocks: Vec<f32> = elements.skip(4 * PAGE).collect();
        let [keys, negative] = [&blocks[..PAGE], &blocks[PAGE..2 * PAGE]];
        assert!(keys.iter().zip(negative).all(|(key, negative)| *key == -negative));
        assert_eq!(blocks[..2 * PAGE], blocks[2 * PAGE..]);
        values.extend(keys);
    }
    let behind = values.split_off(stored.values.len());
    assert!(behind.iter().all(|value| *value == 0.0), "{behind:?}");
    values
}

/// Plays a history, then lets everything go.
pub(super) fn play(pool: StatePool, actions: &[Action]) -> Result<(), TestCaseError> {
    let mut world = World::new(pool);
    for action in actions {
        world.apply(action);
        world.check()?;
    }
    for &id in world.sequences.keys() {
        world.pool.close(id).unwrap();
    }
    for held in &world.held {
        world.pool.release_pages(&held.pages).unwrap();
        held.point.into_iter().for_each(|point| world.pool.release_point(point).unwrap());
    }
    prop_assert_eq!((world.pool.pages_free(), world.pool.points_used()), (PAGES, 0));
    world.pool.check_invariants().map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn everybody_reads_what_they_wrote_whatever_the_others_do(
        actions in prop::collection::vec(action(), 1..100)
    ) {
        play(pool(), &actions)?;
    }

    #[test]
    fn everybody_reads_what_they_wrote_with_recurrent_states_too(
        actions in prop::collection::vec(action(), 1..100)
    ) {
        play(hybrid(), &actions)?;
    }
}
