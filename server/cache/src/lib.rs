//! What is remembered, in which tier, within which budget. So far: the ledger of bytes.
//!
//! Holds no tensors and knows no model: what it keeps is opaque and says only how big it is.
#![forbid(unsafe_code)]

mod error;
mod footprint;
mod ledger;

pub use error::Error;
pub use footprint::Footprint;
pub use ledger::{Budgets, Class, Ledger, Reservation, Snapshot, Tier, TierSnapshot};
