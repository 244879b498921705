//! What can go wrong in a subcommand, how it is told, and which exit code it gives.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::config::ConfigError;

/// What was measured is not what was promised.
const MISSED: u8 = 1;
/// Wrong usage: the command line, or what it names.
pub(crate) const USAGE: u8 = 2;
/// Wrong configuration.
const CONFIG: u8 = 64;
/// What is asked is not there now: a server, a model, memory.
const UNAVAILABLE: u8 = 69;
/// A bug, or a failing system.
const INTERNAL: u8 = 70;

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A measurement went well, and found that a promise is not kept.
    #[error("missed: {0}")]
    Missed(String),
    /// The command line, or a file it names, cannot be used.
    #[error("{0}")]
    Usage(String),
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting outside the configuration's tree is wrong, such as a log filter.
    #[error("{0}")]
    Settings(String),
    /// Nobody answers, or it answers that it cannot now.
    #[error("{0}")]
    Unavailable(String),
    /// The server refused.
    #[error("{}", describe_status(.0))]
    Rpc(#[from] Box<Status>),
    /// Reading or writing failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Something that should not be.
    #[error("{0}")]
    Internal(String),
}

impl CliError {
    /// A failed read or write, and what it was for.
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }

    /// Tells the user on standard error; the exit code for the shell.
    pub(crate) fn report(&self) -> ExitCode {
        // A reader that closed the pipe, as `head` does, has what it wanted.
        if matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        super::output::note(&format!("error: {self}"));
        ExitCode::from(self.exit_code())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Missed(_) => MISSED,
            Self::Usage(_) => USAGE,
            Self::Config(_) | Self::Settings(_) => CONFIG,
            Self::Unavailable(_) => UNAVAILABLE,
            Self::Io { .. } | Self::Internal(_) => INTERNAL,
            Self::Rpc(status) => match status.code() {
                Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => USAGE,
                Code::Unavailable
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::ResourceExhausted
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unauthenticated
                | Code::PermissionDenied => UNAVAILABLE,
                // No server said so: the connection broke, as when it wants a certificate.
                Code::Unknown if std::error::Error::source(&**status).is_some() => UNAVAILABLE,
                _ => INTERNAL,
            },
        }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

/// `INVALID_ARGUMENT: message`, then a line for each detail that helps.
fn describe_status(status: &Status) -> String {
    let mut text = format!("{}: {}", code_name(status.code()), status.message());
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.as_slice());
    for violation in violations.unwrap_or_default() {
        let _ = write!(text, "\n  {}: {}", violation.field, violation.description);
    }
    if let Some(retry) = details.retry_info().and_then(|info| info.retry_delay) {
        let _ = write!(text, "\n  retry after {}", humantime::format_duration(retry));
    }
    if let Some(request) = details.request_info() {
        let _ = write!(text, "\n  request {}", request.request_id);
    }
    text
}

/// The name of a code as the gRPC specification spells it.
pub(crate) fn code_name(code: Code) -> String {
    let name = format!("{code:?}");
    let mut spelled = String::with_capacity(name.len() + 4);
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            spelled.push('_');
        }
        spelled.push(letter.to_ascii_uppercase());
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_status_shows_its_code_message_and_violated_fields() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("sampling.top_p", "expected (0, 1], found 2");
        let status = Status::with_error_details(Code::InvalidArgument, "bad request", details);
        assert_eq!(
            CliError::from(status).to_string(),
            "INVALID_ARGUMENT: bad request\n  sampling.top_p: expected (0, 1], found 2"
        );
    }

    #[test]
    fn exit_codes_tell_who_can_help() {
        let of = |code| CliError::from(Status::new(code, "")).exit_code();
        assert_eq!(of(Code::InvalidArgument), 2);
        assert_eq!(of(Code::Unavailable), 69);
        assert_eq!(of(Code::Internal), 70);
    }
}
