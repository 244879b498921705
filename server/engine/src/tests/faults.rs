//! Models that fail, panic or compute nonsense hurt the requests of that step and nobody else.

use sconce_cache::{Class, Tier};

use super::*;
use crate::cache::Cache;
use crate::executor::FAILURES_MAX;
use crate::residency::Residency;
use crate::restart::{RESTART_WINDOW, RESTARTS_MAX};
use crate::shared::Command;

#[tokio::test]
async fn a_step_that_fails_fails_its_requests_and_no_others() {
    let mut rig = Rig::new("sim:fail_at=50", forgetful()).await;
    rig.hold();
    let (mut doomed, mut with_it) = (rig.submit(&prompt(60, 1)), rig.submit(&prompt(20, 2)));
    assert_eq!(rig.next_step().segments.len(), 2);
    let mut after = rig.submit(&prompt(20, 3));
    rig.gate.open();
    for generation in [&mut doomed, &mut with_it] {
        let told = read(generation).await;
        let message = told.error().to_string();
        assert!(message.contains("simulated failure at token 50"), "{message}");
    }
    assert_eq!(read(&mut after).await.tokens.len(), 4);
    assert_eq!(rig.at_rest().await.counters.failed, 2);
}

#[tokio::test]
async fn a_panic_fails_the_step_and_the_engine_goes_on() {
    let rig = Rig::open("sim:panic_at=50", forgetful()).await;
    let told = read(&mut rig.submit(&prompt(60, 1))).await;
    assert!(told.error().to_string().contains("panicked: simulated panic at token 50"));
    assert_eq!(read(&mut rig.submit(&prompt(20, 3))).await.tokens.len(), 4);
    assert!(rig.engine.status().device.alive);
    rig.at_rest().await;
}

#[tokio::test]
async fn a_model_that_keeps_panicking_is_marked_as_failed() {
    let rig = Rig::open("sim:panic_at=1", forgetful()).await;
    gives_up(&rig).await;
}

#[tokio::test]
async fn a_model_that_keeps_failing_is_marked_as_failed() {
    let rig = Rig::open("sim:fail_at=1", forgetful()).await;
    gives_up(&rig).await;
}

/// Has a model fail as often as it may, and loads a sound one instead.
async fn gives_up(rig: &Rig) {
    for _ in 0..FAILURES_MAX {
        assert!(matches!(read(&mut rig.submit(&[1])).await.error(), EngineError::Forward { .. }));
    }
    rig.status_where(|status| status.models[0].state == ModelState::Failed).await;
    let error = rig.engine.generate(rig.request(&[1])).unwrap_err();
    assert_eq!(error.to_string(), "model \"m\" is failed");
    rig.engine.unload("m", false).await.unwrap();
    load(&rig.engine, "m", "sim:").await.unwrap();
    assert_eq!(read(&mut rig.submit(&[1])).await.tokens.len(), 4);
    assert!(!rig.engine.status().device.lost);
}

#[tokio::test]
async fn a_good_step_clears_what_failed_before_it() {
    for bug in ["sim:fail_at=50", "sim:panic_at=50"] {
        let rig = Rig::open(bug, forgetful()).await;
        for round in 0..2 * FAILURES_MAX {
            assert!(read(&mut rig.submit(&prompt(60, 1))).await.end.is_err(), "{bug}: {round}");
            if round % 2 == 1 {
                assert_eq!(read(&mut rig.submit(&[1])).await.tokens.len(), 4);
            }
        }
    }
}

#[tokio::test]
async fn an_engine_whose_gpu_is_lost_ends() {
    // With recurrent state a sequence fails before there is a step: its slot cannot be cleared.
    for path in ["sim:lost_at=50", "sim:lost_at=50,recurrent=true"] {
        let rig = Rig::open(path, forgetful()).await;
        assert_eq!(read(&mut rig.submit(&[1])).await.tokens.len(), 4);
        read(&mut rig.submit(&prompt(60, 1))).await.end.unwrap_err();
        for _ in 1..FAILURES_MAX {
            let device = rig.engine.status().device;
            assert!(device.alive && !device.lost);
            let told = read(&mut rig.submit(&[1])).await;
            let message = told.error().to_string();
            assert!(message.contains("the GPU is lost"), "{path}: {message}");
        }
        rig.status_where(|status| status.device.lost).await;
    }
}

#[tokio::test]
async fn those_who_wait_when_the_gpu_is_lost_may_try_elsewhere() {
    let config = EngineConfig { running_max: 1, ..forgetful() };
    let mut rig = Rig::new("sim:lost_at=1", config).await;
    let mut all = vec![rig.submit(&[0])];
    rig.arrival();
    all.extend((1..6).map(|first| rig.submit(&[first])));
    rig.gate.open();
    for (place, generation) in all.iter_mut().enumerate() {
        let told = read(generation).await;
        match told.error() {
            EngineError::Forward { .. } => assert!(place < FAILURES_MAX as usize),
            error => assert!(*error == EngineError::Stopped && place >= FAILURES_MAX as usize),
        }
    }
}

#[tokio::test]
async fn logits_that_are_not_finite_fail_their_own_request() {
    let mut rig = Rig::new("sim:nan_at=52", forgetful()).await;
    rig.hold();
    let (mut doomed, mut beside) = (rig.submit(&prompt(50, 1)), rig.submit(&prompt(20, 2)));
    assert_eq!(rig.next_step().segments.len(), 2);
    rig.gate.open();
    let told = read(&mut doomed).await;
    assert_eq!(*told.error(), EngineError::NonFiniteLogits { token_index: 2 });
    assert_eq!(told.ids(), expected("sim:", &prompt(50, 1), 2));
    assert_eq!(read(&mut beside).await.ids(), expected("sim:", &prompt(20, 2), 4));
    rig.at_rest().await;
}

/// Panics between two steps, after `ruin` did what it likes.
fn crash(rig: &Rig, ruin: impl FnOnce(&mut Residency, &mut Cache) + Send + 'static) {
    let question = move |residency: &mut Residency, cache: &mut Cache| {
        ruin(residency, cache);
        panic!("a test's panic");
    };
    rig.engine.push(Command::Ask(Box::new(question))).unwrap();
}

/// Leaves a page of the pool to nobody.
fn orphan(residency: &mut Residency, _: &mut Cache) {
    let resident = residency.get("m").unwrap();
    let pool = resident.holding.model.state_mut();
    pool.take_pages(1).unwrap();
}

/// Waits until `count` restarts are over and the model takes requests.
async fn restarted(rig: &Rig, count: u64) -> Arc<Status> {
    rig.status_where(|status| {
        let ready = status.models.first().is_some_and(|model| model.state == ModelState::Ready);
        status.device.restarts == count && !status.device.restarting && ready
    })
    .await
}

/// A queue in which nothing runs: one request at a time, held in its step.
async fn held(path: &str, config: EngineConfig) -> (Rig, Generation, Generation) {
    let mut rig = Rig::new(path, EngineConfig { running_max: 1, ..config }).await;
    let running = rig.submit(&prompt(20, 1));
    rig.arrival();
    let waiting = rig.submit(&prompt(20, 2));
    (rig, running, waiting)
}

#[tokio::test]
async fn a_panic_of_the_device_thread_ends_what_it_had_and_nothing_else() {
    let (rig, mut running, mut waiting) = held("sim:", forgetful()).await;
    let before = rig.engine.status();
    let model = rig.engine.model("m").unwrap();
    crash(&rig, |_, _| {});
    let mut behind = rig.submit(&prompt(20, 3));
    rig.gate.open();
    let told = read(&mut running).await;
    assert!(told.started.is_some());
    assert_eq!(*told.error(), EngineError::Panicked);
    assert_eq!(*read(&mut waiting).await.error(), EngineError::Restarting);
    // It was in the mailbox, and the panic never saw it.
    assert_eq!(read(&mut behind).await.ids(), expected("sim:", &prompt(20, 3), 4));
    restarted(&rig, 1).await;
    let status = rig.at_rest().await;
    assert!(Arc::ptr_eq(&model, &rig.engine.model("m").unwrap()), "it was not loaded again");
    let counters = status.counters;
    assert_eq!((counters.accepted, counters.finished, counters.failed), (3, 1, 2));
    assert_eq!(rig.engine.status().memory, before.memory);
    assert_eq!(rig.engine.status().waiting, 0);
}

#[tokio::test]
async fn a_model_that_is_not_whole_is_loaded_again() {
    let (rig, mut running, mut waiting) = held("sim:weights_bytes=1000", forgetful()).await;
    let before = rig.engine.status().memory;
    let model = rig.engine.model("m").unwrap();
    crash(&rig, orphan);
    rig.gate.open();
    assert_eq!(*read(&mut running).await.error(), EngineError::Panicked);
    assert_eq!(*read(&mut waiting).await.error(), EngineError::Restarting);
    restarted(&rig, 1).await;
    let loaded = rig.engine.model("m").unwrap();
    assert!(!Arc::ptr_eq(&model, &loaded), "it was loaded again");
    assert_eq!(loaded.settings, model.settings);
    assert_eq!(
        rig.engine.status().memory.tier(Tier::Device).total(),
        before.tier(Tier::Device).total()
    );
    let told = read(&mut rig.submit(&prompt(20, 3))).await;
    assert_eq!(told.ids(), expected("sim:", &prompt(20, 3), 4));
}

#[tokio::test]
async fn what_is_remembered_outlives_a_panic_that_has_spoiled_nothing() {
    let config = || EngineConfig {
        cache: CacheConfig { host: 1 << 20, ..CacheConfig::default() },
        ..EngineConfig::default()
    };
    for (spoils, ruin) in [(false, (|_, _| {}) as fn(&mut _, &mut _)), (true, orphan)] {
        let rig = Rig::open("sim:recurrent=true", config()).await;
        let long = prompt(300, 1);
        read(&mut rig.submit(&long)).await;
        let before = rig.engine.status().memory;
        assert!(before.tier(Tier::Device).used(Class::CachedState) > 0);
        crash(&rig, ruin);
        restarted(&rig, 1).await;
        let after = rig.engine.status().memory;
        assert_eq!(after.tier(Tier::Device).used(Class::CachedState), 0);
        assert_eq!(after.tier(Tier::Device).total(), before.tier(Tier::Device).total());
        assert_eq!(after.tier(Tier::Host).used(Class::CachedState) == 0, spoils);
        let again = read(&mut rig.submit(&long)).await;
        assert_eq!(again.started.unwrap().cache.resumed == 0, spoils);
        assert_eq!(again.ids(), expected("sim:recurrent=true", &long, 4));
        // What was counted before is counted still.
        rig.status_where(|status| status.cache.lookups == 2).await;
    }
}

#[tokio::test]
async fn state_that_a_panic_has_left_ahead_of_its_account_is_not_remembered() {
    let path = "sim:recurrent=true";
    let config = EngineConfig {
        cache: CacheConfig { host: 1 << 20, ..CacheConfig::default() },
        ..EngineConfig::default()
    };
    let mut rig = Rig::new(path, config).await;
    let long = prompt(100, 1);
    let mut running = rig.submit(&long);
    rig.arrival();
    // As between a forward and the count of its tokens.
    crash(&rig, |residency, _| {
        residency.get("m").unwrap().scheduler.running_mut(0).computed -= 20;
    });
    rig.gate.open();
    assert_eq!(*read(&mut running).await.error(), EngineError::Panicked);
    restarted(&rig, 1).await;
    assert_eq!(read(&mut rig.submit(&long)).await.ids(), expected(path, &long, 4));
}

#[tokio::test]
async fn whoever_follows_a_cache_that_is_made_anew_is_told_so() {
    let rig = Rig::open("sim:", EngineConfig::default()).await;
    read(&mut rig.submit(&prompt(300, 1))).await;
    let known = rig.engine.cache_events(0).await.unwrap();
    assert!(!known.lagged && !known.events.is_empty());
    crash(&rig, orphan);
    restarted(&rig, 1).await;
    let told = rig.engine.cache_events(known.next).await.unwrap();
    assert!(told.lagged && told.events.is_empty() && told.next > known.next, "{told:?}");
    read(&mut rig.submit(&prompt(300, 1))).await;
    let after = rig.engine.cache_events(told.next).await.unwrap();
    assert!(!after.lagged && !after.events.is_empty());
}

#[tokio::test]
async fn what_is_on_disk_outlives_a_panic_that_has_spoiled_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Some(folder.path().to_owned());
    let config = EngineConfig {
        cache: CacheConfig { disk: 1 << 30, directory, ..CacheConfig::default() },
        ..EngineConfig::default()
    };
    let rig = Rig::open("sim:", config).await;
    let long = prompt(300, 1);
    read(&mut rig.submit(&long)).await;
    // To disk, and back only when somebody asks.
    rig.engine.unload("m", false).await.unwrap();
    load(&rig.engine, "m", "sim:").await.unwrap();
    crash(&rig, |residency, cache| {
        // What is on its way to disk is not there.
        cache.stop(Instant::now());
        orphan(residency, cache);
    });
    restarted(&rig, 1).await;
    let again = read(&mut rig.submit(&long)).await;
    assert!(again.started.unwrap().cache.resumed >= 256, "{:?}", again.started);
    assert_eq!(again.ids(), expected("sim:", &long, 4));
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "it is what holds the load up, on another thread")]
async fn requests_for_a_model_that_is_being_loaded_again_are_told_to_come_back() {
    let rig = Rig::open("sim:", forgetful()).await;
    // The load reports progress under this lock, and waits.
    let hold = rig.loads.lock();
    crash(&rig, orphan);
    rig.status_where(|status| {
        let loading = status.models.first().is_some_and(|m| m.state == ModelState::Loading);
        status.device.restarts == 1 && !status.device.restarting && loading
    })
    .await;
    assert_eq!(rig.engine.generate(rig.request(&[1])).unwrap_err(), EngineError::Restarting);
    drop(hold);
    restarted(&rig, 1).await;
    assert_eq!(read(&mut rig.submit(&[1])).await.tokens.len(), 4);
}

#[tokio::test]
async fn an_engine_that_keeps_panicking_ends() {
    let rig = Rig::open("sim:", forgetful()).await;
    for restarts in 1..=RESTARTS_MAX as u64 {
        crash(&rig, |_, _| {});
        restarted(&rig, restarts).await;
        assert!(!rig.engine.status().device.lost);
    }
    // After the window the old ones do not count.
    rig.turn(RESTART_WINDOW);
    for restarts in 1..=RESTARTS_MAX as u64 {
        crash(&rig, |_, _| {});
        restarted(&rig, RESTARTS_MAX as u64 + restarts).await;
    }
    crash(&rig, |_, _| {});
    rig.status_where(|status| status.device.lost).await;
    // The thread closes its mailbox when it has unloaded everything.
    let error = loop {
        match rig.engine.unload("m", true).await {
            Err(error @ EngineError::Stopped) => break error,
            Err(EngineError::Panicked | EngineError::ModelNotFound { .. }) | Ok(()) => {}
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(error, EngineError::Stopped);
    assert!(!rig.engine.status().device.alive);
    assert_eq!(rig.engine.status().memory.tier(Tier::Device).total(), 0);
}

#[tokio::test]
async fn an_engine_that_cannot_have_its_model_back_ends() {
    let rig = Rig::open("sim:", forgetful()).await;
    *rig.loads.lock() = Err("the disk is gone".to_owned());
    crash(&rig, orphan);
    let status = rig.status_where(|status| status.device.lost).await;
    assert!(status.models.is_empty());
}

#[tokio::test]
async fn commands_behind_a_panic_are_carried_out() {
    let rig = Rig::open("sim:", forgetful()).await;
    crash(&rig, |_, _| {});
    load(&rig.engine, "n", "sim:seed=1").await.unwrap();
    rig.engine.unload("m", false).await.unwrap();
    let status = rig.engine.status();
    assert_eq!((status.device.restarts, status.device.lost), (1, false));
    assert_eq!(rig.engine.models().len(), 1);
}

#[tokio::test]
async fn the_thread_beats_while_it_sleeps_and_not_while_it_computes() {
    let mut rig = Rig::new("sim:", forgetful()).await;
    let generation = rig.submit(&[1]);
    rig.arrival();
    rig.clock.turn(Duration::from_secs(3600));
    let device = rig.engine.status().device;
    assert_eq!((device.beat, device.in_step), (Duration::from_secs(3600), Some(device.beat)));
    rig.gate.open();
    drop(generation);
    rig.at_rest().await;
    // Nothing wakes it but its own beat.
    let mut statuses = 0_u64;
    while rig.engine.status().device.beat > Duration::ZERO {
        statuses += 1;
        tokio::task::yield_now().await;
    }
    assert!(rig.engine.status().device.in_step.is_none(), "after {statuses} looks");
}
