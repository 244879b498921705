//! What the SMG gateway's own client finds at a running `sconce serve`: every call that it has for
//! `vllm.grpc.engine.VllmEngine`, with requests built by its own code from those of HTTP.
//!
//! `run.sh` says how to run it. Nothing of sconce is linked: the program is what `SCONCE_BIN` names.

mod aborts;
mod about;
mod events;
mod generate;
mod requests;
mod smollm2;
mod tokenizer;
mod worker;
