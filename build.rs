//! Compiles `proto/` to Rust without protoc: protox makes the descriptor set, tonic the code.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message as _;

const FILES: &[&str] = &[
    "proto/sconce/v1/inference.proto",
    "proto/sconce/v1/model.proto",
    "proto/sconce/v1/state.proto",
    "proto/grpc/health/v1/health.proto",
    "proto/compat/vllm/grpc/engine/vllm_engine.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // No `connect` on clients: callers bring a channel, and the types need no transport.
    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
