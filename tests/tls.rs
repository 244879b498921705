//! TLS over a socket: who is served, who is not, and certificates that change while the server runs.

mod support;

use rustls::version::{TLS12, TLS13};
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{GetStatusRequest, ListModelsRequest, SecretStatus};
use sconce_server::serve::{
    ClientAuth, ListenAddress, SecurityPlan, ServeError, ServePlan, Server, TlsPlan,
};
use support::tls::{Authority, Folder, Pair, bare, channel, der, swap};
use support::{Secured, plan, text, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;

/// A server of the files in `folder`, which has `tls.crt`, `tls.key` and for `client_auth` `ca.crt`.
fn secured(folder: &Folder, client_auth: ClientAuth) -> ServePlan {
    let client_ca = (client_auth != ClientAuth::None).then(|| folder.path("ca.crt"));
    let (certificate, key) = (folder.path("tls.crt"), folder.path("tls.key"));
    let tls = Some(TlsPlan { certificate, key, client_ca, client_auth });
    ServePlan { security: SecurityPlan { tls, ..SecurityPlan::default() }, ..plan("") }
}

async fn completes(channel: Channel) {
    let mut client = InferenceServiceClient::new(channel);
    let stream = client.complete(text("hello", 4)).await.expect("completes").into_inner();
    assert_eq!(support::collect(stream).await.token_ids().len(), 4);
}

async fn secrets(channel: &Channel) -> Vec<SecretStatus> {
    let mut client = ModelServiceClient::new(channel.clone());
    client.get_status(GetStatusRequest {}).await.expect("tells").into_inner().secrets
}

/// What a client sees at last that is not let in: TLS 1.3 tells it after its own handshake is done.
async fn is_shut_out(connected: Result<Channel, tonic::transport::Error>) {
    if let Ok(channel) = connected {
        let mut client = ModelServiceClient::new(channel);
        client.list_models(ListModelsRequest {}).await.expect_err("is not let in");
    }
}

#[tokio::test]
async fn completions_go_over_tls_and_plain_text_does_not() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        folder.keep(&authority.server());
        let server = Secured::start(secured(&folder, ClientAuth::None)).await;
        completes(channel(&server.handle, &authority, None).await.expect("connects")).await;
        // A client that trusts another authority.
        assert!(channel(&server.handle, &Authority::new(), None).await.is_err());
        for plain in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64]]
        {
            let mut socket =
                TcpStream::connect(support::tls::address(&server.handle)).await.expect("is open");
            drop(socket.write_all(plain).await);
            let mut answer = Vec::new();
            drop(socket.read_to_end(&mut answer).await);
            // An alert of TLS at most.
            assert!(
                answer.len() < 16 && answer.first().is_none_or(|kind| *kind == 21),
                "{answer:?}"
            );
        }
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_http_2_is_agreed_on() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        folder.keep(&authority.server());
        let server = Secured::start(secured(&folder, ClientAuth::None)).await;
        for (versions, name) in [(&TLS12, "TLSv1_2"), (&TLS13, "TLSv1_3")] {
            for (offered, agreed) in [
                (&["h2"][..], Some("h2")),
                (&["http/1.1", "h2"], Some("h2")),
                (&["http/1.1"], Some("http/1.1")),
                (&[], None),
            ] {
                let stream = bare(&server.handle, &authority, &[versions], offered).await;
                let stream = stream.expect("is agreed on");
                let session = stream.get_ref().1;
                assert_eq!(
                    format!("{:?}", session.protocol_version().expect("is agreed on")),
                    name
                );
                assert_eq!(session.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
            }
            bare(&server.handle, &authority, &[versions], &["spdy/3"])
                .await
                .expect_err("is unknown");
        }
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn clients_show_certificates_where_they_must_and_may() {
    within(async {
        let (authority, clients) = (Authority::new(), Authority::new());
        let folder = Folder::new();
        folder.keep(&authority.server());
        folder.write("ca.crt", &clients.pem());
        let known = clients.client(vec![support::tls::dns("gateway.example")]);
        let stranger = Authority::new().client(vec![support::tls::dns("gateway.example")]);
        // A certificate of the right authority for another purpose.
        let misused = clients.server();
        for client_auth in [ClientAuth::Required, ClientAuth::Optional] {
            let server = Secured::start(secured(&folder, client_auth)).await;
            let show = async |pair: Option<&Pair>| channel(&server.handle, &authority, pair).await;
            completes(show(Some(&known)).await.expect("connects")).await;
            is_shut_out(show(Some(&stranger)).await).await;
            is_shut_out(show(Some(&misused)).await).await;
            match client_auth {
                ClientAuth::Optional => completes(show(None).await.expect("connects")).await,
                _ => is_shut_out(show(None).await).await,
            }
            server.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_a_bad_one_for_none() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        let first = authority.server();
        folder.keep(&first);
        let server = Secured::start(secured(&folder, ClientAuth::None)).await;
        let shown = async || {
            let stream =
                bare(&server.handle, &authority, &[&TLS13], &["h2"]).await.expect("connects");
            stream.get_ref().1.peer_certificates().expect("is shown")[0].clone().into_owned()
        };
        let old = channel(&server.handle, &authority, None).await.expect("connects");
        assert_eq!(shown().await, der(&first));
        assert_eq!(secrets(&old).await[0].problem, None);

        let second = authority.server();
        folder.write("tls.crt", &second.certificate);
        server.handle.reload().await;
        assert_eq!(shown().await, der(&first), "the key is still the first one's");
        let told = secrets(&old).await;
        assert_eq!(told[0].name, "server.tls");
        assert!(told[0].problem.as_deref().expect("is told").contains("tls.key"), "{told:?}");

        folder.write("tls.key", &second.key);
        server.handle.reload().await;
        assert_eq!(shown().await, der(&second));
        assert_eq!(secrets(&old).await[0].problem, None);
        // The connection from before goes on.
        completes(old).await;
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_mounted_secret_is_followed_when_its_link_is_swapped() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        let pairs = [authority.server(), authority.server()];
        for (name, pair) in ["..1", "..2"].iter().zip(&pairs) {
            std::fs::create_dir(folder.path(name)).expect("makes");
            folder.write(&format!("{name}/tls.crt"), &pair.certificate);
            folder.write(&format!("{name}/tls.key"), &pair.key);
        }
        swap(folder.0.path(), "..1");
        for file in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(format!("..data/{file}"), folder.path(file)).expect("links");
        }
        let server = Secured::start(secured(&folder, ClientAuth::None)).await;
        for (name, pair) in ["..1", "..2"].iter().zip(&pairs) {
            swap(folder.0.path(), name);
            server.handle.reload().await;
            let stream =
                bare(&server.handle, &authority, &[&TLS13], &["h2"]).await.expect("connects");
            let shown = stream.get_ref().1.peer_certificates().expect("is shown")[0].clone();
            assert_eq!(shown, der(pair), "{name}");
        }
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_unix_socket_beside_tls_stays_plain() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        folder.keep(&authority.server());
        let mut plan = secured(&folder, ClientAuth::None);
        let socket = folder.path("sconce.sock");
        plan.listen.push(ListenAddress::Unix(socket.clone()));
        let server = Secured::start(plan).await;
        let uri = format!("unix:{}", socket.display());
        let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("a valid address");
        completes(endpoint.connect().await.expect("connects")).await;
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn files_that_cannot_be_used_end_the_start_and_are_named() {
    let authority = Authority::new();
    let (good, other) = (authority.server(), authority.server());
    let garbage = "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n";
    for (certificate, key, ca, part) in [
        ("", &*good.key, None, "tls.crt"),
        (garbage, &good.key, None, "tls.crt"),
        (&good.certificate, "", None, "tls.key"),
        (&good.certificate, &good.certificate, None, "tls.key"),
        (&good.certificate, &other.key, None, "tls.key"),
        (&good.certificate, &good.key, Some(""), "ca.crt"),
        (&good.certificate, &good.key, Some(garbage), "ca.crt"),
    ] {
        let folder = Folder::new();
        folder.write("tls.crt", certificate);
        folder.write("tls.key", key);
        let client_auth = ca.map_or(ClientAuth::None, |ca| {
            folder.write("ca.crt", ca);
            ClientAuth::Required
        });
        let error = Server::bind(secured(&folder, client_auth)).await.expect_err(part);
        let ServeError::Setting { setting: "server.tls", problem } = error else {
            panic!("expected a wrong setting, found {error}");
        };
        assert!(problem.contains(part), "expected `{part}` in: {problem}");
        assert!(!problem.contains("PRIVATE"), "{problem}");
    }
    let error =
        Server::bind(secured(&Folder::new(), ClientAuth::None)).await.expect_err("is empty");
    assert!(error.to_string().contains("tls.crt"), "{error}");
}
