//! Restore points with a name: made, kept under pressure, gone on from, moved to another engine.

use std::time::Duration;

use sconce_cache::{Policy, Tier};
use sconce_engine::{EngineError, SnapshotFile, SnapshotInfo, SnapshotRequest};
use sconce_models::Precision;

use crate::support::*;

fn snapshot_of(ask: &Ask, name: &str) -> SnapshotRequest {
    SnapshotRequest { request: ask.request(), name: name.to_owned(), pinned: true, ttl: None }
}

async fn snapshot(server: &Server, ask: &Ask, name: &str) -> SnapshotInfo {
    server.engine.snapshot(snapshot_of(ask, name)).await.unwrap()
}

/// A prompt for a snapshot that does not end with a page, and one that goes on from there.
fn prompts(server: &Server) -> (Ask, Ask) {
    let long = long_prompt(server, 1);
    (Ask::new(&long[..long.len() - 37]), Ask::new(&long))
}

#[tokio::test]
async fn a_snapshot_is_gone_on_from_at_its_very_end() {
    for fixture in ALL {
        for precision in PRECISIONS {
            let twins = Twins::start(&Setup::warm(fixture, precision)).await;
            let (short, long) = prompts(&twins.warm);
            let info = snapshot(&twins.warm, &short, "mine").await;
            assert_eq!((&*info.name, info.tokens, info.pinned), ("mine", short.prompt.len(), true));
            assert_eq!((&*info.model, info.tier, info.ttl), (MODEL, Tier::Device, None));
            assert!(info.bytes > 0);
            assert_eq!(twins.warm.engine.snapshots().await.unwrap(), [info]);
            let report = twins.ask(&long, fixture.name).await.report;
            assert_eq!(report.resumed, short.prompt.len(), "{}: {report:?}", fixture.name);
            let report = twins.ask(&short, fixture.name).await.report;
            assert!(report.recomputed <= repeat_max(fixture), "{}: {report:?}", fixture.name);
            twins.end().await;
        }
    }
}

#[tokio::test]
async fn a_pinned_snapshot_outlives_what_evicts_all_else() {
    for fixture in [&QWEN3, &GLM4, &QWEN3_5] {
        // Beside pages in 8 bits a pool of two contexts has no room for points.
        let mut setup = Setup::warm(fixture, Precision::Fine);
        setup.contexts = Some(2);
        setup.config.running_max = 2;
        // In the order of use a few others are enough to drive out what is no longer pinned.
        setup.config.cache.policy = Policy::Lru;
        let twins = Twins::start(&setup).await;
        let (short, long) = prompts(&twins.warm);
        let short = Ask::new(&short.prompt[..3 * PAGE + 7]);
        let other = Ask::new(&long_prompt(&twins.warm, 50));
        twins.ask(&other, fixture.name).await;
        let info = snapshot(&twins.warm, &short, "mine").await;
        for seed in 2..8 {
            twins.ask(&Ask::new(&long_prompt(&twins.warm, seed)), fixture.name).await;
        }
        let report = twins.ask(&long, fixture.name).await.report;
        assert_eq!(report.resumed, short.prompt.len(), "{}: {report:?}", fixture.name);
        let report = twins.ask(&other, fixture.name).await.report;
        assert!(report.recomputed > repeat_max(fixture), "nothing was evicted: {report:?}");
        // Without its name it is like all else.
        twins.warm.engine.drop_snapshot(&info.id).await.unwrap();
        assert_eq!(twins.warm.engine.snapshots().await.unwrap(), []);
        for seed in 12..20 {
            twins.ask(&Ask::new(&long_prompt(&twins.warm, seed)), fixture.name).await;
        }
        let report = twins.ask(&short, fixture.name).await.report;
        assert!(report.matched < short.prompt.len() - 1, "{}: {report:?}", fixture.name);
        let gone = twins.warm.engine.drop_snapshot(&info.id).await.unwrap_err();
        assert_eq!(gone, EngineError::SnapshotNotFound { id: info.id });
        twins.end().await;
    }
}

#[tokio::test]
async fn a_second_snapshot_of_a_name_replaces_the_first_and_a_time_to_live_is_kept() {
    let twins = Twins::start(&Setup::warm(&QWEN3_5, Precision::Fast)).await;
    let (short, long) = prompts(&twins.warm);
    snapshot(&twins.warm, &short, "mine").await;
    let request = SnapshotRequest {
        ttl: Some(Duration::from_secs(3600)),
        pinned: false,
        ..snapshot_of(&long, "mine")
    };
    let info = twins.warm.engine.snapshot(request).await.unwrap();
    assert_eq!((info.tokens, info.pinned), (long.prompt.len(), false));
    assert!(info.ttl.is_some_and(|ttl| ttl <= Duration::from_secs(3600) && !ttl.is_zero()));
    let all = twins.warm.engine.snapshots().await.unwrap();
    assert_eq!(all.iter().map(|info| info.tokens).collect::<Vec<_>>(), [long.prompt.len()]);
    twins.end().await;
}

#[tokio::test]
async fn a_pinned_request_is_a_snapshot_of_its_own_id() {
    for fixture in [&GEMMA3, &QWEN3_NEXT] {
        let twins = Twins::start(&Setup::warm(fixture, Precision::Fast)).await;
        let mut ask = Ask::new(&long_prompt(&twins.warm, 1));
        ask.cache.pin = true;
        let answer = twins.ask(&ask, fixture.name).await;
        // The answer comes before the state is let go.
        let all = twins.warm.engine.snapshots().await.unwrap();
        let tokens = ask.prompt.len() + answer.said.tokens.len() - 1;
        let found: Vec<_> = all.iter().map(|info| (&*info.name, info.tokens)).collect();
        assert_eq!(found, [("r", tokens)], "{}", fixture.name);
        twins.end().await;
    }
}

/// A snapshot of a prompt as one engine exports it.
async fn exported(server: &Server, ask: &Ask) -> SnapshotFile {
    let info = snapshot(server, ask, "moved").await;
    let file = server.engine.export_snapshot(&info.id).await.unwrap();
    assert_eq!((file.tokens, &*file.name), (ask.prompt.len(), "moved"));
    let bytes: usize = file.content.iter().map(|piece| piece.len()).sum();
    assert_eq!(bytes as u64, file.bytes);
    file
}

#[tokio::test]
async fn an_exported_snapshot_is_gone_on_from_in_another_engine() {
    for fixture in ALL {
        for precision in PRECISIONS {
            let setup = Setup::warm(fixture, precision).limits(u64::MAX, u64::MAX, 0);
            let twins = Twins::start(&setup).await;
            let (short, long) = prompts(&twins.warm);
            // Parted once, so that its path has several nodes.
            let mut parted = short.clone();
            parted.prompt[PAGE + 11] ^= 1;
            twins.ask(&parted, fixture.name).await;
            let file = exported(&twins.warm, &short).await;
            twins.end().await;
            let second = Twins::start(&setup).await;
            let info = second.warm.engine.import_snapshot(MODEL, file.clone()).await.unwrap();
            assert_eq!((&*info.name, info.tokens), ("moved", short.prompt.len()));
            assert!(info.pinned);
            let report = second.ask(&long, fixture.name).await.report;
            assert_eq!(report.resumed, short.prompt.len(), "{}: {report:?}", fixture.name);
            // Twice is once, and it can be sent on.
            let again = second.warm.engine.import_snapshot(MODEL, file).await.unwrap();
            assert_eq!(again.tokens, info.tokens);
            let onward = second.warm.engine.export_snapshot(&again.id).await.unwrap();
            assert_eq!(
                (onward.tokens, onward.fingerprint),
                (info.tokens, second.warm.model.info.fingerprint)
            );
            second.end().await;
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_was_damaged_on_its_way_is_refused() {
    for fixture in [&QWEN3, &QWEN3_5] {
        let twins = Twins::start(&Setup::warm(fixture, Precision::Fast)).await;
        let (short, long) = prompts(&twins.warm);
        let file = exported(&twins.warm, &short).await;
        twins.end().await;
        let second = Twins::start(&Setup::warm(fixture, Precision::Fast)).await;
        let whole = file.content.concat();
        let mut random = Random::new(3);
        for round in 0..30 {
            let mut bytes = whole.clone();
            let at = random.below(bytes.len());
            match round % 3 {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes.truncate(at),
                _ => drop(bytes.splice(at..at, [0; 8])),
            }
            let damaged = SnapshotFile {
                bytes: bytes.len() as u64,
                content: vec![bytes.into()],
                ..file.clone()
            };
            let refused = second.warm.engine.import_snapshot(MODEL, damaged).await;
            let error = refused.expect_err("it was damaged");
            let known = matches!(
                error,
                EngineError::SnapshotDamaged { .. } | EngineError::SnapshotForeign { .. }
            );
            assert!(known, "{}, round {round}, at {at}: {error}", fixture.name);
        }
        assert_eq!(second.ask(&long, fixture.name).await.report.resumed, 0);
        assert_eq!(second.warm.engine.snapshots().await.unwrap(), []);
        second.end().await;
    }
}

#[tokio::test]
async fn a_snapshot_of_other_weights_is_refused_with_both_fingerprints() {
    let first = Setup::warm(&QWEN3, Precision::Fast).start().await;
    let file = exported(&first, &prompts(&first).0).await;
    let found = first.model.info.fingerprint;
    first.end().await;
    let second = Setup::warm(&GEMMA3, Precision::Fast).start().await;
    let expected = second.model.info.fingerprint;
    let foreign = EngineError::SnapshotForeign { expected, found };
    let error = second.engine.import_snapshot(MODEL, file.clone()).await.unwrap_err();
    assert_eq!(error, foreign);
    // What the envelope says is not believed.
    let renamed = SnapshotFile { fingerprint: expected, ..file };
    let error = second.engine.import_snapshot(MODEL, renamed).await.unwrap_err();
    assert_eq!(error, foreign);
    second.end().await;
}

#[tokio::test]
async fn a_snapshot_outlives_an_unload_and_a_restart() {
    for fixture in [&LLAMA, &QWEN3_NEXT] {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::warm(fixture, Precision::Fast)
            .limits(u64::MAX, u64::MAX, u64::MAX)
            .directory(folder.path());
        let twins = Twins::start(&setup).await;
        let (short, long) = prompts(&twins.warm);
        let info = snapshot(&twins.warm, &short, "mine").await;
        twins.warm.unload().await;
        let away = twins.warm.engine.snapshots().await.unwrap();
        assert_eq!(away.iter().map(|found| &found.id).collect::<Vec<_>>(), [&info.id]);
        assert_eq!(away[0].tier, Tier::Host);
        twins.warm.load().await;
        twins.end().await;
        let second = Twins::start(&setup).await;
        let found = second.warm.engine.snapshots().await.unwrap();
        let kept: Vec<_> = found.iter().map(|i| (&*i.name, i.tokens, i.pinned, i.tier)).collect();
        assert_eq!(kept, [("mine", short.prompt.len(), true, Tier::Disk)], "{}", fixture.name);
        let file = second.warm.engine.export_snapshot(&found[0].id).await.unwrap();
        let report = second.ask(&long, fixture.name).await.report;
        assert_eq!(report.resumed, short.prompt.len(), "{}: {report:?}", fixture.name);
        second.end().await;
        // What was exported from files is whole.
        let third = Twins::start(&Setup::warm(fixture, Precision::Fast)).await;
        third.warm.engine.import_snapshot(MODEL, file).await.unwrap();
        let report = third.ask(&long, fixture.name).await.report;
        assert_eq!(report.resumed, short.prompt.len(), "{}: {report:?}", fixture.name);
        third.end().await;
    }
}
