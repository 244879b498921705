//! Pages of sequence state: admission, preemption, what can never fit, readers that sit on pages.

use super::*;

fn config() -> EngineConfig {
    EngineConfig { step_tokens_max: 64, ..forgetful() }
}

fn long(rig: &Rig, prompt: &[u32], max_tokens: usize) -> Generation {
    let mut request = rig.request(prompt);
    request.stopping.max_tokens = Some(max_tokens);
    rig.engine.generate(request).unwrap()
}

#[tokio::test]
async fn a_preempted_sequence_goes_on_as_if_nothing_had_been() {
    // Room for four pages; three sequences that each come to need three.
    let path = "sim:pages=4";
    let mut rig = Rig::new(path, config()).await;
    rig.hold();
    let prompts: Vec<_> = (0..3).map(|i| prompt(40, i)).collect();
    let mut all: Vec<_> = prompts.iter().map(|prompt| long(&rig, prompt, 140)).collect();
    rig.gate.open();
    let (one, two, three) = {
        let [a, b, c] = &mut all[..] else { unreachable!() };
        tokio::join!(read(a), read(b), read(c))
    };
    for (told, prompt) in [one, two, three].iter().zip(&prompts) {
        assert_eq!(told.ids(), expected(path, prompt, 140));
        let usage = told.finished().usage;
        assert_eq!((usage.prompt_tokens, usage.evaluated_tokens), (40, 40));
    }
    let status = rig.at_rest().await;
    assert!(status.counters.preemptions > 0);
    // One of them the holder's.
    assert_eq!(status.counters.prompt_tokens, 121);
    assert!(status.counters.step_tokens > 3 * (40 + 139));
}

#[tokio::test]
async fn a_preempted_sequence_still_ends_after_as_many_tokens() {
    let path = "sim:pages=4,eos_after=100";
    let mut rig = Rig::new(path, config()).await;
    rig.hold();
    let prompts: Vec<_> = (0..3).map(|i| prompt(60, i)).collect();
    let mut all: Vec<_> = prompts.iter().map(|prompt| long(&rig, prompt, 140)).collect();
    rig.gate.open();
    let [a, b, c] = &mut all[..] else { unreachable!() };
    let (one, two, three) = tokio::join!(read(a), read(b), read(c));
    for told in [one, two, three] {
        assert_eq!(told.tokens.len(), 100);
        assert_eq!(told.finished().reason, FinishReason::EndOfSequence(EOS_ID));
    }
    assert!(rig.at_rest().await.counters.preemptions > 0);
}

#[tokio::test]
async fn a_request_waits_until_its_prompt_and_a_page_more_fit() {
    let mut rig = Rig::new("sim:pages=4", config()).await;
    let mut first = long(&rig, &prompt(100, 1), 2);
    rig.arrival();
    let mut second = long(&rig, &prompt(100, 2), 2);
    // The first holds two pages, the second would leave none to go on with.
    for _ in 0..2 {
        assert_eq!(rig.next_step().segments.len(), 1);
    }
    rig.gate.open();
    assert_eq!(read(&mut first).await.tokens.len(), 2);
    assert_eq!(read(&mut second).await.tokens.len(), 2);
    assert_eq!(rig.at_rest().await.counters.preemptions, 0);
}

#[tokio::test]
async fn a_prompt_that_can_never_fit_is_refused_with_the_numbers() {
    let rig = Rig::open("sim:pages=2", config()).await;
    let error = rig.engine.generate(rig.request(&prompt(129, 0))).unwrap_err();
    assert_eq!(error, EngineError::OutOfPages { tokens: 129, pages: 3, pages_max: 2 });
    let told = read(&mut long(&rig, &prompt(128, 0), 1)).await;
    assert_eq!(told.tokens.len(), 1);
}

#[tokio::test]
async fn a_sequence_that_outgrows_the_pool_fails_alone() {
    let rig = Rig::open("sim:pages=2", config()).await;
    let mut large = long(&rig, &prompt(100, 0), 1000);
    let mut small = long(&rig, &[1], 20);
    let (large, small) = tokio::join!(read(&mut large), read(&mut small));
    assert_eq!(*large.error(), EngineError::OutOfPages { tokens: 129, pages: 3, pages_max: 2 });
    assert_eq!(large.ids(), expected("sim:", &prompt(100, 0), 29));
    assert_eq!(small.ids(), expected("sim:", &[1], 20));
    rig.at_rest().await;
}

#[tokio::test]
async fn a_reader_that_lags_cannot_keep_pages_from_others() {
    let rig = Rig::open("sim:pages=4", config()).await;
    let mut unread = long(&rig, &prompt(60, 1), 150);
    rig.status_where(|status| status.models[0].paused == 1).await;
    let told = read(&mut long(&rig, &prompt(190, 2), 4)).await;
    assert_eq!(told.ids(), expected("sim:", &prompt(190, 2), 4));
    let status = rig.status_where(|status| status.counters.finished == 1).await;
    assert_eq!(status.counters.preemptions, 1);
    assert_eq!(read(&mut unread).await.ids(), expected("sim:", &prompt(60, 1), 150));
    rig.at_rest().await;
}

#[tokio::test]
async fn a_preempted_sequence_that_is_dropped_leaves_nothing() {
    let rig = Rig::open("sim:pages=4", config()).await;
    let unread = long(&rig, &prompt(60, 1), 150);
    rig.status_where(|status| status.models[0].paused == 1).await;
    read(&mut long(&rig, &prompt(190, 2), 4)).await;
    drop(unread);
    assert_eq!(rig.at_rest().await.counters.cancelled, 1);
}
