//! Who is let in, over a socket: tokens, certificates, roles, what is open to all, and limits of an
//! identity. That identities do not see each other's state is in `tenants.rs`.

mod support;

use sconce_proto::health::HealthCheckRequest;
use sconce_proto::health::health_client::HealthClient;
use sconce_proto::v1::{
    DropSnapshotRequest, EstimateLoadRequest, ExportSnapshotRequest, GetStatusRequest,
    ListModelsRequest, LoadRequest, UnloadRequest,
};
use sconce_server::serve::{ClientAuth, Exempt, ListenAddress, ServePlan, TlsPlan};
use support::identity::{Client, TOKENS, guarded};
use support::prometheus::Scrape;
use support::tls::{Authority, Folder, channel, dns, uri};
use support::{MODEL, Secured, details, plan, text, tokens, within};
use tonic::{Code, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

async fn lists(client: &Client) -> Result<(), Status> {
    client.models().list_models(ListModelsRequest {}).await.map(|_| ())
}

async fn load(client: &Client, path: &str) -> Result<(), Status> {
    let request =
        LoadRequest { model: "m".to_owned(), path: path.to_owned(), ..LoadRequest::default() };
    let mut news = client.models().load(request).await?.into_inner();
    while news.message().await?.is_some() {}
    Ok(())
}

async fn reflects(client: &Client) -> Result<(), Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(client.channel());
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([request])).await?.into_inner();
    answers.message().await.map(|_| ())
}

async fn checks(client: &Client) -> Result<(), Status> {
    let request = HealthCheckRequest { service: "liveness".to_owned() };
    HealthClient::new(client.channel()).check(request).await.map(|_| ())
}

fn is_unauthenticated(answer: Result<(), Status>) {
    details(&answer.expect_err("is refused"), Code::Unauthenticated, "UNAUTHENTICATED");
}

#[tokio::test]
async fn a_request_needs_a_token_that_is_known() {
    within(async {
        let folder = Folder::new();
        let server = Secured::start(guarded(plan(""), &folder)).await;
        lists(&Client::named(&server.handle, "alice").await).await.expect("is let in");
        for wrong in [
            None,
            Some("Bearer token-of-alice-0002"),
            Some("Bearer token-of-alice-000"),
            Some("Bearer alice"),
            Some("token-of-alice-0001"),
            Some("Basic token-of-alice-0001"),
        ] {
            let client = Client::with(&server.handle, wrong).await;
            is_unauthenticated(lists(&client).await);
            is_unauthenticated(load(&client, "sim:").await);
            let refused = client.inference().complete(text("hello", 4)).await.map(|_| ());
            if let Err(status) = &refused {
                assert!(!status.message().contains("token-of"), "{status:?}");
            }
            is_unauthenticated(refused);
        }
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn tokens_are_replaced_while_the_server_runs() {
    within(async {
        let folder = Folder::new();
        let mut plan = guarded(plan(""), &folder);
        plan.admin = vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())];
        let server = Secured::start(plan).await;
        let stale = async || {
            let page = support::http::ask(&server.handle.admin_addrs()[0], "GET", "/metrics").await;
            let labels = [("secret", "server.auth.tokens")];
            Scrape::read(&page.body).value("sconce_secret_stale", &labels)
        };
        let old = Client::named(&server.handle, "alice").await;
        let new = Client::with(&server.handle, Some("Bearer the-next-of-alice")).await;
        is_unauthenticated(lists(&new).await);
        // Both count while clients change over.
        folder.write("tokens", &format!("{TOKENS}alice:the-next-of-alice\n"));
        server.handle.reload().await;
        lists(&old).await.expect("is known still");
        lists(&new).await.expect("is known");
        assert_eq!(stale().await, 0.0);
        // What is wrong changes nothing and is told.
        folder.write("tokens", "alice\n");
        server.handle.reload().await;
        let status =
            new.models().get_status(GetStatusRequest {}).await.expect("tells").into_inner();
        assert_eq!(status.secrets.len(), 1);
        assert_eq!(status.secrets[0].name, "server.auth.tokens");
        assert!(status.secrets[0].problem.as_deref().is_some_and(|p| p.contains("line 1")));
        assert_eq!(stale().await, 1.0);
        folder.write("tokens", "alice:the-next-of-alice\n");
        server.handle.reload().await;
        is_unauthenticated(lists(&old).await);
        lists(&new).await.expect("is known");
        assert_eq!(stale().await, 0.0);
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn health_is_open_and_the_rest_by_setting() {
    within(async {
        let folder = Folder::new();
        for (exempt, health, reflection) in [
            (vec![Exempt::Health], true, false),
            (vec![Exempt::Reflection], false, true),
            (vec![], false, false),
        ] {
            let mut plan = guarded(plan(""), &folder);
            plan.security.auth.exempt = exempt;
            let server = Secured::start(plan).await;
            let stranger = Client::with(&server.handle, None).await;
            let alice = Client::named(&server.handle, "alice").await;
            for (open, asked, known) in [
                (health, checks(&stranger).await, checks(&alice).await),
                (reflection, reflects(&stranger).await, reflects(&alice).await),
            ] {
                known.expect("is let in");
                match open {
                    true => asked.expect("is open"),
                    false => is_unauthenticated(asked),
                }
            }
            is_unauthenticated(lists(&stranger).await);
            server.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn metrics_on_the_same_port_are_open_by_setting() {
    within(async {
        let folder = Folder::new();
        for (exempt, status) in [(vec![Exempt::Health], 401), (vec![Exempt::Metrics], 200)] {
            let mut plan = guarded(plan(""), &folder);
            plan.security.auth.exempt = exempt;
            let server = Secured::start(plan).await;
            let address = &server.handle.local_addrs()[0];
            let answer = support::http::ask(address, "GET", "/metrics").await;
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
            server.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn only_an_admin_changes_the_server() {
    within(async {
        let folder = Folder::new();
        let server = Secured::start(guarded(plan(""), &folder)).await;
        let alice = Client::named(&server.handle, "alice").await;
        let id = || "1".to_owned();
        let (mut models, mut state) = (alice.models(), alice.state());
        // Its own snapshots it may drop; there is none.
        let dropped = state.drop_snapshot(DropSnapshotRequest { id: id() }).await;
        details(&dropped.expect_err("is not there"), Code::NotFound, "SNAPSHOT_NOT_FOUND");
        let estimate = EstimateLoadRequest { path: "sim:".to_owned(), ..Default::default() };
        for refused in [
            load(&alice, "sim:").await,
            models.unload(UnloadRequest { model: MODEL.to_owned() }).await.map(|_| ()),
            models.estimate_load(estimate).await.map(|_| ()),
            state.export_snapshot(ExportSnapshotRequest { id: id() }).await.map(|_| ()),
            state.import_snapshot(tokio_stream::empty()).await.map(|_| ()),
        ] {
            let status = refused.expect_err("is refused");
            let told = details(&status, Code::PermissionDenied, "ROLE_REQUIRED");
            assert_eq!(told.error_info().expect("is there").metadata["role"], "admin");
        }
        alice.inference().complete(text("hello", 4)).await.expect("may ask");
        let ops = Client::named(&server.handle, "ops").await;
        load(&ops, "sim:").await.expect("may load");
        let unload = UnloadRequest { model: "m".to_owned() };
        ops.models().unload(unload).await.expect("may unload");
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn rpcs_of_admins_can_be_turned_off_for_all() {
    within(async {
        let mut plan = plan("");
        plan.security.admin_rpcs = false;
        let server = Secured::start(plan).await;
        let client = Client::with(&server.handle, None).await;
        let status = load(&client, "sim:").await.expect_err("is off");
        support::names_feature(&status, "sconce.v1.ModelService/Load");
        lists(&client).await.expect("is on");
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_is_an_identity() {
    within(async {
        let (authority, folder) = (Authority::new(), Folder::new());
        folder.keep(&authority.server());
        let mut plan = guarded(plan(""), &folder);
        plan.security.auth.certificates = true;
        plan.security.auth.admins.push("spiffe://example/gateway".to_owned());
        plan.security.tls = Some(TlsPlan {
            certificate: folder.path("tls.crt"),
            key: folder.path("tls.key"),
            client_ca: Some(folder.write("ca.crt", &authority.pem())),
            client_auth: ClientAuth::Optional,
        });
        let server = Secured::start(plan).await;
        let shows = async |names| {
            let pair = authority.client(names);
            channel(&server.handle, &authority, Some(&pair)).await.expect("connects")
        };
        let gateway = shows(vec![dns("a.example"), uri("spiffe://example/gateway")]).await;
        load(&Client::on(gateway, None), "sim:").await.expect("is an admin by its URI");
        let other = Client::on(shows(vec![dns("a.example")]).await, None);
        lists(&other).await.expect("has a name");
        details(
            &load(&other, "sim:").await.expect_err("is no admin"),
            Code::PermissionDenied,
            "ROLE_REQUIRED",
        );
        is_unauthenticated(lists(&Client::on(shows(vec![]).await, None)).await);
        let none = channel(&server.handle, &authority, None).await.expect("connects");
        is_unauthenticated(lists(&Client::on(none.clone(), None)).await);
        let token = Some("Bearer token-of-alice-0001");
        lists(&Client::on(none, token)).await.expect("has a token");
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_identity_has_so_many_open_requests_and_others_have_theirs() {
    within(async {
        let folder = Folder::new();
        let mut plan = guarded(plan("context=100000000"), &folder);
        plan.security.auth.requests_max = 2;
        let server = Secured::start(plan).await;
        let alice = Client::named(&server.handle, "alice").await;
        let again = Client::named(&server.handle, "alice").await;
        let open = async |client: &Client| {
            client.inference().complete(text("hello", 10_000_000)).await.map(|r| r.into_inner())
        };
        let first = open(&alice).await.expect("is the first");
        let second = open(&alice).await.expect("is the second");
        // On whichever connection.
        let status = open(&again).await.map(|_| ()).expect_err("is one too many");
        let told = details(&status, Code::ResourceExhausted, "QUEUE_FULL");
        assert!(told.retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{told:?}");
        assert!(status.message().contains("`alice`"), "{status:?}");
        let bob = Client::named(&server.handle, "bob").await;
        let bobs = open(&bob).await.expect("is another's");
        drop(first);
        // The server hears of it in its time.
        let mut calls = 0;
        while lists(&alice).await.is_err() {
            calls += 1;
            assert!(calls < 20_000, "the place is never free again");
            tokio::task::yield_now().await;
        }
        drop((second, bobs, alice, again, bob));
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_identity_fills_its_part_of_the_queue_alone() {
    within(async {
        let folder = Folder::new();
        // A token each millisecond.
        let mut plan = guarded(plan("decode_us=1000,context=1000000"), &folder);
        plan.engine.sequences_max = 1;
        plan.engine.waiting_max = 8;
        plan.security.auth.waiting_max = 2;
        let server = Secured::start(plan).await;
        let alice = Client::named(&server.handle, "alice").await;
        let long = || tokens(vec![7; 8], 900_000);
        // It is read, for one that stands still gives its place to those who wait.
        let mut running = alice.inference().complete(long()).await.expect("runs").into_inner();
        let running =
            tokio::spawn(async move { while let Ok(Some(_)) = running.message().await {} });
        let ask = |client: &Client| {
            let mut client = client.inference();
            tokio::spawn(async move { client.complete(long()).await.map(|_| ()) })
        };
        let waiting = |count: usize| {
            let models = server.handle.models().clone();
            async move {
                let mut statuses = 0;
                while models.status().waiting < count {
                    statuses += 1;
                    assert!(statuses < 1_000_000, "not {count} wait");
                    tokio::task::yield_now().await;
                }
            }
        };
        let queue = [ask(&alice), ask(&alice)];
        waiting(2).await;
        let status = ask(&alice).await.expect("ends").expect_err("is one too many");
        let told = details(&status, Code::ResourceExhausted, "QUEUE_FULL");
        assert!(told.retry_info().is_some());
        assert!(status.message().contains("the queue of `alice`"), "{status:?}");
        let bob = Client::named(&server.handle, "bob").await;
        let bobs = ask(&bob);
        waiting(3).await;
        running.abort();
        for asked in queue.into_iter().chain([bobs]) {
            asked.await.expect("ends").expect("has its turn");
        }
        drop((alice, bob));
        server.end().await;
    })
    .await;
}

/// Loads within roots: what is refused, and how.
#[tokio::test]
async fn a_load_stays_within_the_roots() {
    within(async {
        let folder = Folder::new();
        std::fs::create_dir_all(folder.path("models")).expect("makes");
        folder.write("secret", "x");
        let root = folder.path("models").to_str().expect("is UTF-8").to_owned();
        let mut plan = plan("");
        plan.security.model_roots = vec![root.clone(), "sim:".to_owned()];
        let server = Secured::start(plan).await;
        let client = Client::with(&server.handle, None).await;
        load(&client, "sim:").await.expect("is a root");
        let status = load(&client, &format!("{root}/none")).await.expect_err("is not there");
        details(&status, Code::NotFound, "CHECKPOINT_NOT_FOUND");
        let mut said = std::collections::HashSet::new();
        for path in ["secret", "none", "models/../secret", "models/../none"] {
            let path = folder.path(path).to_str().expect("is UTF-8").to_owned();
            let estimate = EstimateLoadRequest { path: path.clone(), ..Default::default() };
            let mut models = client.models();
            for refused in
                [load(&client, &path).await, models.estimate_load(estimate).await.map(|_| ())]
            {
                let status = refused.expect_err("is outside");
                let told = details(&status, Code::PermissionDenied, "PATH_REFUSED");
                let info = told.error_info().expect("is there").clone();
                said.insert((status.message().to_owned(), format!("{:?}", info.metadata)));
            }
        }
        assert_eq!(said.len(), 1, "a refusal tells what is there: {said:?}");
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn strangers_on_a_network_load_nothing_unless_there_are_roots() {
    within(async {
        // Every address of this machine; the test asks over loopback.
        let everywhere = || ServePlan {
            listen: vec![
                ListenAddress::Tcp(([127, 0, 0, 1], 0).into()),
                ListenAddress::Tcp(([0, 0, 0, 0], 0).into()),
            ],
            ..plan("")
        };
        let server = Secured::start(everywhere()).await;
        let client = Client::with(&server.handle, None).await;
        let status = load(&client, "sim:").await.expect_err("is refused");
        details(&status, Code::PermissionDenied, "PATH_REFUSED");
        server.end().await;

        let folder = Folder::new();
        let server = Secured::start(guarded(everywhere(), &folder)).await;
        load(&Client::named(&server.handle, "ops").await, "sim:")
            .await
            .expect("has a name and a role");
        server.end().await;
    })
    .await;
}
