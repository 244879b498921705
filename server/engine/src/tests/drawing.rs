//! Tokens that a device draws: which rows it is asked to draw from, and that what it has drawn is what
//! the caller gets. That devices draw as they are asked is tested beside the kernels.

use sconce_models::{Draw, RowUse};

use super::*;

/// What a request gets of a model that draws `drawn` from the first row of every step.
async fn told(drawn: Drawn, request: Request) -> Told {
    let (gate, loads) = (Gate::new(), Loads::new(Mutex::new(Ok(()))));
    gate.open();
    let loader = GatedLoader { gate, loads, drawn: vec![drawn] };
    let engine = EngineHandle::start(EngineConfig::default(), Arc::new(loader)).unwrap();
    load(&engine, "m", "sim:").await.unwrap();
    read(&mut engine.generate(request).unwrap()).await
}

/// What the device is told of the row of a request, in its first step.
async fn asked(change: impl FnOnce(&mut Request)) -> RowUse {
    let mut rig = Rig::new("sim:", forgetful()).await;
    let mut request = rig.request(&prompt(5, 1));
    change(&mut request);
    let generation = rig.engine.generate(request).unwrap();
    let [asked] = rig.arrival().uses[..] else { panic!("a row of one request") };
    rig.gate.open();
    drop(generation);
    asked
}

#[tokio::test]
async fn a_device_is_asked_to_draw_as_the_request_says() {
    let greedy = asked(|_| {}).await;
    assert_eq!(greedy.draw.unwrap().temperature, 0.0);
    assert_eq!(greedy.largest, 0);
    let drawn = asked(|request| {
        let (temperature, seed) = (0.5, Some(7));
        request.sampling =
            Sampling { temperature, top_k: 9, top_p: 0.8, min_p: 0.1, seed, ..Sampling::default() };
        request.logprobs = Some(3);
    });
    let RowUse { draw: Some(draw), largest: 3 } = drawn.await else { panic!("it is not asked") };
    let uniform = draw.uniform;
    assert!((0.0..1.0).contains(&uniform));
    assert_eq!(draw, Draw { temperature: 0.5, top_k: 9, top_p: 0.8, min_p: 0.1, uniform });
}

#[tokio::test]
async fn a_row_that_needs_a_history_a_bias_or_another_token_than_the_end_is_not_drawn_from() {
    let changes: [fn(&mut Request); 3] = [
        |request| request.sampling.repeat_penalty = 1.2,
        |request| request.sampling.logit_bias = vec![(3, 1.0)],
        |request| request.stopping.min_tokens = 2,
    ];
    for change in changes {
        assert_eq!(asked(change).await, RowUse { draw: None, largest: 0 });
    }
}

#[tokio::test]
async fn what_the_device_draws_is_what_the_caller_gets() {
    let told = told(Drawn::Token(77), request(&prompt(5, 1))).await;
    assert_eq!(told.ids(), [77; 4]);
    assert_eq!(told.finished().reason, FinishReason::Length);
}

#[tokio::test]
async fn what_the_device_does_not_draw_is_drawn_from_its_logits() {
    let plain = expected("sim:", &prompt(5, 1), 4);
    assert_eq!(told(Drawn::Undrawn, request(&prompt(5, 1))).await.ids(), plain);
    // And so is what it was not asked for.
    let mut biased = request(&prompt(5, 1));
    biased.sampling.logit_bias = vec![(3, 100.0)];
    assert_eq!(told(Drawn::Token(77), biased).await.ids(), [3; 4]);
    let mut endless = request(&prompt(5, 1));
    endless.stopping.min_tokens = 2;
    let ids = told(Drawn::Token(77), endless).await.ids();
    assert_eq!((&ids[..2], &ids[2..]), (&plain[..2], &[77, 77][..]));
}

#[tokio::test]
async fn logits_that_the_device_finds_not_finite_end_the_request() {
    let told = told(Drawn::NotFinite, request(&prompt(5, 1))).await;
    assert!(told.tokens.is_empty());
    assert_eq!(*told.error(), EngineError::NonFiniteLogits { token_index: 0 });
}
