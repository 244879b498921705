//! Protocols of others, spoken beside sconce's own, so that what is there already can stay as it is.
//!
//! [`vllm`] is the engine protocol that gateways speak to a worker; [`kv_events`] follows what is
//! remembered for those who route by it.

pub mod kv_events;
pub mod vllm;
