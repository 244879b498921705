//! A client that sends a deadline and does not enforce it, so that the server's answer is seen.
//! (A `tonic` channel reads `grpc-timeout` itself and gives up at that moment.)

use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_server::serve::{ListenAddress, ServerHandle};
use tonic::Request;
use tonic::body::Body;

/// A client of the inference service over plain HTTP/2.
pub(crate) type PatientClient = InferenceServiceClient<Client<HttpConnector, Body>>;

/// Connects when first used.
pub(crate) fn patient(handle: &ServerHandle) -> PatientClient {
    let ListenAddress::Tcp(address) = &handle.local_addrs()[0] else {
        panic!("expected a TCP address first, found {:?}", handle.local_addrs());
    };
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let origin = format!("http://{address}").parse().expect("a valid address");
    InferenceServiceClient::with_origin(client, origin)
}

/// `message` with a `grpc-timeout` as spelled.
pub(crate) fn with_header<T>(message: T, timeout: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("ascii"));
    request
}

/// `message` with a deadline.
pub(crate) fn with_timeout<T>(message: T, timeout: Duration) -> Request<T> {
    with_header(message, &format!("{}m", timeout.as_millis()))
}
