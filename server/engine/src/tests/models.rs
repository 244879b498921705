//! Loading, unloading, keep-alive, budgets, several models at once, the end of the engine.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sconce_cache::{Budgets, Class, Tier};

use super::*;

fn settings(path: &str) -> LoadSettings {
    LoadSettings { path: path.into(), ..LoadSettings::default() }
}

/// Asks the test before each report of progress: `true` goes on, `false` is the end of the load.
struct SteppedLoader {
    asks: SyncSender<()>,
    answers: Mutex<Receiver<bool>>,
}

impl Loader for SteppedLoader {
    fn estimate(&self, _: &LoadSettings, _: &LoadLimits) -> Result<Estimate, String> {
        Ok(Estimate::default())
    }

    fn load(
        &self,
        settings: &LoadSettings,
        _: &LoadLimits,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Box<dyn Model>, String> {
        let mut done_bytes = 0;
        loop {
            self.asks.send(()).map_err(|e| e.to_string())?;
            if !self.answers.lock().recv().map_err(|e| e.to_string())? {
                break;
            }
            done_bytes += 1;
            if progress(LoadProgress { done_bytes, total_bytes: 9 }).is_break() {
                return Err("given up".into());
            }
        }
        let spec = SimulatedSpec::parse(&settings.path).map_err(|error| error.to_string())?;
        let model = SimulatedModel::new(spec, &LoadOptions::default());
        Ok(Box::new(model.map_err(|error| error.to_string())?))
    }
}

fn stepped() -> (EngineHandle, Receiver<()>, SyncSender<bool>) {
    let ((asks, asked), (answer, answers)) = (sync_channel(1), sync_channel(1));
    let loader = SteppedLoader { asks, answers: Mutex::new(answers) };
    let engine = EngineHandle::start(forgetful(), Arc::new(loader)).unwrap();
    (engine, asked, answer)
}

#[tokio::test]
async fn a_load_reports_progress_to_all_who_wait_and_is_done_once() {
    let (engine, asked, answer) = stepped();
    let mut first = engine.load("m", settings("sim:")).await.unwrap();
    let mut second = engine.load("m", settings("sim:")).await.unwrap();
    asked.recv().unwrap();
    let error = engine.generate(request(&[1])).unwrap_err();
    assert_eq!(error.to_string(), "model \"m\" is loading");
    assert_eq!(first.next().await, LoadEvent::Progress(LoadProgress::default()));
    answer.send(true).unwrap();
    asked.recv().unwrap();
    let progress = LoadProgress { done_bytes: 1, total_bytes: 9 };
    assert_eq!(first.next().await, LoadEvent::Progress(progress));
    drop(first);
    answer.send(true).unwrap();
    asked.recv().unwrap();
    let progress = LoadProgress { done_bytes: 2, total_bytes: 9 };
    assert_eq!(second.next().await, LoadEvent::Progress(progress));
    answer.send(false).unwrap();
    let model = second.ready().await.unwrap();
    assert_eq!(model.info.architecture, "sim");
    // Once more, nothing is loaded: nobody is asked.
    assert_eq!(engine.load("m", settings("sim:")).await.unwrap().ready().await.unwrap(), model);
    let error = engine.load("m", settings("sim:seed=1")).await.unwrap_err();
    assert!(error.to_string().contains("path is \"sim:\", \"sim:seed=1\" was asked for"));
    assert_eq!(read(&mut engine.generate(request(&[1])).unwrap()).await.tokens.len(), 4);
}

#[tokio::test]
async fn who_hears_the_end_of_a_load_or_an_unload_finds_it_in_the_status() {
    let rig = Rig::open("sim:", forgetful()).await;
    let states = || -> Vec<_> {
        rig.engine.status().models.iter().map(|model| (model.name.clone(), model.state)).collect()
    };
    let first = ("m".to_owned(), ModelState::Ready);
    // Each of them could be overtaken.
    for _ in 0..50 {
        assert_eq!(load(&rig.engine, "n", "sim:").await, Ok(()));
        assert_eq!(states(), [first.clone(), ("n".to_owned(), ModelState::Ready)]);
        rig.engine.unload("n", false).await.unwrap();
        assert_eq!(states(), std::slice::from_ref(&first));
    }
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_is_given_up() {
    let (engine, asked, answer) = stepped();
    let mut statuses = engine.watch_status();
    let loading = engine.load("m", settings("sim:")).await.unwrap();
    asked.recv().unwrap();
    statuses.wait_for(|status| status.models.len() == 1).await.unwrap();
    drop(loading);
    answer.send(true).unwrap();
    statuses.wait_for(|status| status.models.is_empty()).await.unwrap();
    let error = engine.generate(request(&[1])).unwrap_err();
    assert_eq!(error, EngineError::ModelNotFound { model: "m".into() });
}

#[tokio::test]
async fn an_unload_cancels_the_load() {
    let (engine, asked, answer) = stepped();
    let loading = engine.load("m", settings("sim:")).await.unwrap();
    asked.recv().unwrap();
    let unloader = engine.clone();
    let (unloaded, ended) = tokio::join!(unloader.unload("m", false), async {
        // Polled second: the unload is on its way, and before whatever comes now.
        let refused = engine.load("m", settings("sim:")).await.unwrap_err();
        assert_eq!(refused.to_string(), "model \"m\" is unloading");
        answer.send(true).unwrap();
        loading.ready().await
    });
    assert_eq!(unloaded, Ok(()));
    assert_eq!(ended, Err(EngineError::LoadCancelled { model: "m".into() }));
}

#[tokio::test]
async fn a_load_that_fails_says_why_and_leaves_nothing() {
    let rig = Rig::new("sim:", forgetful()).await;
    let error = load(&rig.engine, "x", "sim:colour=1").await.unwrap_err();
    assert!(
        error.to_string().starts_with("loading model \"x\": option sim: expected one of vocab")
    );
    assert_eq!(rig.engine.models().len(), 1);
    assert_eq!(load(&rig.engine, "x", "sim:").await, Ok(()));
}

#[tokio::test]
async fn a_load_over_the_budget_is_refused_and_an_unload_gives_the_bytes_back() {
    // A page of a simulated model takes 1280 bytes.
    let budgets = Budgets { device: 10_000, host: 0, disk: 0 };
    let config = EngineConfig { budgets, ..Default::default() };
    let rig = Rig::new("sim:pages=1,weights_bytes=6000", config).await;
    let used = || rig.engine.ledger().snapshot().tier(Tier::Device).used(Class::Weights);
    assert_eq!(used(), 6000);
    let error = load(&rig.engine, "n", "sim:pages=1,weights_bytes=5000").await.unwrap_err();
    let wanted = sconce_cache::Error::OverBudget {
        tier: Tier::Device,
        class: Class::Weights,
        wanted: 5000,
        free: 2720,
        budget: 10_000,
    };
    assert_eq!(error, EngineError::OutOfMemory(wanted));
    rig.engine.unload("m", false).await.unwrap();
    assert_eq!(used(), 0);
    assert_eq!(load(&rig.engine, "n", "sim:pages=1,weights_bytes=5000").await, Ok(()));
    assert_eq!(rig.engine.status().memory.tier(Tier::Device).total(), 6280);
}

#[tokio::test]
async fn an_unload_lets_requests_finish_and_takes_no_more() {
    let mut rig = Rig::new("sim:", forgetful()).await;
    let mut running = rig.submit(&[1]);
    rig.arrival();
    let (unloaded, told) = tokio::join!(rig.engine.unload("m", false), async {
        rig.gate.pass(1);
        rig.status_where(|status| status.models[0].state == ModelState::Unloading).await;
        let refused = rig.engine.generate(rig.request(&[2])).unwrap_err();
        assert_eq!(refused.to_string(), "model \"m\" is unloading");
        rig.gate.open();
        read(&mut running).await
    });
    assert_eq!(unloaded, Ok(()));
    assert_eq!(told.tokens.len(), 4);
    let gone = EngineError::ModelNotFound { model: "m".into() };
    assert_eq!(rig.engine.unload("m", false).await, Err(gone));
}

#[tokio::test]
async fn a_forced_unload_fails_what_waits_and_what_runs() {
    let mut rig = Rig::new("sim:", EngineConfig { running_max: 1, ..forgetful() }).await;
    let (mut running, mut waiting) = (rig.submit(&[1]), rig.submit(&[2]));
    rig.arrival();
    let (unloaded, running, waiting) = tokio::join!(
        rig.engine.unload("m", true),
        async {
            rig.gate.pass(1);
            read(&mut running).await
        },
        read(&mut waiting)
    );
    assert_eq!(unloaded, Ok(()));
    let error = EngineError::ModelUnloaded { model: "m".into() };
    assert_eq!((running.error(), waiting.error()), (&error, &error));
    assert_eq!(rig.at_rest().await.counters.failed, 2);
}

#[tokio::test]
async fn a_model_goes_after_its_keep_alive_and_not_while_it_is_used() {
    let mut rig = Rig::new("sim:", forgetful()).await;
    let minute = Duration::from_secs(60);
    let kept = LoadSettings { keep_alive: Some(minute), ..settings("sim:seed=2") };
    rig.engine.load("kept", kept).await.unwrap().ready().await.unwrap();
    let request = Request { model: "kept".into(), ..rig.request(&[1]) };
    let mut generation = rig.engine.generate(request).unwrap();
    rig.arrival();
    rig.turn(2 * minute);
    rig.gate.open();
    assert_eq!(read(&mut generation).await.tokens.len(), 4);
    rig.at_rest().await;
    rig.turn(minute - Duration::from_secs(1));
    let idle = |model: &ModelStatus| model.name == "kept" && model.idle >= minute / 2;
    rig.status_where(|status| status.models.iter().any(idle)).await;
    rig.turn(Duration::from_secs(1));
    rig.status_where(|status| status.models.len() == 1).await;
    assert!(rig.engine.model("m").is_ok(), "this one has no keep-alive");
    assert!(rig.engine.model("kept").is_err());
}

#[tokio::test]
async fn models_take_turns() {
    let mut rig = Rig::new("sim:", forgetful()).await;
    load(&rig.engine, "n", "sim:seed=1").await.unwrap();
    let of = |model: &str| Request { model: model.into(), ..rig.request(&[1]) };
    let (m, n) = (of("m"), of("n"));
    let first = rig.engine.generate(Request { prompt: vec![0], ..m.clone() }).unwrap();
    rig.arrival();
    let (mut one, mut two) = (rig.engine.generate(m).unwrap(), rig.engine.generate(n).unwrap());
    // The gates of the two models are one: steps of `m` hold two rows, those of `n` one.
    let rows: Vec<_> = (0..4).map(|_| rig.next_step().segments.len()).collect();
    assert_eq!(rows, [1, 2, 1, 2]);
    rig.gate.open();
    assert_eq!(read(&mut one).await.ids(), expected("sim:", &[1], 4));
    assert_eq!(read(&mut two).await.ids(), expected("sim:seed=1", &[1], 4));
    drop(first);
}

#[tokio::test]
async fn a_drained_engine_finishes_what_it_has_and_refuses_the_rest() {
    let mut rig = Rig::new("sim:", EngineConfig { running_max: 1, ..Default::default() }).await;
    let (mut running, mut waiting) = (rig.submit(&[1]), rig.submit(&[2]));
    rig.arrival();
    rig.engine.drain();
    assert_eq!(rig.engine.generate(rig.request(&[3])).unwrap_err(), EngineError::Draining);
    assert_eq!(load(&rig.engine, "n", "sim:").await, Err(EngineError::Draining));
    assert!(rig.engine.status().draining);
    rig.gate.open();
    let (_, one, two) = tokio::join!(
        rig.engine.shutdown(Duration::from_secs(60)),
        read(&mut running),
        read(&mut waiting)
    );
    assert_eq!((one.tokens.len(), two.tokens.len()), (4, 4));
    assert!(!rig.engine.status().device.alive);
    assert_eq!(rig.engine.ledger().snapshot().tier(Tier::Device).total(), 0);
    assert_eq!(rig.engine.unload("m", false).await, Err(EngineError::Stopped));
}

#[tokio::test]
async fn a_shutdown_fails_what_is_not_done_in_time() {
    let mut rig = Rig::new("sim:", EngineConfig { running_max: 1, ..Default::default() }).await;
    let (mut running, mut waiting) = (rig.submit(&[1]), rig.submit(&[2]));
    rig.arrival();
    let (_, one, two) = tokio::join!(
        rig.engine.shutdown(Duration::ZERO),
        async {
            rig.gate.pass(1);
            read(&mut running).await
        },
        read(&mut waiting)
    );
    assert_eq!((one.error(), two.error()), (&EngineError::Stopped, &EngineError::Stopped));
}

#[tokio::test]
async fn an_engine_without_handles_stops() {
    let rig = Rig::new("sim:", forgetful()).await;
    let mut generation = rig.submit(&[1]);
    let gate = rig.gate.clone();
    gate.arrival(1, PATIENCE).expect("the step comes");
    drop(rig);
    gate.open();
    assert_eq!(*read(&mut generation).await.error(), EngineError::Stopped);
}
