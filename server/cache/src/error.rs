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
}
