//! Points: recurrent states that a holder outside of all sequences keeps, for sequences to start
//! from. Who keeps which, and for what prefix, is the business of a cache.

use std::fmt;

use super::{SequenceId, StateError, StatePool, recurrent};

/// A recurrent slot held outside of any sequence; an error, never another's state, once released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PointId {
    pub(super) slot: u32,
    /// How many points the slot had been when this one was taken.
    pub(super) generation: u32,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "point {}.{}", self.slot, self.generation)
    }
}

impl StatePool {
    /// How many points there may be; 0 without recurrent layers.
    pub fn points_max(&self) -> usize {
        self.layout.points_max
    }

    /// How many points are held.
    pub fn points_used(&self) -> usize {
        self.recurrent_slots.points()
    }

    /// How many points can be taken.
    pub fn points_free(&self) -> usize {
        self.points_max() - self.points_used()
    }

    /// Takes a point, whose state is unspecified until a step emits one into it or
    /// [`write_point`](Self::write_point) does.
    ///
    /// # Errors
    /// [`StateError::OutOfPoints`].
    pub fn take_point(&mut self) -> Result<PointId, StateError> {
        self.recurrent_slots.take_point()
    }

    /// Lets a point go; the id is an error from then on.
    ///
    /// # Errors
    /// [`StateError::NotAPoint`].
    pub fn release_point(&mut self, point: PointId) -> Result<(), StateError> {
        self.recurrent_slots.release_point(point)
    }

    /// Takes a point and copies the recurrent state of a sequence to it, as of its last token.
    ///
    /// # Errors
    /// [`StateError::NotOpen`], [`StateError::OutOfPoints`], or a slot that could not be copied.
    pub fn save_point(&mut self, id: SequenceId) -> Result<PointId, StateError> {
        let from = self.sequence(id)?.recurrent;
        let point = self.recurrent_slots.take_point()?;
        if let Err(error) = recurrent::copy_slot(&self.recurrent, from, point.slot) {
            self.recurrent_slots.release_point(point)?;
            return Err(error.into());
        }
        Ok(point)
    }

    /// Closes a sequence as [`close`](Self::close) does, but keeps its recurrent state as a point,
    /// without a copy.
    ///
    /// # Errors
    /// [`StateError::NotOpen`], [`StateError::OutOfPoints`]; the sequence stays open then.
    pub fn close_to_point(&mut self, id: SequenceId) -> Result<PointId, StateError> {
        let slot = self.sequence(id)?.recurrent;
        self.recurrent_slots.check_room()?;
        self.vacate(id)?;
        self.recurrent_slots.hand_over(slot)
    }

    /// The slot of a point in every [`LayerRecurrent`](super::LayerRecurrent).
    ///
    /// # Errors
    /// [`StateError::NotAPoint`].
    pub fn point_slot(&self, point: PointId) -> Result<u32, StateError> {
        self.recurrent_slots.point(point)
    }
}
