//! Tests of the `sconce` program as a user sees it: arguments in, output and exit code out. What
//! the server answers over a socket is tested at the root of the repository.

mod bench;
mod commands;
mod config;
mod doctor;
mod faults;
mod harness;
mod inspect;
mod load;
mod logs;
mod manual;
mod quantize;
mod security;
mod serve;
mod state;
#[cfg(feature = "top")]
mod top;
