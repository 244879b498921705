//! What is remembered when memory is short, when its model goes and comes, when the server does, and
//! when its files are not what they were.

use std::path::Path;

use sconce_cache::Tier;
use sconce_models::PAGE_TOKENS;

use super::*;

const PATHS: [&str; 2] = ["sim:", "sim:recurrent=true"];

/// Room for everything in one slower tier.
fn config(tier: Tier, directory: &Path) -> EngineConfig {
    let cache = match tier {
        Tier::Device => CacheConfig::default(),
        Tier::Host => CacheConfig { host: 1 << 24, ..CacheConfig::default() },
        Tier::Disk => CacheConfig {
            disk: 1 << 24,
            directory: Some(directory.to_owned()),
            ..CacheConfig::default()
        },
    };
    EngineConfig { step_tokens_max: 64, cache, ..EngineConfig::default() }
}

async fn ask(rig: &Rig, path: &str, tokens: &[u32]) -> CacheReport {
    let told = read(&mut rig.submit(tokens)).await;
    assert_eq!(told.ids(), expected(path, tokens, 4));
    told.started.expect("it started").cache
}

/// The files of records in a cache's directory.
fn records(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "record") {
                found.push(path);
            }
        }
    }
    found
}

fn snapshot(rig: &Rig, tokens: &[u32], name: &str, ttl: Option<Duration>) -> SnapshotRequest {
    SnapshotRequest { request: rig.request(tokens), name: name.into(), pinned: true, ttl }
}

#[tokio::test]
async fn a_pool_that_is_full_pages_out_and_in_again() {
    for tier in [Tier::Host, Tier::Disk] {
        for path in ["sim:pages=12", "sim:pages=12,recurrent=true"] {
            let directory = tempfile::tempdir().unwrap();
            let rig = Rig::open(path, config(tier, directory.path())).await;
            for round in 0..3 {
                for seed in 0..5 {
                    let report = ask(&rig, path, &prompt(400, seed)).await;
                    assert_eq!(report.resumed > 300, round > 0, "{path} {tier} {report:?}");
                    if round > 0 {
                        assert_eq!(report.tier, Some(tier), "{path}");
                    }
                }
            }
        }
    }
}

/// A page that was counted for each piece in it would take room from others, and more than there is.
#[tokio::test]
async fn pieces_of_one_page_are_counted_once() {
    const PAGES: u64 = 3;
    let spec = SimulatedSpec::parse("sim:").unwrap();
    let model = SimulatedModel::new(spec, &LoadOptions::default()).unwrap();
    let page = model.state().layout().bytes_per_page();
    let cache = CacheConfig { device: PAGES * page, ..CacheConfig::default() };
    let rig = Rig::open("sim:", EngineConfig { cache, ..EngineConfig::default() }).await;
    let fork = |seed| [&prompt(10, 0)[..], &prompt(30, seed)].concat();
    ask(&rig, "sim:", &fork(1)).await;
    assert_eq!(ask(&rig, "sim:", &fork(2)).await.resumed, 10);
    // Takes all there is, so that of the fork is left where it was.
    ask(&rig, "sim:", &prompt(PAGES as usize * PAGE_TOKENS - 4, 3)).await;
    assert_eq!(ask(&rig, "sim:", &fork(1)).await.resumed, 0);
    // Room for two others of a page each.
    for tokens in [prompt(40, 4), prompt(40, 5)] {
        assert_eq!(ask(&rig, "sim:", &tokens).await.resumed, 0);
    }
    for tokens in [fork(1), prompt(40, 4), prompt(40, 5)] {
        assert_eq!(ask(&rig, "sim:", &tokens).await.resumed, tokens.len() - 1);
    }
}

#[tokio::test]
async fn a_model_that_is_loaded_again_finds_what_it_knew() {
    for tier in [Tier::Host, Tier::Disk] {
        for path in PATHS {
            let directory = tempfile::tempdir().unwrap();
            let rig = Rig::open(path, config(tier, directory.path())).await;
            let tokens = prompt(700, 1);
            assert_eq!(ask(&rig, path, &tokens).await.restored_bytes, 0);
            rig.engine.unload("m", false).await.unwrap();
            load(&rig.engine, "other", "sim:seed=5").await.unwrap();
            rig.engine.unload("other", false).await.unwrap();
            load(&rig.engine, "m", path).await.unwrap();
            let report = ask(&rig, path, &tokens).await;
            assert!(report.recomputed <= 131 && report.restored_bytes > 0, "{report:?}");
            assert_eq!(report.tier, Some(tier));
        }
    }
}

#[tokio::test]
async fn another_model_is_not_given_what_one_knew() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::open("sim:", config(Tier::Host, directory.path())).await;
    let tokens = prompt(300, 1);
    ask(&rig, "sim:", &tokens).await;
    rig.engine.unload("m", false).await.unwrap();
    load(&rig.engine, "m", "sim:seed=5").await.unwrap();
    assert_eq!(ask(&rig, "sim:seed=5", &tokens).await.resumed, 0);
}

#[tokio::test]
async fn the_same_model_twice_remembers_twice() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::open("sim:", config(Tier::Host, directory.path())).await;
    load(&rig.engine, "twin", "sim:").await.unwrap();
    let tokens = prompt(300, 1);
    ask(&rig, "sim:", &tokens).await;
    let twin = rig.engine.match_prefix("twin", &CacheUse::default(), tokens.clone()).await.unwrap();
    assert_eq!(twin.matched, 0);
    let request = Request { model: "twin".into(), ..rig.request(&tokens) };
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    assert_eq!(told.ids(), expected("sim:", &tokens, 4));
}

#[tokio::test]
async fn a_server_that_starts_again_finds_what_the_last_one_knew() {
    for path in PATHS {
        let directory = tempfile::tempdir().unwrap();
        let tokens = prompt(700, 1);
        let rig = Rig::open(path, config(Tier::Disk, directory.path())).await;
        ask(&rig, path, &tokens).await;
        let made = rig.engine.snapshot(snapshot(&rig, &tokens, "kept", None)).await.unwrap();
        assert_eq!((made.tokens, made.pinned, made.ttl), (700, true, None));
        rig.engine.shutdown(Duration::ZERO).await;
        drop(rig);

        let rig = Rig::open(path, config(Tier::Disk, directory.path())).await;
        let listed = rig.engine.snapshots().await.unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!((listed[0].name.as_str(), listed[0].tokens), ("kept", 700));
        let report = ask(&rig, path, &tokens).await;
        assert!(report.recomputed <= 131, "{report:?}");
        assert_eq!(report.tier, Some(Tier::Disk));
    }
}

#[tokio::test]
async fn damaged_files_cost_time_and_nothing_else() {
    for path in PATHS {
        let directory = tempfile::tempdir().unwrap();
        let tokens = prompt(700, 1);
        let rig = Rig::open(path, config(Tier::Disk, directory.path())).await;
        ask(&rig, path, &tokens).await;
        rig.engine.unload("m", false).await.unwrap();
        rig.engine.shutdown(Duration::ZERO).await;
        drop(rig);
        let files = records(directory.path());
        assert!(!files.is_empty());
        for file in files {
            let mut bytes = std::fs::read(&file).unwrap();
            let last = bytes.len() - 40;
            bytes[last] ^= 4;
            std::fs::write(&file, bytes).unwrap();
        }
        let rig = Rig::open(path, config(Tier::Disk, directory.path())).await;
        assert_eq!(ask(&rig, path, &tokens).await.resumed, 0);
        assert!(ask(&rig, path, &tokens).await.resumed > 500);
    }
}

#[tokio::test]
async fn files_that_vanish_while_the_server_runs_cost_time_and_nothing_else() {
    for path in PATHS {
        let directory = tempfile::tempdir().unwrap();
        let tokens = prompt(700, 1);
        let rig = Rig::open(path, config(Tier::Disk, directory.path())).await;
        ask(&rig, path, &tokens).await;
        rig.engine.unload("m", false).await.unwrap();
        load(&rig.engine, "m", path).await.unwrap();
        // Everything is written when a record of it was read.
        let report = ask(&rig, path, &tokens).await;
        assert_eq!(report.tier, Some(Tier::Disk));
        rig.engine.unload("m", false).await.unwrap();
        load(&rig.engine, "m", path).await.unwrap();
        records(directory.path()).into_iter().for_each(|file| {
            // Some may be in the middle of being written still, under another name.
            let _gone = std::fs::remove_file(file);
        });
        ask(&rig, path, &tokens).await;
        assert!(ask(&rig, path, &tokens).await.resumed > 500);
    }
}

#[tokio::test]
async fn snapshots_are_made_listed_replaced_and_dropped() {
    for path in PATHS {
        let directory = tempfile::tempdir().unwrap();
        let rig = Rig::open(path, config(Tier::Device, directory.path())).await;
        let tokens = prompt(333, 1);
        let first = rig.engine.snapshot(snapshot(&rig, &tokens, "a", None)).await.unwrap();
        assert_eq!((first.tokens, first.tier, first.model.as_str()), (333, Tier::Device, "m"));
        assert!(first.bytes > 0);
        let longer: Vec<u32> = [&tokens[..], &[9, 8, 7]].concat();
        assert_eq!(ask(&rig, path, &longer).await.resumed, 333);
        let second = rig.engine.snapshot(snapshot(&rig, &longer, "a", None)).await.unwrap();
        rig.engine.snapshot(snapshot(&rig, &prompt(64, 3), "b", None)).await.unwrap();
        let names = |all: Vec<SnapshotInfo>| {
            all.into_iter().map(|s| (s.name, s.tokens)).collect::<Vec<_>>()
        };
        let all = rig.engine.snapshots().await.unwrap();
        assert_eq!(names(all), [("a".to_owned(), 336), ("b".to_owned(), 64)]);
        let gone = rig.engine.drop_snapshot(&first.id).await;
        assert_eq!(gone, Err(EngineError::SnapshotNotFound { id: first.id }));
        rig.engine.drop_snapshot(&second.id).await.unwrap();
        assert_eq!(names(rig.engine.snapshots().await.unwrap()), [("b".to_owned(), 64)]);
    }
}

#[tokio::test]
async fn a_pinned_snapshot_is_there_whatever_comes() {
    for path in ["sim:pages=24", "sim:pages=24,recurrent=true"] {
        let directory = tempfile::tempdir().unwrap();
        let rig = Rig::open(path, config(Tier::Device, directory.path())).await;
        let tokens = prompt(500, 1);
        rig.engine.snapshot(snapshot(&rig, &tokens, "a", None)).await.unwrap();
        for seed in 2..20 {
            ask(&rig, path, &prompt(600, seed)).await;
        }
        let longer: Vec<u32> = [&tokens[..], &[9, 8, 7]].concat();
        assert_eq!(ask(&rig, path, &longer).await.resumed, 500);
    }
}

#[tokio::test]
async fn what_is_pinned_leaves_room_for_what_runs() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::open("sim:pages=24", config(Tier::Device, directory.path())).await;
    rig.engine.snapshot(snapshot(&rig, &prompt(500, 1), "a", None)).await.unwrap();
    let error = rig.engine.snapshot(snapshot(&rig, &prompt(500, 2), "b", None)).await.unwrap_err();
    let full = matches!(error, EngineError::OutOfMemory(sconce_cache::Error::PinsFull { .. }));
    assert!(full, "{error}");
    assert_eq!(ask(&rig, "sim:", &prompt(900, 3)).await.resumed, 0);
}

#[tokio::test]
async fn a_snapshot_ends_with_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::open("sim:", config(Tier::Device, directory.path())).await;
    let ttl = Some(Duration::from_secs(60));
    let made = rig.engine.snapshot(snapshot(&rig, &prompt(100, 1), "a", ttl)).await.unwrap();
    assert_eq!(made.ttl, ttl);
    rig.turn(Duration::from_secs(20));
    let listed = rig.engine.snapshots().await.unwrap();
    assert_eq!(listed[0].ttl, Some(Duration::from_secs(40)));
    rig.turn(Duration::from_secs(41));
    assert_eq!(rig.engine.snapshots().await.unwrap(), []);
}

#[tokio::test]
async fn a_request_can_be_pinned_and_is_dropped_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::open("sim:pages=24", config(Tier::Device, directory.path())).await;
    let tokens = prompt(300, 1);
    let cache = CacheUse { pin: true, ..CacheUse::default() };
    let request = Request { cache, request_id: "mine".into(), ..rig.request(&tokens) };
    read(&mut rig.engine.generate(request).unwrap()).await;
    let listed = rig.engine.snapshots().await.unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].tokens), ("mine", 303));
    rig.engine.drop_snapshot(&listed[0].id).await.unwrap();
    assert_eq!(rig.engine.snapshots().await.unwrap(), []);
}

#[tokio::test]
async fn a_snapshot_moves_to_another_server() {
    for path in PATHS {
        for tier in [Tier::Device, Tier::Host, Tier::Disk] {
            let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let one = Rig::open(path, config(tier, here.path())).await;
            let tokens = prompt(333, 1);
            let made = one.engine.snapshot(snapshot(&one, &tokens, "a", None)).await.unwrap();
            if tier != Tier::Device {
                one.engine.unload("m", false).await.unwrap();
                load(&one.engine, "m", path).await.unwrap();
            }
            let file = one.engine.export_snapshot(&made.id).await.unwrap();
            assert_eq!((file.tokens, file.name.as_str()), (333, "a"));

            let two = Rig::open(path, config(tier, there.path())).await;
            let taken = two.engine.import_snapshot("m", file.clone()).await.unwrap();
            assert_eq!((taken.tokens, taken.pinned), (333, true));
            let longer: Vec<u32> = [&tokens[..], &[9, 8, 7]].concat();
            assert_eq!(ask(&two, path, &longer).await.resumed, 333);

            let mut damaged = file.clone();
            let mut piece = damaged.content[1].to_vec();
            piece[0] ^= 1;
            damaged.content[1] = piece.into();
            let error = two.engine.import_snapshot("m", damaged).await.unwrap_err();
            assert!(matches!(error, EngineError::SnapshotDamaged { .. }), "{error}");
            load(&two.engine, "other", "sim:seed=5").await.unwrap();
            let error = two.engine.import_snapshot("other", file).await.unwrap_err();
            assert!(matches!(error, EngineError::SnapshotForeign { .. }), "{error}");
        }
    }
}
