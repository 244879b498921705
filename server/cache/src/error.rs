//! What can go wrong in the cache.

use crate::ledger::{Class, Tier};

/// An operation of the cache that was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The budget of a tier has no room for a reservation.
    #[error(
        "{tier} memory is full: {wanted} bytes wanted for {class}, {free} free of a budget of {budget}"
    )]
    OverBudget {
        /// Where the memory was wanted.
        tier: Tier,
        /// What it was wanted for.
        class: Class,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that were free.
        free: u64,
        /// Bytes the tier may hold.
        budget: u64,
    },
    /// Bytes were to change class that are not reserved.
    #[error(
        "{wanted} bytes wanted of {tier} memory that is reserved for {class}, which holds {held}"
    )]
    NotReserved {
        /// Where the memory is.
        tier: Tier,
        /// What it was expected to be reserved for.
        class: Class,
        /// Bytes that were to change class.
        wanted: u64,
        /// Bytes reserved for the class.
        held: u64,
    },
    /// Pinned snapshots hold as much as they may.
    #[error("pinned snapshots may hold {bound} bytes, and would hold {wanted}")]
    PinsFull {
        /// Bytes that all pinned snapshots together would hold.
        wanted: u64,
        /// Most bytes that they may hold.
        bound: u64,
    },
    /// There are as many snapshots as there may be.
    #[error("there are {max} snapshots, and there may not be more")]
    TooManySnapshots {
        /// Most snapshots at a time.
        max: usize,
    },
    /// A snapshot was wanted where nothing can be resumed.
    #[error("no restore point at offset {offset}: {covered} tokens are covered")]
    NotARestorePoint {
        /// Where it was wanted.
        offset: usize,
        /// Tokens that the lease covers.
        covered: usize,
    },
}
