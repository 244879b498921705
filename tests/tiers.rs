//! What is remembered beyond the memory of a model, over a socket: while the model is unloaded, and
//! while there is no server.

mod support;

use sconce_proto::v1::load_response::Event;
use sconce_proto::v1::{
    CacheReport, CompleteRequest, ListSnapshotsRequest, LoadRequest, Sampling, SnapshotInfo,
    SnapshotRequest, Tier, TokensPrompt, UnloadRequest, snapshot_request,
};
use support::{Completed, Fixture, MODEL, tokens, within};

/// Models whose state can be cut anywhere, and whose state lies at restore points alone.
const KINDS: [&str; 2] = ["", "recurrent=true"];

/// Room for everything these tests leave.
const TIER_BYTES: u64 = 1 << 30;

/// Most tokens that an exact repeat may compute again.
const REPEAT_MAX: u32 = 131;

fn prompt() -> Vec<u32> {
    (0..1000).map(|i| i * 7 % 251).collect()
}

async fn complete(fixture: &Fixture) -> Completed {
    let sampling = Some(Sampling { temperature: Some(0.0), ..Sampling::default() });
    let request = CompleteRequest { sampling, ..tokens(prompt(), 8) };
    fixture.complete(request).await.expect("completes")
}

/// What was remembered for a repeat that had to be right.
fn report(repeat: &Completed, first: &Completed) -> CacheReport {
    assert_eq!(repeat.token_ids(), first.token_ids());
    let report = repeat.started.as_ref().expect("a first message").cache.expect("a report");
    assert!(report.recomputed_tokens <= REPEAT_MAX, "{report:?}");
    report
}

async fn unload(fixture: &Fixture) {
    let request = UnloadRequest { model: MODEL.to_owned() };
    fixture.models().unload(request).await.expect("is unloaded");
}

async fn load(fixture: &Fixture, path: &str) {
    let request =
        LoadRequest { model: MODEL.to_owned(), path: path.to_owned(), ..LoadRequest::default() };
    let mut news = fixture.models().load(request).await.expect("begins").into_inner();
    while let Some(message) = news.message().await.expect("goes on") {
        if let Some(Event::ModelInfo(_)) = message.event {
            return;
        }
    }
    panic!("the load ended without a model");
}

async fn keep(fixture: &Fixture) -> SnapshotInfo {
    let request = SnapshotRequest {
        model: MODEL.to_owned(),
        prompt: Some(snapshot_request::Prompt::Tokens(TokensPrompt { ids: prompt() })),
        name: "kept".to_owned(),
        pinned: true,
        ..SnapshotRequest::default()
    };
    let answer = fixture.state().snapshot(request).await.expect("is kept").into_inner();
    answer.snapshot.expect("is told")
}

async fn snapshots(fixture: &Fixture) -> Vec<SnapshotInfo> {
    let request = ListSnapshotsRequest::default();
    fixture.state().list_snapshots(request).await.expect("are listed").into_inner().snapshots
}

#[tokio::test]
async fn an_unloaded_model_is_remembered_in_main_memory() {
    within(async {
        for kind in KINDS {
            let mut plan = support::plan(kind);
            let path = plan.models[0].path.clone();
            plan.cache.host = TIER_BYTES;
            let fixture = Fixture::with(plan).await;
            let first = complete(&fixture).await;
            let kept = keep(&fixture).await;
            unload(&fixture).await;
            let listed = snapshots(&fixture).await;
            assert_eq!((listed.len(), listed[0].tier()), (1, Tier::Host));
            load(&fixture, &path).await;
            let repeat = complete(&fixture).await;
            assert_eq!(report(&repeat, &first).tier(), Tier::Host);
            assert_eq!(snapshots(&fixture).await[0].token_count, kept.token_count);
            fixture.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_starts_again_finds_what_it_left_on_disk() {
    within(async {
        for kind in KINDS {
            let folder = tempfile::tempdir().expect("a folder");
            let plan = || {
                let mut plan = support::plan(kind);
                plan.cache.disk = TIER_BYTES;
                plan.cache.directory = Some(folder.path().to_owned());
                plan
            };
            let fixture = Fixture::with(plan()).await;
            let first = complete(&fixture).await;
            let kept = keep(&fixture).await;
            fixture.end().await;

            let fixture = Fixture::with(plan()).await;
            let listed = snapshots(&fixture).await;
            assert_eq!(listed.len(), 1);
            assert_eq!((listed[0].name.as_str(), listed[0].pinned), ("kept", true));
            assert_eq!((listed[0].token_count, listed[0].tier()), (kept.token_count, Tier::Disk));
            let repeat = complete(&fixture).await;
            assert_eq!(report(&repeat, &first).tier(), Tier::Disk);
            fixture.end().await;
        }
    })
    .await;
}
