//! Snapshots over a socket: kept, listed, dropped, moved from server to server, and every import
//! that is not in order refused.

mod support;

use std::time::Duration;

use sconce_proto::v1::export_snapshot_response::Part as ExportPart;
use sconce_proto::v1::import_snapshot_request::Part;
use sconce_proto::v1::{
    CacheOptions, CacheReason, CacheReport, CompleteRequest, DropSnapshotRequest,
    ExportSnapshotRequest, ExportSnapshotResponse, ImportSnapshotRequest, ListModelsRequest,
    ListSnapshotsRequest, MatchPrefixRequest, Media, Sampling, SnapshotHeader, SnapshotInfo,
    SnapshotRequest, SnapshotTrailer, Tier, TokensPrompt, match_prefix_request, snapshot_request,
};
use support::{Fixture, MODEL, collect, details, names_feature, names_field, tokens, within};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// A model whose state lies at restore points alone.
const RECURRENT: &str = "recurrent=true";

/// Longest wait for a snapshot's end, in calls.
const CALLS_MAX: usize = 20_000;

/// Snapshots that may be on their way at once.
const TRANSFERS_MAX: usize = 4;

fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7 + seed) % 251) as u32).collect()
}

fn request(name: &str, ids: Vec<u32>) -> SnapshotRequest {
    SnapshotRequest {
        model: MODEL.to_owned(),
        prompt: Some(snapshot_request::Prompt::Tokens(TokensPrompt { ids })),
        name: name.to_owned(),
        ..SnapshotRequest::default()
    }
}

async fn keep(fixture: &Fixture, request: SnapshotRequest) -> SnapshotInfo {
    let answer = fixture.state().snapshot(request).await.expect("is kept");
    answer.into_inner().snapshot.expect("is told")
}

async fn list(fixture: &Fixture, model: Option<&str>, name: Option<&str>) -> Vec<SnapshotInfo> {
    let (model, name) = (model.map(str::to_owned), name.map(str::to_owned));
    let request = ListSnapshotsRequest { model, name };
    fixture.state().list_snapshots(request).await.expect("are listed").into_inner().snapshots
}

async fn forget(fixture: &Fixture, id: &str) {
    let request = DropSnapshotRequest { id: id.to_owned() };
    fixture.state().drop_snapshot(request).await.expect("is dropped");
}

async fn matched(fixture: &Fixture, ids: Vec<u32>) -> CacheReport {
    let request = MatchPrefixRequest {
        model: MODEL.to_owned(),
        prompt: Some(match_prefix_request::Prompt::Tokens(TokensPrompt { ids })),
        ..MatchPrefixRequest::default()
    };
    let answer = fixture.state().match_prefix(request).await.expect("is looked up");
    answer.into_inner().cache.expect("a report")
}

async fn export(fixture: &Fixture, id: &str) -> Vec<ExportPart> {
    let request = ExportSnapshotRequest { id: id.to_owned() };
    let mut stream = fixture.state().export_snapshot(request).await.expect("begins").into_inner();
    let mut parts = Vec::new();
    while let Some(ExportSnapshotResponse { part }) = stream.message().await.expect("goes on") {
        parts.push(part.expect("a part"));
    }
    parts
}

async fn import(
    fixture: &Fixture,
    messages: Vec<ImportSnapshotRequest>,
) -> Result<SnapshotInfo, Status> {
    let answer = fixture.state().import_snapshot(tokio_stream::iter(messages)).await;
    answer.map(|answer| answer.into_inner().snapshot.expect("is told"))
}

fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> Status {
    answer.expect_err("is refused")
}

/// The messages of an import of what was exported.
fn messages(parts: Vec<ExportPart>) -> Vec<ImportSnapshotRequest> {
    let mut messages: Vec<_> = parts
        .into_iter()
        .map(|part| {
            later(match part {
                ExportPart::Header(header) => Part::Header(header),
                ExportPart::Chunk(chunk) => Part::Chunk(chunk),
                ExportPart::Trailer(trailer) => Part::Trailer(trailer),
            })
        })
        .collect();
    messages[0].model = MODEL.to_owned();
    messages
}

fn later(part: Part) -> ImportSnapshotRequest {
    ImportSnapshotRequest { part: Some(part), ..ImportSnapshotRequest::default() }
}

fn chunk(content: &'static [u8]) -> ImportSnapshotRequest {
    later(Part::Chunk(content.into()))
}

/// The SHA-256 of `abc` (FIPS 180-2, appendix B.1).
fn trailer_of_abc() -> ImportSnapshotRequest {
    let sha256 = b"\xba\x78\x16\xbf\x8f\x01\xcf\xea\x41\x41\x40\xde\x5d\xae\x22\x23\
                   \xb0\x03\x61\xa3\x96\x17\x7a\x9c\xb4\x10\xff\x61\xf2\x00\x15\xad";
    later(Part::Trailer(SnapshotTrailer { sha256: sha256[..].into() }))
}

/// A first message that announces `bytes`, for the fixture's model.
async fn first(fixture: &Fixture, bytes: u64) -> ImportSnapshotRequest {
    let listed = fixture.models().list_models(ListModelsRequest {}).await.expect("lists");
    let header = SnapshotHeader {
        format_version: 1,
        model_fingerprint: listed.into_inner().models[0].fingerprint.clone(),
        token_count: 3,
        bytes,
        name: "n".to_owned(),
        ..SnapshotHeader::default()
    };
    let part = Some(Part::Header(header));
    ImportSnapshotRequest { model: MODEL.to_owned(), part }
}

#[tokio::test]
async fn a_snapshot_is_computed_kept_listed_and_dropped() {
    within(async {
        let fixture = Fixture::with(support::plan(RECURRENT)).await;
        let asked = SnapshotRequest { pinned: true, ..request("system", prompt(500, 1)) };
        let kept = keep(&fixture, asked).await;
        assert_eq!((kept.name.as_str(), kept.model.as_str()), ("system", MODEL));
        assert_eq!((kept.pinned, kept.ttl, kept.tier()), (true, None, Tier::Device));
        assert!(kept.token_count > 0 && kept.token_count <= 500 && kept.bytes > 0, "{kept:?}");
        assert_eq!(list(&fixture, None, None).await, std::slice::from_ref(&kept));

        let longer = [prompt(500, 1), prompt(50, 2)].concat();
        let report = matched(&fixture, longer).await;
        assert_eq!(report.resumed_tokens, kept.token_count);

        forget(&fixture, &kept.id).await;
        assert!(list(&fixture, None, None).await.is_empty());
        let again = DropSnapshotRequest { id: kept.id.clone() };
        let status = refused(fixture.state().drop_snapshot(again).await);
        details(&status, Code::NotFound, "SNAPSHOT_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn snapshots_are_found_by_model_and_by_name() {
    within(async {
        let fixture = Fixture::start().await;
        for (name, seed) in [("b", 1), ("a", 2)] {
            keep(&fixture, request(name, prompt(100, seed))).await;
        }
        let names = |found: Vec<SnapshotInfo>| -> Vec<String> {
            found.into_iter().map(|snapshot| snapshot.name).collect()
        };
        assert_eq!(names(list(&fixture, None, None).await), ["a", "b"]);
        assert_eq!(names(list(&fixture, Some(MODEL), None).await), ["a", "b"]);
        assert_eq!(names(list(&fixture, None, Some("b")).await), ["b"]);
        assert!(list(&fixture, Some("another"), None).await.is_empty());
        assert!(list(&fixture, None, Some("c")).await.is_empty());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_name_is_given_to_one_snapshot_at_a_time() {
    within(async {
        let fixture = Fixture::start().await;
        keep(&fixture, request("n", prompt(100, 1))).await;
        let second = keep(&fixture, request("n", prompt(200, 2))).await;
        assert_eq!(list(&fixture, None, None).await, [second]);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_with_an_end_goes_by_itself() {
    within(async {
        let fixture = Fixture::start().await;
        let with_ttl = |name, ttl: Duration| SnapshotRequest {
            pinned: true,
            ttl: Some(ttl.try_into().expect("fits")),
            ..request(name, prompt(100, 1))
        };
        let hour = Duration::from_secs(3600);
        let kept = keep(&fixture, with_ttl("long", hour)).await;
        let left: Duration = kept.ttl.expect("has an end").try_into().expect("is not negative");
        assert!(left <= hour && left > hour / 2, "{left:?}");
        keep(&fixture, with_ttl("short", Duration::from_millis(1))).await;
        for _ in 0..CALLS_MAX {
            if list(&fixture, None, Some("short")).await.is_empty() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let names: Vec<_> = list(&fixture, None, None).await;
        assert_eq!(names.len(), 1, "{names:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_pinned_completion_is_a_snapshot_named_by_its_request() {
    within(async {
        let fixture = Fixture::start().await;
        let cache = Some(CacheOptions { pin: true, ..CacheOptions::default() });
        let mut request = Request::new(CompleteRequest { cache, ..tokens(prompt(200, 1), 4) });
        request.metadata_mut().insert("x-request-id", "mine-1".parse().expect("ascii"));
        let stream = fixture.inference().complete(request).await.expect("completes").into_inner();
        assert!(collect(stream).await.status.is_none());
        let listed = list(&fixture, None, None).await;
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].name.as_str(), listed[0].pinned), ("mine-1", true));
        forget(&fixture, &listed[0].id).await;
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_field_of_a_snapshot_has_its_range() {
    within(async {
        let fixture = Fixture::start().await;
        let a = || request("n", vec![1]);
        let ids = |ids| Some(snapshot_request::Prompt::Tokens(TokensPrompt { ids }));
        let ttl = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let cases = [
            ("model", SnapshotRequest { model: String::new(), ..a() }),
            ("prompt", SnapshotRequest { prompt: None, ..a() }),
            ("tokens.ids", SnapshotRequest { prompt: ids(vec![]), ..a() }),
            ("tokens.ids[0]", SnapshotRequest { prompt: ids(vec![u32::MAX]), ..a() }),
            ("name", SnapshotRequest { name: String::new(), ..a() }),
            ("name", SnapshotRequest { name: "a b".to_owned(), ..a() }),
            ("ttl", SnapshotRequest { ttl: ttl(0), ..a() }),
            ("ttl", SnapshotRequest { ttl: ttl(-1), ..a() }),
            ("ttl", SnapshotRequest { ttl: ttl(i64::MAX), ..a() }),
            ("salt", SnapshotRequest { salt: Some("x".repeat(257)), ..a() }),
        ];
        for (field, request) in cases {
            names_field(&refused(fixture.state().snapshot(request).await), field);
        }
        let media = SnapshotRequest { media: vec![Media::default()], ..a() };
        names_feature(&refused(fixture.state().snapshot(media).await), "media");
        let unknown = SnapshotRequest { model: "nobody".to_owned(), ..a() };
        let status = refused(fixture.state().snapshot(unknown).await);
        details(&status, Code::NotFound, "MODEL_NOT_FOUND");
        assert!(list(&fixture, None, None).await.is_empty());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_server_whose_cache_is_off_keeps_nothing_and_says_so() {
    within(async {
        let mut plan = support::plan("");
        plan.cache.device = 0;
        let fixture = Fixture::with(plan).await;
        let status = refused(fixture.state().snapshot(request("n", prompt(100, 1))).await);
        let details = details(&status, Code::FailedPrecondition, "CACHE_OFF");
        assert_eq!(details.precondition_failure().expect("a violation").violations.len(), 1);
        assert_eq!(matched(&fixture, prompt(100, 1)).await.reason(), CacheReason::Disabled);
        let completed = fixture.complete(tokens(prompt(100, 1), 2)).await.expect("completes");
        let report = completed.started.expect("a first message").cache.expect("a report");
        assert_eq!(report.reason(), CacheReason::Disabled);
        assert!(list(&fixture, None, None).await.is_empty());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_is_not_kept_is_not_found() {
    within(async {
        let fixture = Fixture::start().await;
        let mut state = fixture.state();
        let id = || "nobody".to_owned();
        let dropped = refused(state.drop_snapshot(DropSnapshotRequest { id: id() }).await);
        let exported = refused(state.export_snapshot(ExportSnapshotRequest { id: id() }).await);
        for status in [dropped, exported] {
            let details = details(&status, Code::NotFound, "SNAPSHOT_NOT_FOUND");
            assert_eq!(details.resource_info().expect("a ResourceInfo").resource_name, "nobody");
        }
        for id in [String::new(), "x".repeat(129)] {
            let request = DropSnapshotRequest { id: id.clone() };
            names_field(&refused(state.drop_snapshot(request).await), "id");
            let request = ExportSnapshotRequest { id };
            names_field(&refused(state.export_snapshot(request).await), "id");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_exported_snapshot_saves_another_server_the_work() {
    within(async {
        for options in ["", RECURRENT] {
            let here = Fixture::with(support::plan(options)).await;
            let there = Fixture::with(support::plan(options)).await;
            let asked = SnapshotRequest { pinned: true, ..request("moved", prompt(1000, 1)) };
            let kept = keep(&here, asked).await;
            let parts = export(&here, &kept.id).await;
            let Some(ExportPart::Header(header)) = parts.first() else {
                panic!("expected a header first, found {:?}", parts.first());
            };
            assert_eq!((header.name.as_str(), header.pinned), ("moved", true));
            assert_eq!(header.token_count, kept.token_count);
            let chunks = parts.iter().filter_map(|part| match part {
                ExportPart::Chunk(chunk) => Some(chunk.len() as u64),
                _ => None,
            });
            assert_eq!(chunks.sum::<u64>(), header.bytes);
            assert!(matches!(parts.last(), Some(ExportPart::Trailer(_))));

            let moved = import(&there, messages(parts)).await.expect("is kept");
            assert_eq!((moved.name.as_str(), moved.pinned), ("moved", true));
            assert_eq!(moved.token_count, kept.token_count);
            let listed = list(&there, None, None).await;
            assert_eq!(listed, std::slice::from_ref(&moved));

            let longer = [prompt(1000, 1), prompt(20, 2)].concat();
            let sampling = Some(Sampling { temperature: Some(0.0), ..Sampling::default() });
            let longer = CompleteRequest { sampling, ..tokens(longer, 8) };
            let at_home = here.complete(longer.clone()).await.expect("completes");
            let abroad = there.complete(longer).await.expect("completes");
            let report = abroad.started.as_ref().expect("a first message").cache.expect("a report");
            assert_eq!(report.resumed_tokens, kept.token_count);
            assert_eq!(abroad.token_ids(), at_home.token_ids());
            here.end().await;
            there.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_export_that_is_dropped_makes_room_for_others() {
    within(async {
        let fixture = Fixture::start().await;
        let kept = keep(&fixture, request("n", prompt(1000, 1))).await;
        for _ in 0..3 * TRANSFERS_MAX {
            let request = ExportSnapshotRequest { id: kept.id.clone() };
            for _ in 0..CALLS_MAX {
                match fixture.state().export_snapshot(request.clone()).await {
                    Ok(stream) => {
                        drop(stream);
                        break;
                    }
                    Err(status) => details(&status, Code::ResourceExhausted, "QUEUE_FULL"),
                };
                tokio::task::yield_now().await;
            }
        }
        assert!(export(&fixture, &kept.id).await.len() > 2);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_import_out_of_order_is_refused_by_name_and_keeps_nothing() {
    within(async {
        let fixture = Fixture::start().await;
        let first = first(&fixture, 3).await;
        let again = ImportSnapshotRequest { model: String::new(), ..first.clone() };
        let wrong_digest = later(Part::Trailer(SnapshotTrailer { sha256: vec![0; 32].into() }));
        let short_digest = later(Part::Trailer(SnapshotTrailer { sha256: vec![0; 31].into() }));
        let large = later(Part::Chunk(vec![0; (1 << 20) + 1].into()));
        let named = ImportSnapshotRequest { model: MODEL.to_owned(), ..chunk(b"abc") };
        let nameless = ImportSnapshotRequest { model: String::new(), ..first.clone() };
        let whole = || vec![first.clone(), chunk(b"abc"), trailer_of_abc()];
        let cases = [
            ("part", vec![]),
            ("part", vec![ImportSnapshotRequest::default()]),
            ("part", vec![chunk(b"abc")]),
            ("model", vec![nameless]),
            ("part", vec![first.clone()]),
            ("part", vec![first.clone(), again]),
            ("part", vec![first.clone(), chunk(b"abc")]),
            ("model", vec![first.clone(), named]),
            ("chunk", vec![first.clone(), chunk(b"")]),
            ("chunk", vec![first.clone(), large]),
            ("chunk", vec![first.clone(), chunk(b"ab"), chunk(b"cd")]),
            ("chunk", vec![first.clone(), chunk(b"ab"), trailer_of_abc()]),
            ("trailer.sha256", vec![first.clone(), chunk(b"abc"), wrong_digest]),
            ("trailer.sha256", vec![first.clone(), chunk(b"abc"), short_digest]),
            ("part", [whole(), vec![chunk(b"d")]].concat()),
        ];
        for (field, messages) in cases {
            let status = import(&fixture, messages).await.expect_err("is refused");
            names_field(&status, field);
        }
        assert!(list(&fixture, None, None).await.is_empty());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_field_of_an_imports_header_is_checked() {
    within(async {
        let fixture = Fixture::start().await;
        let first = first(&fixture, 3).await;
        let header = match &first.part {
            Some(Part::Header(header)) => header.clone(),
            other => panic!("expected a header, found {other:?}"),
        };
        let a = || header.clone();
        let cases = [
            ("header.format_version", SnapshotHeader { format_version: 2, ..a() }),
            ("header.model_fingerprint", SnapshotHeader { model_fingerprint: "x".into(), ..a() }),
            ("header.token_count", SnapshotHeader { token_count: 0, ..a() }),
            ("header.bytes", SnapshotHeader { bytes: 0, ..a() }),
            ("header.bytes", SnapshotHeader { bytes: u64::MAX, ..a() }),
            ("header.name", SnapshotHeader { name: String::new(), ..a() }),
            ("header.ttl", SnapshotHeader { ttl: Some(Default::default()), ..a() }),
        ];
        for (field, header) in cases {
            let part = Some(Part::Header(header));
            let message = ImportSnapshotRequest { part, ..first.clone() };
            let status = import(&fixture, vec![message]).await.expect_err("is refused");
            names_field(&status, field);
        }
        let model = "nobody".to_owned();
        let unknown = ImportSnapshotRequest { model, ..first.clone() };
        let status = import(&fixture, vec![unknown]).await.expect_err("is refused");
        details(&status, Code::NotFound, "MODEL_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_of_another_model_is_refused_before_its_content() {
    within(async {
        let fixture = Fixture::with(support::plan("seed=1")).await;
        let other = Fixture::with(support::plan("seed=2")).await;
        let foreign = first(&other, 3).await;
        let status = import(&fixture, vec![foreign]).await.expect_err("is refused");
        let details = details(&status, Code::FailedPrecondition, "SNAPSHOT_FOREIGN");
        let violations = &details.precondition_failure().expect("a violation").violations;
        assert_eq!(violations[0].r#type, "MODEL_FINGERPRINT");
        fixture.end().await;
        other.end().await;
    })
    .await;
}

#[tokio::test]
async fn content_that_is_no_snapshot_is_refused_and_keeps_nothing() {
    within(async {
        let fixture = Fixture::start().await;
        let messages = vec![first(&fixture, 3).await, chunk(b"abc"), trailer_of_abc()];
        let status = import(&fixture, messages).await.expect_err("is refused");
        names_field(&status, "chunk");
        assert!(list(&fixture, None, None).await.is_empty());
        assert_eq!(matched(&fixture, prompt(10, 1)).await.reason(), CacheReason::NotFound);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn so_many_imports_run_at_once_and_one_more_is_refused() {
    within(async {
        let fixture = Fixture::start().await;
        let first = first(&fixture, 3).await;
        let mut imports = tokio::task::JoinSet::new();
        let mut senders = Vec::new();
        for _ in 0..=TRANSFERS_MAX {
            let (sender, receiver) = mpsc::channel(1);
            sender.send(first.clone()).await.expect("has room");
            senders.push(sender);
            let mut state = fixture.state();
            imports.spawn(async move {
                refused(state.import_snapshot(ReceiverStream::new(receiver)).await)
            });
        }
        let status = imports.join_next().await.expect("runs").expect("does not panic");
        let details = details(&status, Code::ResourceExhausted, "QUEUE_FULL");
        assert!(details.retry_info().is_some());
        // The others end with their streams, and leave their places.
        drop(senders);
        while let Some(status) = imports.join_next().await {
            names_field(&status.expect("does not panic"), "part");
        }
        let status = import(&fixture, vec![first]).await.expect_err("has no content");
        names_field(&status, "part");
        fixture.end().await;
    })
    .await;
}
