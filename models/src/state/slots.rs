//! Which recurrent slots are free, which belong to open sequences and which are points. Only
//! numbers: the bytes behind a slot are `recurrent.rs`.

use super::{PointId, StateError};

/// Whose a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// On the free list.
    Nobody,
    /// The open sequence of this number.
    Sequence(u32),
    /// A holder of its [`PointId`].
    Point,
}

#[derive(Debug)]
struct Slot {
    owner: Owner,
    /// How many points the slot has been.
    generation: u32,
}

/// An owner for every slot, and a free list.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Free slots; the last one is taken next, so that memory touched before is used again first.
    free: Vec<u32>,
    points: usize,
    points_max: usize,
}

impl Slots {
    /// Free slots for `sequences_max` sequences and `points_max` points.
    pub(super) fn new(sequences_max: u32, points_max: u32) -> Self {
        let all = 0..sequences_max + points_max;
        let slot = |_| Slot { owner: Owner::Nobody, generation: 0 };
        Self {
            slots: all.clone().map(slot).collect(),
            free: all.rev().collect(),
            points: 0,
            points_max: points_max as usize,
        }
    }

    /// How many slots are points.
    pub(super) fn points(&self) -> usize {
        self.points
    }

    /// The slot that [`take`](Self::take) will give next.
    pub(super) fn next(&self) -> u32 {
        *self.free.last().expect("sequences and points have a slot each, and both are bounded")
    }

    /// Takes a free slot for sequence `sequence`, of which there are as many as was said.
    pub(super) fn take(&mut self, sequence: u32) -> u32 {
        let slot = self.next();
        self.free.pop();
        self.slots[slot as usize].owner = Owner::Sequence(sequence);
        slot
    }

    /// Gives the slot of a sequence back.
    pub(super) fn release(&mut self, slot: u32) {
        self.slots[slot as usize].owner = Owner::Nobody;
        self.free.push(slot);
    }

    /// Refuses if there are as many points as there may be.
    pub(super) fn check_room(&self) -> Result<(), StateError> {
        match self.points < self.points_max {
            true => Ok(()),
            false => Err(StateError::OutOfPoints { max: self.points_max }),
        }
    }

    /// Makes a free slot a point.
    pub(super) fn take_point(&mut self) -> Result<PointId, StateError> {
        self.check_room()?;
        let slot = self.next();
        self.free.pop();
        self.hand_over(slot)
    }

    /// Makes the slot of a sequence a point.
    pub(super) fn hand_over(&mut self, slot: u32) -> Result<PointId, StateError> {
        self.check_room()?;
        let entry = &mut self.slots[slot as usize];
        entry.owner = Owner::Point;
        self.points += 1;
        Ok(PointId { slot, generation: entry.generation })
    }

    /// Frees a point.
    pub(super) fn release_point(&mut self, point: PointId) -> Result<(), StateError> {
        let slot = self.point(point)?;
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        self.points -= 1;
        self.release(slot);
        Ok(())
    }

    /// The slot of a point.
    pub(super) fn point(&self, point: PointId) -> Result<u32, StateError> {
        self.slots
            .get(point.slot as usize)
            .filter(|slot| slot.generation == point.generation && slot.owner == Owner::Point)
            .map(|_| point.slot)
            .ok_or(StateError::NotAPoint(point))
    }

    /// Compares the owners with `sequences`, the slot of every open sequence, and with the free list.
    pub(super) fn check(&self, sequences: &[(u32, u32)]) -> Result<(), String> {
        for &(sequence, slot) in sequences {
            if self.slots[slot as usize].owner != Owner::Sequence(sequence) {
                return Err(format!("recurrent slot {slot} is not that of sequence {sequence}"));
            }
        }
        let owned = |is: fn(Owner) -> bool| self.slots.iter().filter(|s| is(s.owner)).count();
        let counts = [
            (sequences.len(), owned(|owner| matches!(owner, Owner::Sequence(_)))),
            (self.points, owned(|owner| owner == Owner::Point)),
            (self.free.len(), owned(|owner| owner == Owner::Nobody)),
        ];
        if counts.iter().any(|(counted, found)| counted != found) || self.points > self.points_max {
            return Err(format!("recurrent slots of sequences, points, nobody: {counts:?}"));
        }
        let mut free = self.free.clone();
        free.sort_unstable();
        free.dedup();
        let nobody = |slot: &u32| self.slots[*slot as usize].owner == Owner::Nobody;
        match free.len() == self.free.len() && free.iter().all(nobody) {
            true => Ok(()),
            false => Err("the free list of recurrent slots is wrong".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_point_is_stale_also_when_its_slot_is_a_point_again() {
        let mut slots = Slots::new(1, 1);
        let first = slots.take_point().unwrap();
        assert!(matches!(slots.take_point(), Err(StateError::OutOfPoints { max: 1 })));
        slots.release_point(first).unwrap();
        assert!(matches!(slots.point(first), Err(StateError::NotAPoint(id)) if id == first));
        let second = slots.take_point().unwrap();
        assert_eq!(slots.point(second).unwrap(), first.slot);
        assert!(slots.release_point(first).is_err());
        slots.release_point(second).unwrap();
        slots.check(&[]).unwrap();
    }

    #[test]
    fn the_slot_of_a_sequence_is_no_point_until_it_is_handed_over() {
        let mut slots = Slots::new(1, 1);
        let point = slots.take_point().unwrap();
        slots.release_point(point).unwrap();
        let slot = slots.take(0);
        assert_eq!(slot, point.slot);
        let forged = PointId { slot, generation: 1 };
        assert!(slots.point(forged).is_err());
        assert_eq!(slots.hand_over(slot).unwrap(), forged);
        assert_eq!(slots.points(), 1);
        slots.check(&[]).unwrap();
    }

    #[test]
    fn the_check_notices_a_wrong_owner() {
        let mut slots = Slots::new(2, 0);
        let slot = slots.take(1);
        slots.check(&[(1, slot)]).unwrap();
        assert!(slots.check(&[]).is_err());
        assert!(slots.check(&[(0, slot)]).is_err());
        slots.free.push(slot);
        assert!(slots.check(&[(1, slot)]).is_err());
    }
}
