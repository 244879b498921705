//! The admin port and the HTTP/1.1 that the gRPC port speaks, over sockets.

mod support;

use std::time::Duration;

use sconce_server::serve::ListenAddress;
use support::http::{ask, get};
use support::{Fixture, connect, plan, within};

/// A plan with an admin port on TCP and one on a Unix socket in `dir`.
fn watched(dir: &tempfile::TempDir) -> sconce_server::serve::ServePlan {
    let mut plan = plan("");
    plan.admin = vec![
        ListenAddress::Tcp(([127, 0, 0, 1], 0).into()),
        ListenAddress::Unix(dir.path().join("admin.sock")),
    ];
    plan
}

#[tokio::test]
async fn probes_and_scrapers_are_answered_on_every_admin_address() {
    within(async {
        let dir = tempfile::tempdir().expect("a directory");
        let fixture = Fixture::with(watched(&dir)).await;
        let addresses = fixture.handle.admin_addrs().to_vec();
        assert_eq!(addresses.len(), 2);
        for address in &addresses {
            for path in ["/livez", "/readyz"] {
                let answer = get(address, path).await;
                assert_eq!((answer.status, answer.body.as_str()), (200, "serving\n"), "{path}");
            }
            let health = get(address, "/healthz").await;
            assert_eq!(health.status, 200);
            assert!(health.body.contains("sconce.v1.InferenceService serving\n"), "{health:?}");
            let metrics = get(address, "/metrics").await;
            assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
            assert!(metrics.body.contains("\nsconce_ready 1\n"), "{metrics:?}");
            assert_eq!(get(address, "/nothing").await.status, 404);
            assert_eq!(ask(address, "POST", "/metrics").await.status, 405);
            // gRPC is not spoken here.
            assert_eq!(ask(address, "POST", "/grpc.health.v1.Health/Check").await.status, 404);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_drain_can_be_watched_to_its_end() {
    within(async {
        let dir = tempfile::tempdir().expect("a directory");
        let mut plan = watched(&dir);
        plan.drain.withdrawal = Duration::from_secs(3600);
        let fixture = Fixture::with(plan).await;
        let admin = fixture.handle.admin_addrs()[0].clone();
        fixture.handle.shut_down();
        // The board changes with the first step of the drain.
        while get(&admin, "/readyz").await.status == 200 {
            tokio::task::yield_now().await;
        }
        assert_eq!(get(&admin, "/livez").await.status, 200);
        assert!(get(&admin, "/metrics").await.body.contains("\nsconce_ready 0\n"));
        fixture.handle.close();
        fixture.task.await.expect("does not panic").expect("ends in order");
        let ListenAddress::Tcp(address) = admin else { panic!("the first is TCP") };
        tokio::net::TcpStream::connect(address).await.expect_err("is closed");
    })
    .await;
}

#[tokio::test]
async fn the_grpc_port_speaks_http_1_for_scrapes_alone() {
    within(async {
        let fixture = Fixture::start().await;
        let address = fixture.handle.local_addrs()[0].clone();
        let metrics = get(&address, "/metrics").await;
        assert_eq!(metrics.status, 200);
        assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        assert!(metrics.body.contains("\nsconce_ready 1\n"), "{metrics:?}");
        let head = ask(&address, "HEAD", "/metrics").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        for (method, path) in [
            ("GET", "/health"),
            ("GET", "/"),
            ("GET", "/v1/models"),
            ("POST", "/metrics"),
            ("POST", "/sconce.v1.ModelService/ListModels"),
        ] {
            let answer = ask(&address, method, path).await;
            assert_eq!(answer.status, 505, "{method} {path}");
            assert_eq!(answer.headers["connection"], "close");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_grpc_port_is_scraped_over_http_2_beside_grpc() {
    within(async {
        let fixture = Fixture::start().await;
        let address = fixture.handle.local_addrs()[0].to_string();
        let client =
            hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
                .http2_only(true)
                .build_http::<tonic::body::Body>();
        let uri: http::Uri = format!("http://{address}/metrics").parse().expect("is one");
        let answer = client.get(uri).await.expect("answers");
        assert_eq!(
            (answer.status(), answer.version()),
            (http::StatusCode::OK, http::Version::HTTP_2)
        );
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        drop(connect(&fixture.handle).await);
        drop(client);
        fixture.end().await;
    })
    .await;
}
