//! Snapshots: requests to keep, find and move them checked, and what is kept for the wire.

use std::time::Duration;

use sconce_engine::{SnapshotFile, SnapshotInfo};
use sconce_proto::v1::match_prefix_request::Prompt as MatchPrompt;
use sconce_proto::v1::snapshot_request::Prompt as SnapshotPrompt;
use sconce_proto::v1::{
    MatchPrefixRequest, Media, SnapshotHeader, SnapshotInfo as WireInfo, SnapshotRequest,
};

use super::complete::{Given, prompt};
use super::{MODEL_NAME_BYTES_MAX, cache, count, duration, model_name};
use crate::completion::Prompt;
use crate::error::CallError;
use crate::models::{PrefixCall, SnapshotCall};

/// Version of a snapshot's content, as exports tell it and imports expect it.
const FORMAT_VERSION: u32 = 1;

/// Longest name of a snapshot, in bytes.
const NAME_BYTES_MAX: usize = MODEL_NAME_BYTES_MAX;

/// Longest identity of a snapshot, in bytes.
const ID_BYTES_MAX: usize = 128;

/// Longest life of a snapshot that has an end.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Checks what to remember.
pub fn snapshot_call(request: SnapshotRequest) -> Result<SnapshotCall, CallError> {
    let prompt = prompt_of(
        &request.model,
        &request.media,
        request.prompt.map(|prompt| match prompt {
            SnapshotPrompt::Text(text) => Given::Text(text),
            SnapshotPrompt::Tokens(tokens) => Given::Tokens(tokens),
            SnapshotPrompt::Chat(chat) => Given::Chat(chat),
        }),
    )?;
    Ok(SnapshotCall {
        prefix: PrefixCall {
            model: request.model,
            prompt,
            salt: cache::salt(request.salt, "salt")?,
        },
        name: name(request.name, "name")?,
        pinned: request.pinned,
        ttl: ttl(request.ttl, "ttl")?,
    })
}

/// Checks what to look for.
pub fn prefix_call(request: MatchPrefixRequest) -> Result<PrefixCall, CallError> {
    let prompt = prompt_of(
        &request.model,
        &request.media,
        request.prompt.map(|prompt| match prompt {
            MatchPrompt::Text(text) => Given::Text(text),
            MatchPrompt::Tokens(tokens) => Given::Tokens(tokens),
            MatchPrompt::Chat(chat) => Given::Chat(chat),
        }),
    )?;
    Ok(PrefixCall { model: request.model, prompt, salt: cache::salt(request.salt, "salt")? })
}

fn prompt_of(model: &str, media: &[Media], given: Option<Given>) -> Result<Prompt, CallError> {
    model_name(model)?;
    if !media.is_empty() {
        return Err(CallError::not_offered("media"));
    }
    prompt(given)
}

/// Checks the identity of a snapshot.
pub fn snapshot_id(id: &str) -> Result<(), CallError> {
    if (1..=ID_BYTES_MAX).contains(&id.len()) {
        return Ok(());
    }
    let problem = format!("expected 1 to {ID_BYTES_MAX} bytes, found {}", id.len());
    Err(CallError::field("id", problem))
}

fn name(name: String, field: &str) -> Result<String, CallError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(name);
    }
    let problem = format!(
        "expected 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `-`, `:` and `/`, found {name:?}"
    );
    Err(CallError::field(field, problem))
}

fn ttl(wire: Option<prost_types::Duration>, field: &str) -> Result<Option<Duration>, CallError> {
    let Some(wire) = wire else { return Ok(None) };
    match Duration::try_from(wire) {
        Ok(span) if !span.is_zero() && span <= TTL_MAX => Ok(Some(span)),
        Ok(_) | Err(_) => {
            let problem = format!(
                "expected a time above 0 and at most {} s, found {} s {} ns; leave it unset for no end",
                TTL_MAX.as_secs(),
                wire.seconds,
                wire.nanos
            );
            Err(CallError::field(field, problem))
        }
    }
}

/// What is kept.
pub fn snapshot_info(info: SnapshotInfo) -> WireInfo {
    WireInfo {
        id: info.id,
        name: info.name,
        token_count: count(info.tokens),
        bytes: info.bytes,
        tier: cache::tier(info.tier).into(),
        model: info.model,
        pinned: info.pinned,
        ttl: info.ttl.map(duration),
    }
}

/// What an export begins with.
pub fn snapshot_header(file: &SnapshotFile) -> SnapshotHeader {
    SnapshotHeader {
        format_version: FORMAT_VERSION,
        model_fingerprint: fingerprint(file.fingerprint),
        token_count: count(file.tokens),
        bytes: file.bytes,
        name: file.name.clone(),
        pinned: file.pinned,
        ttl: file.ttl.map(duration),
    }
}

/// Checks what an import begins with; the file has no content yet. Whether its bytes have room is
/// for the server to say.
pub fn snapshot_file(header: SnapshotHeader) -> Result<SnapshotFile, CallError> {
    let version = header.format_version;
    if version != FORMAT_VERSION {
        let problem = format!("expected {FORMAT_VERSION}, found {version}");
        return Err(CallError::field("header.format_version", problem));
    }
    let at_least_one = |field: &str, found: u64| match found {
        0 => Err(CallError::field(format!("header.{field}"), "expected at least 1, found 0")),
        _ => Ok(()),
    };
    at_least_one("token_count", header.token_count.into())?;
    at_least_one("bytes", header.bytes)?;
    Ok(SnapshotFile {
        fingerprint: parse_fingerprint(&header.model_fingerprint)?,
        tokens: header.token_count as usize,
        name: name(header.name, "header.name")?,
        pinned: header.pinned,
        ttl: ttl(header.ttl, "header.ttl")?,
        bytes: header.bytes,
        content: Vec::new(),
    })
}

/// A fingerprint as the wire spells it.
pub fn fingerprint(fingerprint: u64) -> String {
    format!("{fingerprint:016x}")
}

fn parse_fingerprint(text: &str) -> Result<u64, CallError> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(text, 16) {
        Ok(fingerprint) if digits => Ok(fingerprint),
        Ok(_) | Err(_) => {
            let problem = format!("expected 16 hexadecimal digits, found {text:?}");
            Err(CallError::field("header.model_fingerprint", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_proto::v1::TokensPrompt;

    fn request() -> SnapshotRequest {
        SnapshotRequest {
            model: "m".into(),
            prompt: Some(SnapshotPrompt::Tokens(TokensPrompt { ids: vec![1] })),
            name: "n".into(),
            ..SnapshotRequest::default()
        }
    }

    fn refused<T: std::fmt::Debug>(checked: Result<T, CallError>) -> String {
        match checked {
            Err(CallError::InvalidField { field, .. }) => field,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    fn header() -> SnapshotHeader {
        let file = SnapshotFile {
            fingerprint: 0x1f,
            tokens: 3,
            name: "n".into(),
            pinned: true,
            ttl: Some(Duration::from_secs(5)),
            bytes: 9,
            content: Vec::new(),
        };
        snapshot_header(&file)
    }

    #[test]
    fn a_snapshot_is_checked_field_by_field() {
        assert!(snapshot_call(request()).is_ok());
        for name in ["", "a b", &"x".repeat(NAME_BYTES_MAX + 1)] {
            let name = name.to_owned();
            assert_eq!(refused(snapshot_call(SnapshotRequest { name, ..request() })), "name");
        }
        let too_long = TTL_MAX.as_secs() as i64 + 1;
        for (seconds, nanos) in [(0, 0), (-1, 0), (0, -1), (too_long, 0), (i64::MAX, 0)] {
            let ttl = Some(prost_types::Duration { seconds, nanos });
            assert_eq!(refused(snapshot_call(SnapshotRequest { ttl, ..request() })), "ttl");
        }
        let salt = Some(String::new());
        assert_eq!(refused(snapshot_call(SnapshotRequest { salt, ..request() })), "salt");
        let prompt = Some(SnapshotPrompt::Text(String::new()));
        assert_eq!(refused(snapshot_call(SnapshotRequest { prompt, ..request() })), "text");
        let model = String::new();
        assert_eq!(refused(snapshot_call(SnapshotRequest { model, ..request() })), "model");
    }

    #[test]
    fn a_header_comes_back_as_it_was_sent() {
        let file = snapshot_file(header()).expect("is right");
        assert_eq!(snapshot_header(&file), header());
    }

    #[test]
    fn a_header_is_checked_field_by_field() {
        let cases = [
            ("format_version", SnapshotHeader { format_version: 2, ..header() }),
            ("model_fingerprint", SnapshotHeader { model_fingerprint: "1f".into(), ..header() }),
            (
                "model_fingerprint",
                SnapshotHeader { model_fingerprint: "+00000000000001f".into(), ..header() },
            ),
            ("token_count", SnapshotHeader { token_count: 0, ..header() }),
            ("bytes", SnapshotHeader { bytes: 0, ..header() }),
            ("name", SnapshotHeader { name: "\n".into(), ..header() }),
            ("ttl", SnapshotHeader { ttl: Some(prost_types::Duration::default()), ..header() }),
        ];
        for (field, header) in cases {
            assert_eq!(refused(snapshot_file(header)), format!("header.{field}"));
        }
    }
}
