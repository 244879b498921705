//! Cold = resumed, bit for bit: whatever is remembered, however it was kept and whatever became of
//! it, an engine says what one says that remembers nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod edits;
mod faults;
mod kill;
mod namespaces;
mod pressure;
mod snapshots;
mod soak;
mod tiers;
