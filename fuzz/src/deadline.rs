//! `grpc-timeout` against its grammar: one to eight digits and a unit, nothing else, and never longer
//! than the server allows.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use http::HeaderValue;
use sconce_server::layer::deadline::{Deadline, DeadlineLayer};
use sconce_server::layer::{HttpRequest, HttpResponse};
use tonic::{Code, Status};
use tower::{ServiceExt as _, service_fn};
use tower_layer::Layer as _;

use crate::server;

/// The server's own bound.
const MAX: Duration = Duration::from_secs(600);

pub(crate) fn run(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let service = DeadlineLayer::new(MAX).layer(service_fn(|request: HttpRequest| async move {
        let mut response = HttpResponse::default();
        let deadline = request.extensions().get::<Deadline>().copied();
        response.extensions_mut().insert(deadline.expect("every request has a deadline"));
        Ok::<_, Infallible>(response)
    }));
    let mut request = HttpRequest::default();
    request.headers_mut().insert("grpc-timeout", value);
    let before = Instant::now();
    let response =
        server::runtime().block_on(service.oneshot(request)).unwrap_or_else(|never| match never {});
    match (expected(bytes), response.extensions().get::<Deadline>()) {
        (Some(timeout), Some(&Deadline(at))) => {
            let timeout = timeout.min(MAX);
            assert!(at >= before + timeout && at <= Instant::now() + timeout, "{timeout:?}");
        }
        (None, None) => {
            let status = Status::from_header_map(response.headers()).expect("a status");
            assert_eq!(status.code(), Code::InvalidArgument);
        }
        (expected, found) => panic!("expected {expected:?}, found {found:?}"),
    }
}

/// The grammar of the gRPC specification, by hand.
fn expected(bytes: &[u8]) -> Option<Duration> {
    let (unit, digits) = bytes.split_last()?;
    if !(1..=8).contains(&digits.len()) {
        return None;
    }
    let mut amount = 0_u64;
    for digit in digits {
        amount = amount * 10 + u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    let nanoseconds = match unit {
        b'n' => 1,
        b'u' => 1_000,
        b'm' => 1_000_000,
        b'S' => 1_000_000_000,
        b'M' => 60_000_000_000,
        b'H' => 3_600_000_000_000,
        _ => return None,
    };
    let whole = u128::from(amount) * nanoseconds;
    let seconds = u64::try_from(whole / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, (whole % 1_000_000_000) as u32))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "",
        "1S",
        "99999999H",
        "00000000n",
        "5m",
        "6u",
        "3M",
        "123456789S",
        "1",
        "S",
        "+1S",
        "1 S",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
