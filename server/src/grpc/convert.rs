//! Between the wire's types and the domain's: every field is checked here, once, and every refusal
//! names the field by its path in the request.

mod cache;
mod chat;
mod complete;
mod model;
mod snapshot;

pub use cache::{cache_report, described, nodes_max, reason_name, tier};
pub use chat::chat;
pub use complete::{
    LOGIT_BIASES_MAX, LOGPROBS_MAX, STOP_TOKENS_MAX, completion, finished, logprobs, started,
};
pub use model::{estimate, load_settings, model_info, progress, sampling_defaults, status};
pub use snapshot::{
    fingerprint, prefix_call, snapshot_call, snapshot_file, snapshot_header, snapshot_id,
    snapshot_info,
};

use std::time::Duration;

use crate::error::CallError;

/// Longest name of a model, in bytes.
const MODEL_NAME_BYTES_MAX: usize = 128;

/// A count for the wire; one that does not fit is as large as can be told.
pub fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A duration for the wire; one that does not fit is as long as can be told.
pub fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        // Below one second, so it fits.
        nanos: value.subsec_nanos() as i32,
    }
}

/// A name of a model that a request must give. One that no model can have is not looked for, so that
/// logs and errors never hold a long one.
pub fn model_name(name: &str) -> Result<(), CallError> {
    match name.len() {
        0 => Err(CallError::field("model", "expected the name of a loaded model, found none")),
        1..=MODEL_NAME_BYTES_MAX => Ok(()),
        found => {
            let problem = format!("expected 1 to {MODEL_NAME_BYTES_MAX} bytes, found {found}");
            Err(CallError::field("model", problem))
        }
    }
}
