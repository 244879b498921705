//! Any bytes as the body of a request, in frames cut anywhere, with headers of all kinds, to every
//! method: the answer is HTTP 200 with a gRPC status that is not the server's fault.

use std::convert::Infallible;

use arbitrary::{Result, Unstructured};
use bytes::{Buf as _, Bytes};
use futures::stream;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use sconce_proto::v1::{CompleteRequest, EstimateLoadRequest, LoadRequest};
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::server::{Server, answered, check, is_harmless, with};
use crate::text::{noises, several};

/// Streams without an end are left out: `Watch` and `SubscribeKvEvents` end with their caller.
const METHODS: [&str; 29] = [
    "/sconce.v1.InferenceService/Complete",
    "/sconce.v1.InferenceService/Tokenize",
    "/sconce.v1.InferenceService/Detokenize",
    "/sconce.v1.ModelService/Load",
    "/sconce.v1.ModelService/Unload",
    "/sconce.v1.ModelService/ListModels",
    "/sconce.v1.ModelService/EstimateLoad",
    "/sconce.v1.ModelService/GetStatus",
    "/sconce.v1.StateService/Snapshot",
    "/sconce.v1.StateService/ListSnapshots",
    "/sconce.v1.StateService/DropSnapshot",
    "/sconce.v1.StateService/ExportSnapshot",
    "/sconce.v1.StateService/ImportSnapshot",
    "/sconce.v1.StateService/MatchPrefix",
    "/sconce.v1.StateService/DescribeCache",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/Embed",
    "/vllm.grpc.engine.VllmEngine/HealthCheck",
    "/vllm.grpc.engine.VllmEngine/FlushCache",
    "/vllm.grpc.engine.VllmEngine/Abort",
    "/vllm.grpc.engine.VllmEngine/GetModelInfo",
    "/vllm.grpc.engine.VllmEngine/GetServerInfo",
    "/vllm.grpc.engine.VllmEngine/GetLoads",
    "/vllm.grpc.engine.VllmEngine/GetTokenizer",
    "/sconce.v1.InferenceService/Nothing",
    "/x",
];
const ENCODINGS: [&str; 4] = ["identity", "gzip", "deflate", "\u{1}"];
const TYPES: [&str; 4] = ["application/grpc", "application/grpc+proto", "application/json", ""];
const TIMEOUTS: [&str; 4] = ["1n", "10m", "1S", "x"];

/// Most frames of the body.
const FRAMES_MAX: usize = 8;
/// Most bytes that are read of an answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;

pub(crate) fn run(bytes: &[u8]) {
    with(async |server| {
        let _ = ask(server, &mut Unstructured::new(bytes)).await;
    });
}

/// Requests that are right, in one frame. The first bytes say what `ask` reads from them; cuts and
/// choices are read from the end.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = noises(24, 80);
    let complete = CompleteRequest {
        model: crate::server::MODEL.to_owned(),
        prompt: Some(sconce_proto::v1::complete_request::Prompt::Text("hello".to_owned())),
        max_tokens: Some(3),
        ..CompleteRequest::default()
    };
    let message = complete.encode_to_vec();
    for method in 0..METHODS.len() as u8 {
        let mut frame = vec![method, 0, 0, 0, 0];
        frame.push(0);
        frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
        frame.extend_from_slice(&message);
        seeds.push(frame);
    }
    seeds
}

async fn ask(server: &Server, u: &mut Unstructured<'_>) -> Result<()> {
    let method = METHODS[usize::from(u.arbitrary::<u8>()?) % METHODS.len()];
    let pick = |u: &mut Unstructured<'_>, from: &[&'static str]| -> Result<Option<&'static str>> {
        Ok(from.get(usize::from(u.arbitrary::<u8>()?).wrapping_sub(1)).copied())
    };
    let encoding = pick(u, &ENCODINGS)?;
    let content_type = pick(u, &TYPES)?.unwrap_or("application/grpc");
    let timeout = pick(u, &TIMEOUTS)?;
    let cuts = u.arbitrary::<u8>()?;
    let cuts = if cuts == 0 {
        Vec::new()
    } else {
        several(u, FRAMES_MAX, |u| Ok(usize::from(u.arbitrary::<u8>()?)))?
    };
    let mut body = Bytes::copy_from_slice(u.bytes(u.len())?);
    if !may_be_sent(method, &body) {
        return Ok(());
    }
    let mut frames = Vec::new();
    for cut in cuts {
        frames.push(body.split_to(cut.min(body.len())));
    }
    frames.push(body);
    let frames = frames.into_iter().map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
    let mut request = http::Request::post(method).header(CONTENT_TYPE, content_type);
    let mut header = |name: &str, value: Option<&str>| {
        if let Some(value) = value.and_then(|value| http::HeaderValue::from_str(value).ok()) {
            let headers = request.headers_mut().expect("the request is right so far");
            headers.insert(http::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value);
        }
    };
    header("grpc-encoding", encoding);
    header("grpc-timeout", timeout);
    let request = request.body(Body::new(StreamBody::new(stream::iter(frames))));
    let request = request.expect("a request that HTTP allows");
    let response = answered(method, server.service.clone().oneshot(request)).await;
    let mut response = response.unwrap_or_else(|never| match never {});
    if content_type == "application/grpc" || content_type == "application/grpc+proto" {
        assert_eq!(response.status(), http::StatusCode::OK, "{method}");
    }
    let mut status = Status::from_header_map(response.headers());
    let mut read = 0;
    while read < ANSWER_BYTES_MAX {
        let Some(frame) = answered(method, response.body_mut().frame()).await else { break };
        let frame = frame.unwrap_or_else(|error| panic!("{method}: {error:?}"));
        if let Some(trailers) = frame.trailers_ref() {
            status = status.or_else(|| Status::from_header_map(trailers));
        }
        read += frame.data_ref().map_or(0, |data| data.remaining());
    }
    if let Some(status) = status.filter(|status| status.code() != tonic::Code::Ok) {
        // The framing is tonic's: it says INTERNAL of a message that cannot be decoded.
        check_framing(method, &status);
    }
    Ok(())
}

/// Not a load of files, nor a completion without an end; a stream may hold several messages.
fn may_be_sent(method: &str, mut body: &[u8]) -> bool {
    while let Some((head, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (message, later) = rest.split_at(length.min(rest.len()));
        let path = match method.rsplit('/').next() {
            Some("Load") => LoadRequest::decode(message).map(|found| found.path),
            Some("EstimateLoad") => EstimateLoadRequest::decode(message).map(|found| found.path),
            _ => Ok(String::new()),
        };
        if path.is_ok_and(|path| !is_harmless(&path)) {
            return false;
        }
        body = later;
    }
    true
}

fn check_framing(method: &str, status: &Status) {
    let framing = status.code() == tonic::Code::Internal
        && ["decode", "protocol error", "compress", "Unexpected EOF", "message"]
            .iter()
            .any(|word| status.message().contains(word));
    if !framing {
        check(method, status);
    }
}
