//! Models that fail, panic or compute nonsense hurt the requests of that step and nobody else.

use super::*;

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
    for _ in 0..3 {
        assert!(matches!(read(&mut rig.submit(&[1])).await.error(), EngineError::Forward { .. }));
    }
    rig.status_where(|status| status.models[0].state == ModelState::Failed).await;
    let error = rig.engine.generate(rig.request(&[1])).unwrap_err();
    assert_eq!(error.to_string(), "model \"m\" is failed");
    rig.engine.unload("m", false).await.unwrap();
    load(&rig.engine, "m", "sim:").await.unwrap();
    assert_eq!(read(&mut rig.submit(&[1])).await.tokens.len(), 4);
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
