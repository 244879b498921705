//! What lies below the messages: sizes, malformed bytes, Unix sockets, unknown methods.

mod support;

use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::{CompleteRequest, ListModelsRequest, LoadRequest, Media};
use sconce_server::serve::ListenAddress;
use support::{Fixture, details, names_feature, names_field, plan, text, tokens, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

const MIB: usize = 1 << 20;

fn with_media(bytes: usize) -> CompleteRequest {
    let media = Media { data: vec![0; bytes].into(), mime_type: "image/png".to_owned() };
    CompleteRequest { media: vec![media], ..text("a", 4) }
}

#[tokio::test]
async fn a_request_of_30_mib_is_read_whole() {
    within(async {
        let fixture = Fixture::start().await;
        names_feature(&fixture.refused(with_media(30 * MIB)).await, "media");
        let prompt = tokens(vec![97; 30 * MIB], 4);
        let status = fixture.refused(prompt).await;
        names_field(&status, "tokens");
        assert!(status.message().contains(&(30 * MIB).to_string()), "{status:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_in_order() {
    within(async {
        let fixture = Fixture::start().await;
        let status = fixture.refused(with_media(33 * MIB)).await;
        details(&status, Code::OutOfRange, "MESSAGE_TOO_LARGE");
        let path = "x".repeat(5 * MIB);
        let load = LoadRequest { model: "a".to_owned(), path, ..LoadRequest::default() };
        let status = fixture.models().load(load).await.expect_err("is too large");
        details(&status, Code::OutOfRange, "MESSAGE_TOO_LARGE");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn malformed_bytes_close_their_connection_and_no_other() {
    within(async {
        let fixture = Fixture::start().await;
        let address = fixture.handle.local_addrs()[0].to_string();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let frames: [&[u8]; 5] = [
            // A SETTINGS frame whose length is no multiple of six.
            &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
            // A DATA frame of a stream that was never opened.
            &[0, 0, 1, 0, 0, 0, 0, 0, 1, 0],
            // HEADERS that are no HPACK.
            &[0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            // A frame longer than was agreed.
            &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
            // A WINDOW_UPDATE of zero.
            &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        let mut attempts: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            vec![0; 4096],
            vec![0xff; 4096],
            preface[..10].to_vec(),
        ];
        attempts.extend(frames.iter().map(|frame| [preface, *frame].concat()));
        for attempt in attempts {
            let mut socket = TcpStream::connect(&address).await.expect("connects");
            // The server may close before it has read everything, which is as good.
            drop(socket.write_all(&attempt).await);
            drop(socket.shutdown().await);
            let mut rest = Vec::new();
            drop(socket.read_to_end(&mut rest).await);
            fixture.complete(text("still here", 2)).await.expect("others are served");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_that_does_not_decode_is_refused() {
    within(async {
        let fixture = Fixture::start().await;
        // The bytes of a CompleteRequest are no ListModelsRequest, which has no fields, nor is a
        // string where a message is due.
        let mut client = tonic::client::Grpc::new(fixture.channel.clone());
        client.ready().await.expect("is connected");
        let codec = tonic_prost::ProstCodec::<LoadRequest, ListModelsRequest>::default();
        let path = http::uri::PathAndQuery::from_static("/sconce.v1.InferenceService/Complete");
        let wrong = LoadRequest {
            path: "\u{1}".to_owned(),
            quantize: Some("x".to_owned()),
            ..LoadRequest::default()
        };
        let status =
            client.unary(tonic::Request::new(wrong), path, codec).await.expect_err("fails");
        details(&status, Code::Internal, "MALFORMED_MESSAGE");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    within(async {
        let fixture = Fixture::start().await;
        for path in ["/sconce.v1.InferenceService/Nothing", "/nobody.v1.Nothing/Nothing", "/x"] {
            let mut client = tonic::client::Grpc::new(fixture.channel.clone());
            client.ready().await.expect("is connected");
            let codec = tonic_prost::ProstCodec::<LoadRequest, LoadRequest>::default();
            let path = http::uri::PathAndQuery::from_static(path);
            let request = tonic::Request::new(LoadRequest::default());
            let status = client.unary(request, path, codec).await.expect_err("is not there");
            details(&status, Code::Unimplemented, "METHOD_NOT_FOUND");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    within(async {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("sconce.sock");
        let mut plan = plan("");
        plan.listen.push(ListenAddress::Unix(path.clone()));
        let fixture = Fixture::with(plan).await;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("unix:{}", path.display()));
        let channel = endpoint.expect("a valid address").connect().await.expect("connects");
        let mut client = InferenceServiceClient::new(channel);
        let stream = client.complete(text("hello", 4)).await.expect("completes").into_inner();
        let completed = support::collect(stream).await;
        assert_eq!(completed.token_ids().len(), 4);
        drop(client);
        fixture.end().await;
        assert!(!path.exists(), "the socket file is left behind");
    })
    .await;
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    within(async {
        let fixture = Fixture::start().await;
        let mut second = plan("");
        second.listen = fixture.handle.local_addrs().to_vec();
        let error = sconce_server::serve::Server::bind(second).await.expect_err("is in use");
        let address = fixture.handle.local_addrs()[0].to_string();
        assert!(error.to_string().contains(&address), "{error}");
        fixture.end().await;
    })
    .await;
}
