//! What can go wrong with the state of sequences. Its own enum, because an engine acts on some of
//! these (waits for pages, refuses a sequence) and only reports the rest.

use super::{PointId, SequenceId};

/// Why the state pool refused; nothing has changed in it then.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not enough free pages for what was asked.
    #[error("out of state pages: {needed} needed, {free} free of {max}")]
    OutOfPages {
        /// Pages that had to be taken.
        needed: usize,
        /// Pages that were free.
        free: usize,
        /// Pages of the pool.
        max: usize,
    },
    /// Every sequence slot is taken.
    #[error("out of sequence slots: all {max} are open")]
    OutOfSequences {
        /// Slots of the pool.
        max: usize,
    },
    /// The sequence was closed, or never opened by this pool.
    #[error("{0} is not open")]
    NotOpen(SequenceId),
    /// More tokens than were reserved.
    #[error("{sequence} has room for {room} more tokens, found {tokens}; reserve first")]
    NoRoom {
        /// The sequence.
        sequence: SequenceId,
        /// Tokens that were to be added.
        tokens: usize,
        /// Tokens that can be added without another reservation.
        room: usize,
    },
    /// A truncation that would lengthen.
    #[error("cannot truncate {sequence} to {requested} tokens: it has {len}")]
    Lengthen {
        /// The sequence.
        sequence: SequenceId,
        /// The length asked for.
        requested: usize,
        /// The length it has.
        len: usize,
    },
    /// A truncation to a length whose recurrent state is gone.
    #[error(
        "cannot truncate {sequence} from {len} to {requested} tokens: its recurrent state only \
         stands for all of them"
    )]
    Recurrent {
        /// The sequence.
        sequence: SequenceId,
        /// The length asked for.
        requested: usize,
        /// The length it has.
        len: usize,
    },
    /// As many points are taken as there may be.
    #[error("out of points: all {max} are taken")]
    OutOfPoints {
        /// Points of the pool.
        max: usize,
    },
    /// The point was released, or never taken from this pool.
    #[error("{0} is not held")]
    NotAPoint(PointId),
    /// A page that was to be shared, read, written or let go by one who does not hold it.
    #[error("page {page} is not held")]
    PageNotHeld {
        /// The page.
        page: u32,
    },
    /// A page that was to be shared and that a sequence is yet to write to.
    #[error("page {page} is reserved for tokens to come")]
    PageReserved {
        /// The page.
        page: u32,
    },
    /// A page that was to be written and that others hold too.
    #[error("page {page} has {holders} holders, found a write to it; its only holder may")]
    PageShared {
        /// The page.
        page: u32,
        /// How many hold it.
        holders: u32,
    },
    /// Bytes of a page or of a recurrent state that are not as many as that has.
    #[error("state of {what}: expected {expected} bytes, found {found}")]
    Bytes {
        /// Page, or recurrent state.
        what: &'static str,
        /// As many as it has.
        expected: u64,
        /// As many as there were.
        found: u64,
    },
    /// A prefix that no sequence of this model can begin with.
    #[error("prefix: expected {expected}, found {found}")]
    Prefix {
        /// The rule.
        expected: String,
        /// What broke it.
        found: String,
    },
    /// A layout that no pool can have.
    #[error("state layout: expected {expected}, found {found}")]
    Layout {
        /// The rule.
        expected: &'static str,
        /// What broke it.
        found: u64,
    },
    /// The system has no room for the pool.
    #[error("state memory: the system refused {bytes} bytes: {message}")]
    Memory {
        /// Bytes of the whole pool.
        bytes: u64,
        /// What the system said.
        message: String,
    },
    /// The device refused to allocate.
    #[error("state memory: {0}")]
    Device(#[from] candle_core::Error),
    /// The device refused to read, write, copy or clear.
    #[error("state memory: {0}")]
    Copy(#[from] sconce_kernels::Error),
}
