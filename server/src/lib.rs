//! The server around the engine: gRPC edge, command line, configuration, wiring.
//!
//! A request comes in through `layer`, is decoded and answered in `grpc`, runs through `completion`
//! (text to tokens, engine, tokens to text) on a model of `models`. `serve` puts it together.
#![forbid(unsafe_code)]

mod admin;
pub mod build;
pub mod caller;
pub mod compat;
pub mod completion;
pub mod config;
pub mod error;
pub mod grpc;
pub mod layer;
pub mod memory;
pub mod metrics;
pub mod models;
mod quota;
pub mod serve;
pub mod snapshot_file;
pub mod trace;
