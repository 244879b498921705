//! Identities and the prefix cache: what one leaves there is not another's, by no RPC, and still not
//! after a restart.

mod support;

use sconce_proto::v1::export_snapshot_response::Part as Exported;
use sconce_proto::v1::import_snapshot_request::Part;
use sconce_proto::v1::{
    CacheOptions, CacheReason, CacheReport, CompleteRequest, DescribeCacheRequest,
    DescribeCacheResponse, DropSnapshotRequest, ExportSnapshotRequest, ImportSnapshotRequest,
    ListSnapshotsRequest, MatchPrefixRequest, SnapshotInfo, SnapshotRequest, TokensPrompt,
    match_prefix_request, snapshot_request,
};
use sconce_server::serve::ServePlan;
use support::identity::{Client, guarded};
use support::tls::Folder;
use support::{MODEL, Secured, collect, details, plan, tokens, within};
use tonic::Code;

fn prompt() -> Vec<u32> {
    (0..300).map(|i| (i * 7) % 251).collect()
}

fn salted(salt: Option<&str>) -> Option<CacheOptions> {
    Some(CacheOptions { salt: salt.map(str::to_owned), ..CacheOptions::default() })
}

/// Runs a completion to its end and tells what its prompt resumed.
async fn complete(client: &Client, salt: Option<&str>) -> CacheReport {
    let request = CompleteRequest { cache: salted(salt), ..tokens(prompt(), 4) };
    let stream = client.inference().complete(request).await.expect("completes").into_inner();
    let completed = collect(stream).await;
    assert_eq!(completed.status.map(|status| status.code()), None);
    completed.started.expect("is told").cache.expect("is told")
}

async fn matched(client: &Client, salt: Option<&str>) -> CacheReport {
    let request = MatchPrefixRequest {
        model: MODEL.to_owned(),
        prompt: Some(match_prefix_request::Prompt::Tokens(TokensPrompt { ids: prompt() })),
        salt: salt.map(str::to_owned),
        ..MatchPrefixRequest::default()
    };
    let answer = client.state().match_prefix(request).await.expect("is looked up");
    answer.into_inner().cache.expect("a report")
}

async fn described(client: &Client) -> DescribeCacheResponse {
    let request = DescribeCacheRequest { model: MODEL.to_owned(), ..Default::default() };
    client.state().describe_cache(request).await.expect("is described").into_inner()
}

async fn keep(client: &Client, name: &str, salt: Option<&str>) -> SnapshotInfo {
    let request = SnapshotRequest {
        model: MODEL.to_owned(),
        prompt: Some(snapshot_request::Prompt::Tokens(TokensPrompt { ids: prompt() })),
        name: name.to_owned(),
        salt: salt.map(str::to_owned),
        ..SnapshotRequest::default()
    };
    let kept = client.state().snapshot(request).await.expect("is kept");
    kept.into_inner().snapshot.expect("is told")
}

async fn listed(client: &Client) -> Vec<String> {
    let request = ListSnapshotsRequest::default();
    let listed = client.state().list_snapshots(request).await.expect("are listed").into_inner();
    listed.snapshots.into_iter().map(|snapshot| snapshot.name).collect()
}

async fn exported(client: &Client, id: &str) -> Vec<ImportSnapshotRequest> {
    let request = ExportSnapshotRequest { id: id.to_owned() };
    let mut parts = client.state().export_snapshot(request).await.expect("begins").into_inner();
    let mut messages = Vec::new();
    while let Some(part) = parts.message().await.expect("goes on") {
        let part = match part.part.expect("a part") {
            Exported::Header(header) => Part::Header(header),
            Exported::Chunk(chunk) => Part::Chunk(chunk),
            Exported::Trailer(trailer) => Part::Trailer(trailer),
        };
        messages.push(ImportSnapshotRequest { part: Some(part), ..Default::default() });
    }
    messages[0].model = MODEL.to_owned();
    messages
}

/// Every identity is an admin, so that nothing but the namespace keeps them apart.
fn all_admins(folder: &Folder) -> ServePlan {
    let mut plan = guarded(plan("recurrent=true"), folder);
    plan.security.auth.admins = ["alice", "bob", "ops"].map(str::to_owned).to_vec();
    plan
}

#[tokio::test]
async fn the_same_prompt_of_another_identity_is_cold() {
    within(async {
        let folder = Folder::new();
        let server = Secured::start(all_admins(&folder)).await;
        let alice = Client::named(&server.handle, "alice").await;
        let bob = Client::named(&server.handle, "bob").await;
        assert_eq!(complete(&alice, None).await.reason(), CacheReason::NotFound);
        for salt in [None, Some("alice"), Some("\u{1}alice\u{1}")] {
            for report in [matched(&bob, salt).await, complete(&bob, salt).await] {
                assert_eq!(report.reason(), CacheReason::NotFound, "{salt:?}");
                assert_eq!((report.matched_tokens, report.resumed_tokens), (0, 0), "{salt:?}");
            }
        }
        for client in [&alice, &bob] {
            assert!(matched(client, None).await.resumed_tokens > 200);
            assert!(complete(client, None).await.resumed_tokens > 200);
        }
        // Within an identity, salts separate as ever.
        assert_eq!(matched(&alice, Some("s")).await.matched_tokens, 0);
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_description_shows_nothing_that_others_do() {
    within(async {
        let folder = Folder::new();
        let server = Secured::start(all_admins(&folder)).await;
        let alice = Client::named(&server.handle, "alice").await;
        let bob = Client::named(&server.handle, "bob").await;
        let empty = described(&bob).await;
        assert!(empty.nodes.is_empty());
        complete(&alice, None).await;
        complete(&alice, None).await;
        assert_eq!(described(&bob).await, empty);
        let alices = described(&alice).await;
        assert!(!alices.nodes.is_empty() && alices.tiers[0].used_bytes > 0);
        complete(&bob, None).await;
        keep(&bob, "b", None).await;
        assert_eq!(described(&alice).await, alices);
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn snapshots_of_others_are_not_there() {
    within(async {
        let folder = Folder::new();
        let server = Secured::start(all_admins(&folder)).await;
        let alice = Client::named(&server.handle, "alice").await;
        let bob = Client::named(&server.handle, "bob").await;
        let kept = keep(&alice, "system", None).await;
        assert_eq!(listed(&alice).await, ["system"]);
        assert!(listed(&bob).await.is_empty());
        let told = |status: tonic::Status, id: &str| {
            details(&status, Code::NotFound, "SNAPSHOT_NOT_FOUND");
            status.message().replace(&format!("`{id}`"), "`ID`")
        };
        let mut said = std::collections::HashSet::new();
        for id in [kept.id.clone(), "4711".to_owned()] {
            let request = DropSnapshotRequest { id: id.clone() };
            let refused = bob.state().drop_snapshot(request).await.expect_err("is not there");
            said.insert(told(refused, &id));
            let request = ExportSnapshotRequest { id: id.clone() };
            let refused = bob.state().export_snapshot(request).await.map(|_| ());
            said.insert(told(refused.expect_err("is not there"), &id));
        }
        assert_eq!(said.len(), 1, "a refusal tells whose it is: {said:?}");
        // A name is one identity's own, too.
        keep(&bob, "system", None).await;
        assert_eq!(listed(&alice).await, ["system"]);
        let request = DropSnapshotRequest { id: kept.id.clone() };
        alice.state().drop_snapshot(request).await.expect("is its own");
        assert!(listed(&alice).await.is_empty());
        assert_eq!(listed(&bob).await, ["system"]);
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_moves_becomes_the_importers_own() {
    within(async {
        let folder = Folder::new();
        let server = Secured::start(all_admins(&folder)).await;
        let alice = Client::named(&server.handle, "alice").await;
        let bob = Client::named(&server.handle, "bob").await;
        let kept = keep(&alice, "system", Some("s")).await;
        let file = exported(&alice, &kept.id).await;
        for message in &file {
            if let Some(Part::Chunk(chunk)) = &message.part {
                assert!(
                    !chunk.windows(5).any(|bytes| bytes == b"alice"),
                    "the file names its owner"
                );
            }
        }
        bob.state().import_snapshot(tokio_stream::iter(file)).await.expect("is taken in");
        assert_eq!(listed(&bob).await, ["system"]);
        assert!(matched(&bob, Some("s")).await.resumed_tokens > 200, "its salt came along");
        assert_eq!(matched(&bob, None).await.matched_tokens, 0);
        let ops = Client::named(&server.handle, "ops").await;
        assert_eq!(matched(&ops, Some("s")).await.matched_tokens, 0);
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn identities_that_share_the_cache_share_it() {
    within(async {
        let folder = Folder::new();
        let mut plan = all_admins(&folder);
        plan.security.auth.shared_cache = true;
        let server = Secured::start(plan).await;
        let alice = Client::named(&server.handle, "alice").await;
        let bob = Client::named(&server.handle, "bob").await;
        keep(&alice, "system", None).await;
        assert_eq!(listed(&bob).await, ["system"]);
        assert!(complete(&bob, None).await.resumed_tokens > 200);
        server.end().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_restart_finds_on_disk_is_still_whose_it_was() {
    within(async {
        let (folder, cache) = (Folder::new(), Folder::new());
        let on_disk = |mut plan: ServePlan| {
            plan.cache.host = 64 << 20;
            plan.cache.disk = 64 << 20;
            plan.cache.directory = Some(cache.0.path().to_owned());
            plan
        };
        let server = Secured::start(on_disk(all_admins(&folder))).await;
        let alice = Client::named(&server.handle, "alice").await;
        keep(&alice, "system", None).await;
        drop(alice);
        server.end().await;

        let server = Secured::start(on_disk(all_admins(&folder))).await;
        let alice = Client::named(&server.handle, "alice").await;
        let bob = Client::named(&server.handle, "bob").await;
        assert_eq!(listed(&alice).await, ["system"]);
        assert!(listed(&bob).await.is_empty());
        assert_eq!(matched(&bob, None).await.matched_tokens, 0);
        assert!(complete(&alice, None).await.resumed_tokens > 200);
        drop((alice, bob));
        server.end().await;

        // A server that asks nobody for a name has what nobody with a name left.
        let server = Secured::start(on_disk(plan("recurrent=true"))).await;
        let anyone = Client::with(&server.handle, None).await;
        assert!(listed(&anyone).await.is_empty());
        for salt in [None, Some("\u{1}alice\u{1}")] {
            assert_eq!(matched(&anyone, salt).await.matched_tokens, 0, "{salt:?}");
        }
        server.end().await;
    })
    .await;
}
