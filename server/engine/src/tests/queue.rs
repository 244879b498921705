//! Who runs when: the bound of the queue, priorities, shares of a step, cancellation, deadlines,
//! readers that lag.

use super::*;

const ONE_AT_A_TIME: usize = 1;

fn config(running_max: usize, step_tokens_max: usize) -> EngineConfig {
    EngineConfig { running_max, step_tokens_max, waiting_max: 4, ..forgetful() }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_takes_again_when_one_leaves() {
    let config = EngineConfig { waiting_max: 2, running_max: 1, ..forgetful() };
    let mut rig = Rig::new("sim:", config).await;
    let mut running = rig.submit(&[1]);
    rig.arrival();
    let (mut second, third) = (rig.submit(&[2]), rig.submit(&[3]));
    let error = rig.engine.generate(rig.request(&[4])).unwrap_err();
    assert!(
        matches!(error, EngineError::QueueFull { limit: 2, retry_after } if !retry_after.is_zero())
    );
    assert_eq!(rig.engine.status().waiting_max, 2);
    drop(third);
    rig.next_step();
    let mut fourth = rig.submit(&[4]);
    assert!(rig.engine.generate(rig.request(&[5])).is_err());
    rig.gate.open();
    for (generation, first) in [(&mut running, 1), (&mut second, 2), (&mut fourth, 4)] {
        assert_eq!(read(generation).await.ids(), expected("sim:", &[first], 4));
    }
    rig.at_rest().await;
}

#[tokio::test]
async fn tokens_of_prompts_count_until_they_are_admitted() {
    let config = EngineConfig { waiting_max: 2, running_max: 1, ..forgetful() };
    let mut rig = Rig::new("sim:", config).await;
    let mut running = rig.submit(&prompt(40, 0));
    rig.arrival();
    let (mut second, third) = (rig.submit(&prompt(20, 1)), rig.submit(&prompt(30, 2)));
    assert!(rig.engine.generate(rig.request(&prompt(50, 3))).is_err());
    rig.next_step();
    let status = rig.status_where(|status| status.waiting == 2).await;
    assert_eq!(status.waiting_tokens, 50, "those of the refused one do not count");
    drop(third);
    // Swept before the one, told after it.
    rig.next_step();
    rig.next_step();
    let status = rig.status_where(|status| status.waiting == 1).await;
    assert_eq!(status.waiting_tokens, 20);
    rig.gate.open();
    for generation in [&mut running, &mut second] {
        assert_eq!(read(generation).await.tokens.len(), 4);
    }
    assert_eq!(rig.at_rest().await.waiting_tokens, 0);
}

#[tokio::test]
async fn larger_priorities_run_first_and_equals_in_order_of_arrival() {
    let config = EngineConfig { running_max: 1, ..forgetful() };
    let mut rig = Rig::new("sim:", config).await;
    let mut all = vec![rig.submit(&[0])];
    rig.arrival();
    for (first, priority) in [(1, 0), (2, 5), (3, 0), (4, 5), (5, -1)] {
        let mut request = Request { priority, ..rig.request(&[first]) };
        request.stopping.max_tokens = Some(1);
        all.push(rig.engine.generate(request).unwrap());
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        let batch = rig.next_step();
        if batch.segments[0].first_position == 0 {
            order.push(batch.tokens[0]);
        }
    }
    assert_eq!(order, [2, 4, 1, 3, 5]);
}

#[tokio::test]
async fn a_step_holds_every_decode_and_shares_the_rest_among_prompts() {
    let mut rig = Rig::new("sim:", config(8, 100)).await;
    let mut request = rig.request(&[9]);
    request.stopping.max_tokens = None;
    let _decoding = rig.engine.generate(request).unwrap();
    rig.arrival();
    let (_long, _short) = (rig.submit(&prompt(200, 1)), rig.submit(&prompt(30, 2)));
    let batch = rig.next_step();
    let mut lengths: Vec<_> = batch.segments.iter().map(|segment| segment.len).collect();
    lengths.sort_unstable();
    // The short prompt whole, and all that is left to the long one.
    assert_eq!(lengths, [1, 30, 69]);
    let sampled: Vec<_> = batch.segments.iter().filter(|s| s.logits).map(|s| s.len).collect();
    assert_eq!(sampled, [1, 30]);
}

#[tokio::test]
async fn long_prompts_get_even_shares() {
    let mut rig = Rig::new("sim:", config(8, 100)).await;
    let _first = rig.submit(&[1]);
    rig.arrival();
    let (_a, _b) = (rig.submit(&prompt(500, 1)), rig.submit(&prompt(400, 2)));
    let lengths: Vec<_> = rig.next_step().segments.iter().map(|segment| segment.len).collect();
    assert_eq!(lengths[0], 1);
    assert!(lengths[1..].iter().all(|&len| (49..=50).contains(&len)), "{lengths:?}");
}

#[tokio::test]
async fn decodes_that_do_not_fit_a_step_take_turns_and_leave_room_for_prompts() {
    let config = EngineConfig { step_tokens_max: 4, running_max: 16, ..forgetful() };
    let mut rig = Rig::new("sim:", config).await;
    rig.hold();
    let mut all: Vec<_> = (0..10).map(|first| rig.submit(&[first])).collect();
    let mut late = rig.submit(&prompt(40, 11));
    for step in 0..6 {
        let batch = rig.next_step();
        assert_eq!(batch.tokens.len(), 4, "step {step} is not full");
        let prefill = batch.segments.iter().any(|segment| segment.len > 1 || !segment.logits);
        assert!(prefill || step == 0, "step {step} has no place for the prompt");
    }
    rig.gate.open();
    for (first, generation) in all.iter_mut().enumerate() {
        assert_eq!(read(generation).await.ids(), expected("sim:", &[first as u32], 4));
    }
    assert_eq!(read(&mut late).await.ids(), expected("sim:", &prompt(40, 11), 4));
}

#[tokio::test]
async fn dropping_a_generation_in_the_queue_frees_its_place() {
    let mut rig = Rig::new("sim:", config(ONE_AT_A_TIME, 2048)).await;
    let mut running = rig.submit(&[1]);
    rig.arrival();
    drop(rig.submit(&[2]));
    rig.gate.open();
    read(&mut running).await;
    let status = rig.at_rest().await;
    assert_eq!((status.counters.finished, status.counters.cancelled), (1, 1));
}

#[tokio::test]
async fn dropping_a_generation_in_its_prefill_ends_it_within_a_step() {
    let mut rig = Rig::new("sim:", config(4, 64)).await;
    let cancelled = rig.submit(&prompt(1000, 1));
    rig.arrival();
    let mut other = rig.submit(&[7]);
    drop(cancelled);
    let batch = rig.next_step();
    assert_eq!(segments(&batch), [(7, 1)]);
    rig.gate.open();
    assert_eq!(read(&mut other).await.tokens.len(), 4);
    let status = rig.at_rest().await;
    assert_eq!(status.counters.cancelled, 1);
    assert_eq!(status.counters.prompt_tokens, 64 + 1);
}

#[tokio::test]
async fn dropping_a_generation_in_its_decode_ends_it_within_a_step() {
    let mut rig = Rig::new("sim:", config(4, 64)).await;
    rig.hold();
    let mut cancelled = rig.submit(&[1]);
    let mut other = rig.submit(&[2]);
    rig.next_step();
    rig.next_step();
    assert!(matches!(cancelled.next().await, Some(Event::Started(_))));
    assert!(matches!(cancelled.next().await, Some(Event::Token(_))));
    drop(cancelled);
    assert_eq!(rig.next_step().segments.len(), 1);
    rig.gate.open();
    assert_eq!(read(&mut other).await.ids(), expected("sim:", &[2], 4));
    rig.at_rest().await;
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_an_error() {
    let mut rig = Rig::new("sim:", config(ONE_AT_A_TIME, 2048)).await;
    let _running = rig.submit(&[1]);
    rig.arrival();
    let second = Duration::from_secs(1);
    let deadline = Some(rig.clock.now() + second);
    let mut waiting = rig.engine.generate(Request { deadline, ..rig.request(&[2]) }).unwrap();
    rig.turn(second);
    rig.next_step();
    let told = read(&mut waiting).await;
    assert_eq!(*told.error(), EngineError::DeadlineExceeded { waited: second });
    assert_eq!(told.started, None);
}

#[tokio::test]
async fn a_deadline_cuts_prefill_and_decode_within_a_step() {
    let mut rig = Rig::new("sim:", config(4, 64)).await;
    let second = Duration::from_secs(1);
    let deadline = Some(rig.clock.now() + second);
    rig.hold();
    let of = |prompt: &[u32]| Request { deadline, ..rig.request(prompt) };
    let (prefilling, decoding) = (of(&prompt(1000, 1)), of(&[2]));
    let mut prefilling = rig.engine.generate(prefilling).unwrap();
    let mut decoding = rig.engine.generate(decoding).unwrap();
    let mut other = rig.submit(&[3]);
    rig.next_step();
    rig.next_step();
    rig.turn(second);
    assert_eq!(rig.next_step().segments.len(), 1);
    let told = read(&mut prefilling).await;
    assert_eq!(told.finished().reason, FinishReason::Deadline);
    let usage = told.finished().usage;
    assert!(usage.evaluated_tokens > 60 && usage.evaluated_tokens <= 128, "{usage:?}");
    let told = read(&mut decoding).await;
    assert_eq!(told.finished().reason, FinishReason::Deadline);
    assert_eq!(told.ids(), expected("sim:", &[2], told.tokens.len()));
    rig.gate.open();
    assert_eq!(read(&mut other).await.tokens.len(), 4);
    rig.at_rest().await;
}

#[tokio::test]
async fn a_sleeping_engine_wakes_for_the_deadline_of_a_paused_sequence() {
    let rig = Rig::open("sim:", config(4, 64)).await;
    let second = Duration::from_secs(1);
    let mut request = rig.request(&[1]);
    request.stopping.max_tokens = None;
    request.deadline = Some(rig.clock.now() + second);
    let mut unread = rig.engine.generate(request).unwrap();
    rig.status_where(|status| status.models[0].paused == 1).await;
    rig.turn(second);
    rig.at_rest().await;
    assert_eq!(read(&mut unread).await.finished().reason, FinishReason::Deadline);
}

#[tokio::test]
async fn a_reader_that_lags_pauses_its_own_sequence_only_and_loses_nothing() {
    let rig = Rig::open("sim:", config(4, 64)).await;
    let mut request = rig.request(&[1]);
    request.stopping.max_tokens = Some(500);
    let mut slow = rig.engine.generate(request.clone()).unwrap();
    let status = rig.status_where(|status| status.models[0].paused == 1).await;
    let pages = status.models[0].pages_used;
    assert!(pages <= 2, "{pages} pages for a channel of events");
    assert_eq!(read(&mut rig.submit(&[2])).await.ids(), expected("sim:", &[2], 4));
    let status = rig.status_where(|status| status.running == 1).await;
    assert_eq!((status.models[0].paused, status.models[0].pages_used), (1, pages));
    assert_eq!(read(&mut slow).await.ids(), expected("sim:", &[1], 500));
    rig.at_rest().await;
}
