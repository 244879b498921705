//! Sequences that begin with a prefix computed before.

use super::transfer::write_slot;
use super::{PointId, SequenceId, StateError, StatePool, recurrent};

/// The state of the first tokens of a sequence, as others hold it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prefix<'a> {
    /// Tokens it stands for.
    pub len: usize,
    /// Held pages, in order of position, with all of these tokens. The last one may have more: a
    /// sequence that goes on in the middle of it gets a copy.
    pub pages: &'a [u32],
    /// Recurrent state after the last of the tokens.
    pub point: PrefixPoint<'a>,
}

/// Where the recurrent state of a [`Prefix`] lies.
#[derive(Debug, Clone, Copy, Default)]
pub enum PrefixPoint<'a> {
    /// Nowhere: the model has no recurrent layers, or the prefix no tokens.
    #[default]
    None,
    /// In a point of the pool, which stays as it is.
    Slot(PointId),
    /// In memory, as [`StatePool::read_point`] wrote it.
    Bytes(&'a [u8]),
}

impl StatePool {
    /// Opens a sequence with the tokens of a prefix: shares its pages and copies its recurrent state.
    ///
    /// # Errors
    /// [`StateError::Prefix`] for pages that are not those of `len` tokens, a point that is missing or
    /// one too many; [`StateError::PageNotHeld`], [`StateError::PageReserved`],
    /// [`StateError::NotAPoint`], [`StateError::Bytes`], [`StateError::OutOfSequences`]; a slot that
    /// could not be written.
    pub fn open_at(&mut self, prefix: Prefix<'_>) -> Result<SequenceId, StateError> {
        let Prefix { len, pages, point } = prefix;
        let expected = self.layout.pages_for(len);
        if pages.len() != expected {
            let expected = format!("{expected} pages for {len} tokens");
            return Err(StateError::Prefix { expected, found: pages.len().to_string() });
        }
        let needed = len > 0 && self.layout.recurrent.is_some();
        if needed == matches!(point, PrefixPoint::None) {
            let (expected, found) = if needed { ("a", "none") } else { ("no", "one") };
            let expected = format!("{expected} recurrent state for {len} tokens of this model");
            return Err(StateError::Prefix { expected, found: found.into() });
        }
        self.check_shareable(pages)?;
        let table = pages.to_vec();
        match point {
            PrefixPoint::None => {
                self.occupy(len, table, |layers, slot| Ok(recurrent::clear_slot(layers, slot)?))
            }
            PrefixPoint::Slot(point) => {
                let from = self.point_slot(point)?;
                let copy = |layers: &[_], slot| Ok(recurrent::copy_slot(layers, from, slot)?);
                self.occupy(len, table, copy)
            }
            PrefixPoint::Bytes(data) => {
                self.occupy(len, table, |layers, slot| write_slot(layers, slot, data))
            }
        }
    }
}
