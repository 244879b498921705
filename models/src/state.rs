//! What a sequence carries from step to step: pages of attention keys and values, and a slot of
//! recurrent state.
//!
//! The pool owns the pages of all sequences of one model. A sequence holds a page table; pages are
//! counted references, so that sequences which share a prefix can share its pages. Others can hold
//! pages too (`holders.rs`), and recurrent states (`points.rs`), copy them out and in (`transfer.rs`)
//! and open sequences with them (`prefix.rs`). The pool knows nothing of tokens, requests or a cache.

pub(crate) mod bytes;
mod check;
mod error;
mod holders;
mod kv;
mod layout;
mod pages;
mod points;
mod prefix;
mod recurrent;
mod slots;
#[cfg(test)]
mod tests;
mod transfer;

use std::fmt;

use candle_core::Device;
use sconce_kernels::BlockOrder;
use sconce_kernels::gpu::HostBuffer;

pub use self::error::StateError;
pub use self::kv::LayerKv;
pub use self::layout::{AttentionGroup, PAGE_TOKENS, RecurrentGroup, StateLayout};
use self::pages::Pages;
pub use self::points::PointId;
pub use self::prefix::{Prefix, PrefixPoint};
pub use self::recurrent::LayerRecurrent;
use self::slots::Slots;
pub(crate) use self::transfer::STATE_FORMAT;

/// Handle of an open sequence; an error, never another's state, once it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    slot: u32,
    /// How often the slot had been closed when this sequence was opened.
    generation: u32,
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}.{}", self.slot, self.generation)
    }
}

/// The state of one open sequence.
#[derive(Debug)]
struct Sequence {
    /// Tokens evaluated so far.
    len: usize,
    /// Page `i` holds the tokens from `i * page_tokens`; pages past `len` are a reservation.
    table: Vec<u32>,
    /// Slot of its recurrent state; the sequence has one also where that has no layers.
    recurrent: u32,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    sequence: Option<Sequence>,
}

/// Pages, page tables and the tensors behind them.
///
/// Room is reserved before it is written, all or nothing, so that running out of memory is an error
/// of one request before a step and never in the middle of one.
#[derive(Debug)]
pub struct StatePool {
    layout: StateLayout,
    pages: Pages,
    slots: Vec<Slot>,
    /// Slots without a sequence; the last one is taken next.
    free_slots: Vec<u32>,
    kv: Vec<LayerKv>,
    recurrent_slots: Slots,
    recurrent: Vec<LayerRecurrent>,
    /// In which order pages hold what they do.
    order: BlockOrder,
    device: Device,
    /// See [`lose_device`](StatePool::lose_device).
    lost: bool,
}

impl StatePool {
    /// An empty pool on `device`.
    ///
    /// # Errors
    /// A layout with a zero or a count above `u32::MAX`, or a device that cannot allocate.
    pub fn new(layout: StateLayout, device: &Device) -> Result<Self, StateError> {
        let [pages_max, sequences_max, points_max] = layout.check()?;
        if device.is_cpu() {
            kv::probe(layout.bytes_max())?;
        }
        let kv = kv::allocate(&layout, device)?;
        let slots = layout.sequences_max + layout.points_max;
        let recurrent = recurrent::allocate(layout.recurrent, slots, device)?;
        Ok(Self {
            pages: Pages::new(pages_max),
            slots: (0..sequences_max).map(|_| Slot::default()).collect(),
            free_slots: (0..sequences_max).rev().collect(),
            kv,
            recurrent_slots: Slots::new(sequences_max, points_max),
            recurrent,
            layout,
            order: BlockOrder::of(device),
            device: device.clone(),
            lost: false,
        })
    }

    /// The shape of the pool.
    pub fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// Memory of the host for `len` bytes of state, to and from which the pool's device copies as
    /// quickly as it can.
    pub fn host_buffer(&self, len: usize) -> HostBuffer {
        HostBuffer::new(&self.device, len)
    }

    /// Opens an empty sequence; it holds no page.
    ///
    /// # Errors
    /// [`StateError::OutOfSequences`], or a slot that could not be cleared.
    pub fn open(&mut self) -> Result<SequenceId, StateError> {
        self.occupy(0, Vec::new(), |layers, slot| Ok(recurrent::clear_slot(layers, slot)?))
    }

    /// Opens a sequence with the tokens of `id`, sharing its pages and copying its recurrent state. A
    /// reservation is not shared, and whichever of the two goes on in the middle of a page gets a
    /// copy of it with its next [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// [`StateError::NotOpen`], [`StateError::OutOfSequences`], or a slot that could not be copied.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, StateError> {
        let source = self.sequence(id)?;
        let (len, held) = (source.len, source.len.div_ceil(self.layout.page_tokens));
        let (table, from) = (source.table[..held].to_vec(), source.recurrent);
        self.occupy(len, table, |layers, slot| Ok(recurrent::copy_slot(layers, from, slot)?))
    }

    /// Makes room for `tokens` more tokens after those the sequence has, counting what was reserved
    /// before: all the pages, or an error and no change.
    ///
    /// # Errors
    /// [`StateError::NotOpen`], [`StateError::OutOfPages`], or a page that could not be copied.
    pub fn reserve(&mut self, id: SequenceId, tokens: usize) -> Result<(), StateError> {
        let needed = self.pages_to_reserve(id, tokens)?;
        if needed > self.pages.free() {
            return Err(StateError::OutOfPages {
                needed,
                free: self.pages.free(),
                max: self.layout.pages_max,
            });
        }
        let mut added = needed;
        if let Some((index, shared)) = self.shared_tail(self.sequence(id)?).filter(|_| tokens > 0) {
            let copy = self.pages.take().expect("needed pages were just counted as free");
            let copied = self.check_device();
            let copied = copied.and_then(|()| Ok(kv::copy_page(&self.kv, shared, copy)?));
            if let Err(error) = copied {
                self.pages.release(copy);
                return Err(error);
            }
            self.pages.release(shared);
            self.sequence_mut(id)?.table[index] = copy;
            added -= 1;
        }
        for _ in 0..added {
            let page = self.pages.take().expect("needed pages were just counted as free");
            self.sequence_mut(id)?.table.push(page);
        }
        Ok(())
    }

    /// How many free pages `reserve(id, tokens)` would take.
    ///
    /// # Errors
    /// [`StateError::NotOpen`].
    pub fn pages_to_reserve(&self, id: SequenceId, tokens: usize) -> Result<usize, StateError> {
        let sequence = self.sequence(id)?;
        if tokens == 0 {
            return Ok(0);
        }
        let end = sequence.len.saturating_add(tokens).div_ceil(self.layout.page_tokens);
        let copied = usize::from(self.shared_tail(sequence).is_some());
        Ok(end.saturating_sub(sequence.table.len()) + copied)
    }

    /// How many tokens can be added without another reservation.
    ///
    /// # Errors
    /// [`StateError::NotOpen`].
    pub fn room(&self, id: SequenceId) -> Result<usize, StateError> {
        let sequence = self.sequence(id)?;
        if self.shared_tail(sequence).is_some() {
            return Ok(0);
        }
        Ok(sequence.table.len() * self.layout.page_tokens - sequence.len)
    }

    /// Tokens the sequence's state stands for.
    ///
    /// # Errors
    /// [`StateError::NotOpen`].
    pub fn len(&self, id: SequenceId) -> Result<usize, StateError> {
        Ok(self.sequence(id)?.len)
    }

    /// Counts `tokens` more tokens as evaluated; a model calls it after it wrote their keys and
    /// values.
    ///
    /// # Errors
    /// [`StateError::NotOpen`], [`StateError::NoRoom`].
    pub fn advance(&mut self, id: SequenceId, tokens: usize) -> Result<(), StateError> {
        let room = self.room(id)?;
        if tokens > room {
            return Err(StateError::NoRoom { sequence: id, tokens, room });
        }
        self.sequence_mut(id)?.len += tokens;
        Ok(())
    }

    /// Forgets all tokens from `len` on and any reservation, and lets their pages go.
    ///
    /// # Errors
    /// [`StateError::NotOpen`]; [`StateError::Lengthen`] if the sequence is shorter than `len`;
    /// [`StateError::Recurrent`] if it has recurrent state and more tokens, unless all are forgotten.
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), StateError> {
        let (found, slot) = (self.len(id)?, self.recurrent_slot(id)?);
        if len > found {
            return Err(StateError::Lengthen { sequence: id, requested: len, len: found });
        }
        if len == 0 {
            // Also for a sequence without tokens: a step that failed may have left something.
            recurrent::clear_slot(&self.recurrent, slot)?;
        } else if len < found && !self.recurrent.is_empty() {
            return Err(StateError::Recurrent { sequence: id, requested: len, len: found });
        }
        self.release_from(id, len)
    }

    /// Lets go all pages past `len` tokens, at most as many as the sequence has.
    fn release_from(&mut self, id: SequenceId, len: usize) -> Result<(), StateError> {
        let held = len.div_ceil(self.layout.page_tokens);
        let sequence = self.sequence_mut(id)?;
        sequence.len = len;
        let dropped = sequence.table.split_off(held);
        // Backwards, so that the lowest page is the next to be taken.
        for page in dropped.into_iter().rev() {
            self.pages.release(page);
        }
        Ok(())
    }

    /// Closes a sequence and lets its pages go; the id is an error from then on.
    ///
    /// # Errors
    /// [`StateError::NotOpen`].
    pub fn close(&mut self, id: SequenceId) -> Result<(), StateError> {
        let recurrent = self.sequence(id)?.recurrent;
        self.vacate(id)?;
        self.recurrent_slots.release(recurrent);
        Ok(())
    }

    /// Closes a sequence but for its recurrent slot.
    fn vacate(&mut self, id: SequenceId) -> Result<(), StateError> {
        self.release_from(id, 0)?;
        let slot = &mut self.slots[id.slot as usize];
        slot.sequence = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free_slots.push(id.slot);
        Ok(())
    }

    /// The sequence's pages in order of position, those reserved included.
    ///
    /// # Errors
    /// [`StateError::NotOpen`].
    pub fn page_table(&self, id: SequenceId) -> Result<&[u32], StateError> {
        Ok(&self.sequence(id)?.table)
    }

    /// Keys and values of attention layer `layer`, counted through all groups; `None` past the last.
    pub fn layer(&self, layer: usize) -> Option<&LayerKv> {
        self.kv.get(layer)
    }

    /// Recurrent state of recurrent layer `layer`; `None` past the last.
    pub fn recurrent_layer(&self, layer: usize) -> Option<&LayerRecurrent> {
        self.recurrent.get(layer)
    }

    /// The slot of a sequence in every [`LayerRecurrent`].
    ///
    /// # Errors
    /// [`StateError::NotOpen`].
    pub fn recurrent_slot(&self, id: SequenceId) -> Result<u32, StateError> {
        self.sequence(id).map(|sequence| sequence.recurrent)
    }

    /// How many sequences are open.
    pub fn sequences(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// How many pages nobody holds.
    pub fn pages_free(&self) -> usize {
        self.pages.free()
    }

    /// How many pages are held, a shared one counted once.
    pub fn pages_used(&self) -> usize {
        self.pages.used()
    }

    /// How many pages there are.
    pub fn pages_max(&self) -> usize {
        self.layout.pages_max
    }

    /// Bytes of the held pages, and of the recurrent state of the open sequences and the points.
    pub fn bytes_used(&self) -> u64 {
        let slots = self.sequences() + self.points_used();
        self.pages_used() as u64 * self.layout.bytes_per_page()
            + slots as u64 * self.layout.bytes_per_sequence()
    }

    /// Has copies of shared pages fail from now on, and clearing and copying the state of a sequence that
    /// is opened, as on a GPU that is lost: for simulated models. Moves between tiers go on.
    pub(crate) fn lose_device(&mut self) {
        self.lost = true;
    }

    /// An error once the device [is lost](Self::lose_device).
    pub(crate) fn check_device(&self) -> Result<(), StateError> {
        if !self.lost {
            return Ok(());
        }
        let what = "the GPU is lost".to_owned();
        Err(StateError::Copy(sconce_kernels::Error::Device { op: "simulation", what }))
    }

    /// Opens a sequence that shares the pages of `table`, with a recurrent state that `prepare` makes
    /// in the slot it is told.
    fn occupy(
        &mut self,
        len: usize,
        table: Vec<u32>,
        prepare: impl FnOnce(&[LayerRecurrent], u32) -> Result<(), StateError>,
    ) -> Result<SequenceId, StateError> {
        let max = self.slots.len();
        let slot = *self.free_slots.last().ok_or(StateError::OutOfSequences { max })?;
        if !self.recurrent.is_empty() {
            self.check_device()?;
        }
        prepare(&self.recurrent, self.recurrent_slots.next())?;
        let recurrent = self.recurrent_slots.take(slot);
        table.iter().for_each(|&page| self.pages.share(page));
        self.free_slots.pop();
        let entry = &mut self.slots[slot as usize];
        entry.sequence = Some(Sequence { len, table, recurrent });
        Ok(SequenceId { slot, generation: entry.generation })
    }

    /// Where the table has a partly filled page that has another holder too, and which one.
    fn shared_tail(&self, sequence: &Sequence) -> Option<(usize, u32)> {
        if sequence.len.is_multiple_of(self.layout.page_tokens) {
            return None;
        }
        let index = sequence.len / self.layout.page_tokens;
        let page = sequence.table[index];
        self.pages.is_shared(page).then_some((index, page))
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, StateError> {
        self.slots
            .get(id.slot as usize)
            .filter(|slot| slot.generation == id.generation)
            .and_then(|slot| slot.sequence.as_ref())
            .ok_or(StateError::NotOpen(id))
    }

    fn sequence_mut(&mut self, id: SequenceId) -> Result<&mut Sequence, StateError> {
        self.slots
            .get_mut(id.slot as usize)
            .filter(|slot| slot.generation == id.generation)
            .and_then(|slot| slot.sequence.as_mut())
            .ok_or(StateError::NotOpen(id))
    }
}
