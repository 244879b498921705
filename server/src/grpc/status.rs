//! The one place that decides gRPC statuses: code, message and `google.rpc` details of each error.
//!
//! Details stay small, for proxies cap the headers that carry them. The request's id is added by
//! `layer::error_detail`, for errors made here and by the transport alike.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use crate::error::CallError;

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "sconce";

/// Longest text of a message or detail, in bytes.
const TEXT_MAX: usize = 512;

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let (code, reason) = code_and_reason(&error);
        let message = shortened(&error.to_string());
        let mut details = details(&error);
        if let Some(delay) = error.retry_after() {
            details.set_retry_info(Some(delay));
        }
        details.set_error_info(reason, DOMAIN, metadata(&error));
        Status::with_error_details(code, message, details)
    }
}

fn code_and_reason(error: &CallError) -> (Code, &'static str) {
    match error {
        CallError::InvalidField { .. } => (Code::InvalidArgument, "INVALID_FIELD"),
        CallError::InvalidMetadata { .. } => (Code::InvalidArgument, "INVALID_METADATA"),
        CallError::NotOffered { .. } => (Code::Unimplemented, "NOT_OFFERED"),
        CallError::UnknownModel { .. } => (Code::NotFound, "MODEL_NOT_FOUND"),
        CallError::UnknownService { .. } => (Code::NotFound, "SERVICE_NOT_FOUND"),
        CallError::UnknownSnapshot { .. } => (Code::NotFound, "SNAPSHOT_NOT_FOUND"),
        CallError::SnapshotDamaged { .. } => (Code::DataLoss, "SNAPSHOT_DAMAGED"),
        CallError::SnapshotForeign { .. } => (Code::FailedPrecondition, "SNAPSHOT_FOREIGN"),
        CallError::CheckpointNotFound { .. } => (Code::NotFound, "CHECKPOINT_NOT_FOUND"),
        CallError::Unauthenticated { .. } => (Code::Unauthenticated, "UNAUTHENTICATED"),
        CallError::RoleRequired { .. } => (Code::PermissionDenied, "ROLE_REQUIRED"),
        CallError::PathRefused => (Code::PermissionDenied, "PATH_REFUSED"),
        CallError::ModelNotReady { .. } => (Code::FailedPrecondition, "MODEL_NOT_READY"),
        CallError::NothingServed { .. } => (Code::Unavailable, "NO_MODEL_READY"),
        CallError::SeveralServed { .. } => (Code::FailedPrecondition, "MODEL_NOT_CHOSEN"),
        CallError::EventsUnknown { .. } => (Code::OutOfRange, "EVENTS_UNKNOWN"),
        CallError::EventsLost { .. } => (Code::DataLoss, "EVENTS_LOST"),
        CallError::CacheOff { .. } => (Code::FailedPrecondition, "CACHE_OFF"),
        CallError::ModelExists { .. } => (Code::AlreadyExists, "MODEL_EXISTS"),
        CallError::LoadCancelled { .. } => (Code::Aborted, "LOAD_CANCELLED"),
        CallError::QueueFull { .. } => (Code::ResourceExhausted, "QUEUE_FULL"),
        CallError::MemoryExhausted { .. } => (Code::ResourceExhausted, "MEMORY_EXHAUSTED"),
        CallError::Draining => (Code::Unavailable, "DRAINING"),
        CallError::EngineGone { .. } => (Code::Unavailable, "ENGINE_GONE"),
        CallError::DeadlineExceeded { .. } => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        CallError::Internal { .. } => (Code::Internal, "INTERNAL"),
    }
}

fn details(error: &CallError) -> ErrorDetails {
    let text = shortened(&error.to_string());
    match error {
        CallError::InvalidField { field, problem } => {
            ErrorDetails::with_bad_request_violation(shortened(field), shortened(problem))
        }
        CallError::NotOffered { feature } => {
            ErrorDetails::with_bad_request_violation(feature, "not served by this server")
        }
        CallError::UnknownModel { name } | CallError::ModelExists { name, .. } => {
            ErrorDetails::with_resource_info("model", shortened(name), "", text)
        }
        CallError::UnknownService { name } => {
            ErrorDetails::with_resource_info("service", shortened(name), "", text)
        }
        CallError::UnknownSnapshot { id } => {
            ErrorDetails::with_resource_info("snapshot", shortened(id), "", text)
        }
        CallError::SnapshotForeign { .. } => {
            ErrorDetails::with_precondition_failure_violation("MODEL_FINGERPRINT", "", text)
        }
        CallError::CheckpointNotFound { path, .. } => {
            ErrorDetails::with_resource_info("checkpoint", shortened(path), "", text)
        }
        CallError::ModelNotReady { name, .. } => {
            ErrorDetails::with_precondition_failure_violation("MODEL_STATE", shortened(name), text)
        }
        CallError::CacheOff { name } => {
            ErrorDetails::with_precondition_failure_violation("CACHE", shortened(name), text)
        }
        CallError::SeveralServed { .. } => {
            ErrorDetails::with_precondition_failure_violation("SETTING", "compat.vllm_model", text)
        }
        CallError::QueueFull { what, .. } => ErrorDetails::with_quota_failure_violation(what, text),
        CallError::MemoryExhausted { .. } => {
            ErrorDetails::with_quota_failure_violation("memory", text)
        }
        CallError::InvalidMetadata { .. }
        | CallError::NothingServed { .. }
        | CallError::EventsUnknown { .. }
        | CallError::EventsLost { .. }
        | CallError::Unauthenticated { .. }
        | CallError::RoleRequired { .. }
        | CallError::PathRefused
        | CallError::LoadCancelled { .. }
        | CallError::SnapshotDamaged { .. }
        | CallError::Draining
        | CallError::EngineGone { .. }
        | CallError::DeadlineExceeded { .. }
        | CallError::Internal { .. } => ErrorDetails::new(),
    }
}

fn metadata(error: &CallError) -> HashMap<String, String> {
    let entry = match error {
        CallError::InvalidField { field, .. } => ("field", field.as_str()),
        CallError::InvalidMetadata { key, .. } => ("key", *key),
        CallError::NotOffered { feature } => ("feature", feature.as_str()),
        CallError::RoleRequired { role, .. } => ("role", *role),
        CallError::PathRefused => ("field", "path"),
        CallError::UnknownModel { name }
        | CallError::ModelNotReady { name, .. }
        | CallError::CacheOff { name }
        | CallError::ModelExists { name, .. }
        | CallError::LoadCancelled { name } => ("model", name.as_str()),
        CallError::UnknownService { name } => ("service", name.as_str()),
        CallError::UnknownSnapshot { id } => ("snapshot", id.as_str()),
        CallError::CheckpointNotFound { path, .. } => ("path", path.as_str()),
        CallError::QueueFull { what, .. } => ("queue", what.as_str()),
        _ => return HashMap::new(),
    };
    HashMap::from([(entry.0.to_owned(), shortened(entry.1))])
}

/// `status` with `RequestInfo`, and with `ErrorInfo` if it has none, as a status made by the
/// transport (an unknown method, a message over the limit).
pub fn completed(status: Status, request_id: &str) -> Status {
    let mut details = status.get_error_details();
    if details.error_info().is_none() {
        details.set_error_info(transport_reason(&status), DOMAIN, HashMap::new());
    }
    details.set_request_info(request_id, "");
    let message = shortened(status.message());
    let metadata = status.metadata().clone();
    Status::with_error_details_and_metadata(status.code(), message, details, metadata)
}

fn transport_reason(status: &Status) -> &'static str {
    match status.code() {
        // The router says nothing about a path it does not know; what else is unimplemented in the
        // transport is a compression of the request, and tonic says which.
        Code::Unimplemented if status.message().is_empty() => "METHOD_NOT_FOUND",
        Code::Unimplemented => "ENCODING_NOT_SUPPORTED",
        Code::OutOfRange | Code::ResourceExhausted => "MESSAGE_TOO_LARGE",
        Code::Cancelled => "CANCELLED",
        Code::Internal | Code::InvalidArgument => "MALFORMED_MESSAGE",
        _ => "TRANSPORT",
    }
}

/// The name of a code as the gRPC specification spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn shortened(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(TEXT_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_field_names_itself_everywhere() {
        let error = CallError::field("sampling.top_p", "expected 0 < top_p <= 1, found 2");
        let status = completed(error.into(), "id-1");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "sampling.top_p: expected 0 < top_p <= 1, found 2");
        let details = status.get_error_details();
        let violations = &details.bad_request().expect("bad request").field_violations;
        assert_eq!(violations[0].field, "sampling.top_p");
        let info = details.error_info().expect("error info");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_FIELD", DOMAIN));
        assert_eq!(info.metadata["field"], "sampling.top_p");
        assert_eq!(details.request_info().expect("request info").request_id, "id-1");
    }

    #[test]
    fn a_full_queue_says_when_to_retry() {
        let retry_after = std::time::Duration::from_secs(3);
        let error = CallError::QueueFull { what: "the queue".into(), bound: 4, retry_after };
        let details = Status::from(error).get_error_details();
        assert_eq!(details.retry_info().expect("retry info").retry_delay, Some(retry_after));
        assert_eq!(details.quota_failure().expect("quota failure").violations.len(), 1);
    }

    #[test]
    fn a_status_of_the_transport_gains_error_info() {
        let status = completed(Status::unimplemented(""), "id-2");
        let info = status.get_error_details().error_info().expect("error info").clone();
        assert_eq!(info.reason, "METHOD_NOT_FOUND");
        let compressed = Status::unimplemented("Content is compressed with `gzip`");
        let info = completed(compressed, "id-2").get_error_details().error_info().cloned();
        assert_eq!(info.expect("error info").reason, "ENCODING_NOT_SUPPORTED");
    }

    #[test]
    fn headers_stay_small_however_long_the_cause() {
        let error = CallError::field("x".repeat(100_000), "\u{1F525}".repeat(100_000));
        let mut headers = http::HeaderMap::new();
        completed(error.into(), "id-3").add_header(&mut headers).expect("encodes");
        let bytes: usize = headers.iter().map(|(k, v)| k.as_str().len() + v.len()).sum();
        assert!(bytes < 6 * 1024, "{bytes} bytes");
    }

    #[test]
    fn shortening_respects_characters() {
        let text = "\u{e9}".repeat(TEXT_MAX / 2);
        assert_eq!(shortened(&text), text);
        assert_eq!(shortened(&format!("x{text}")), format!("x{}...", &text[..TEXT_MAX - 2]));
    }
}
