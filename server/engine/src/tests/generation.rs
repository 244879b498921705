//! One generation: its tokens, where it stops, what it accounts for, and that company changes
//! nothing.

use super::*;

#[tokio::test]
async fn a_generation_says_what_the_model_says_alone() {
    let rig = Rig::open("sim:", forgetful()).await;
    let prompt = prompt(100, 1);
    let told = read(&mut rig.submit(&prompt)).await;
    let cache = CacheReport {
        matched: 0,
        resumed: 0,
        recomputed: 100,
        tier: None,
        reason: sconce_cache::Reason::Disabled,
        divergence: None,
        restored_bytes: 0,
    };
    assert_eq!(told.started, Some(Started { prompt_tokens: 100, cache }));
    assert_eq!(told.ids(), expected("sim:", &prompt, 4));
    let finished = told.finished();
    assert_eq!(finished.reason, FinishReason::Length);
    let usage =
        Usage { prompt_tokens: 100, cached_tokens: 0, evaluated_tokens: 100, completion_tokens: 4 };
    assert_eq!(finished.usage, usage);
    let status = rig.at_rest().await;
    assert_eq!((status.counters.finished, status.counters.completion_tokens), (1, 4));
}

#[tokio::test]
async fn it_ends_at_the_end_of_sequence_which_is_not_sent() {
    let rig = Rig::open("sim:eos_after=3", forgetful()).await;
    let mut request = rig.request(&[1, 2]);
    request.stopping.max_tokens = None;
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    assert_eq!(told.tokens.len(), 3);
    assert_eq!(told.finished().reason, FinishReason::EndOfSequence(EOS_ID));
    assert_eq!(told.finished().usage.completion_tokens, 3);
}

#[tokio::test]
async fn it_passes_the_end_of_sequence_if_asked_to() {
    let rig = Rig::open("sim:eos_after=2", forgetful()).await;
    let mut request = rig.request(&[1, 2]);
    request.stopping.ignore_eos = true;
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    assert_eq!(told.tokens.len(), 4);
    assert_eq!(told.ids()[2], EOS_ID);
    assert_eq!(told.finished().reason, FinishReason::Length);
}

#[tokio::test]
async fn it_ends_at_a_stop_token_also_when_the_end_of_sequence_is_ignored() {
    let rig = Rig::open("sim:", forgetful()).await;
    let said = expected("sim:", &[5], 4);
    let first = said.iter().position(|&id| id == said[3]).unwrap();
    for ignore_eos in [false, true] {
        let mut request = rig.request(&[5]);
        request.stopping =
            Stopping { stop_token_ids: vec![999, said[3]], ignore_eos, ..Stopping::default() };
        let told = read(&mut rig.engine.generate(request).unwrap()).await;
        assert_eq!(told.ids(), said[..first]);
        assert_eq!(told.finished().reason, FinishReason::StopToken(said[3]));
    }
}

#[tokio::test]
async fn nothing_ends_it_before_the_least_number_of_tokens() {
    let rig = Rig::open("sim:", forgetful()).await;
    let said = expected("sim:", &[5], 4);
    let mut request = rig.request(&[5]);
    request.stopping = Stopping {
        stop_token_ids: vec![999, said[1]],
        min_tokens: 3,
        max_tokens: Some(64),
        ..Stopping::default()
    };
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    assert_eq!(told.ids()[0], said[0]);
    assert_ne!(told.ids()[1], said[1], "what would end it was not drawn");
    assert!(told.ids().len() >= 3, "{told:?}");
}

#[tokio::test]
async fn it_ends_with_the_context() {
    let rig = Rig::open("sim:context=20", forgetful()).await;
    let mut request = rig.request(&prompt(17, 0));
    request.stopping.max_tokens = None;
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    assert_eq!(told.tokens.len(), 3);
    assert_eq!(told.finished().reason, FinishReason::Length);
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_a_stream_begins() {
    let rig = Rig::open("sim:context=20", forgetful()).await;
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = rig.request(&[1, 2, 3]);
        change(&mut request);
        rig.engine.generate(request).map(drop).unwrap_err()
    };
    assert_eq!(refused(&|r| r.prompt.clear()), EngineError::EmptyPrompt);
    let context = EngineError::ContextExceeded { prompt_tokens: 20, context_length: 20 };
    assert_eq!(refused(&|r| r.prompt = prompt(20, 0)), context);
    assert!(context.to_string().contains("20 tokens") && context.to_string().contains("of 20"));
    let unknown = EngineError::UnknownTokenId { index: 1, id: 259, vocab_size: 259 };
    assert_eq!(refused(&|r| r.prompt[1] = 259), unknown);
    let missing = EngineError::ModelNotFound { model: "x".into() };
    assert_eq!(refused(&|r| r.model = "x".into()), missing);
    let option = |change: &dyn Fn(&mut Request)| match refused(change) {
        EngineError::InvalidOption { option, .. } => option,
        error => panic!("{error}"),
    };
    assert_eq!(option(&|r| r.stopping.max_tokens = Some(0)), "max_tokens");
    assert_eq!(option(&|r| r.logprobs = Some(TOP_LOGPROBS_MAX + 1)), "logprobs");
    assert_eq!(option(&|r| r.sampling.temperature = f32::NAN), "temperature");
    assert_eq!(option(&|r| r.sampling.temperature = -1.0), "temperature");
    assert_eq!(option(&|r| r.sampling.top_p = 0.0), "top_p");
    assert_eq!(option(&|r| r.sampling.min_p = 1.5), "min_p");
    assert_eq!(option(&|r| r.sampling.repeat_penalty = 0.0), "repeat_penalty");
    assert_eq!(option(&|r| r.sampling.presence_penalty = f32::INFINITY), "presence_penalty");
    assert_eq!(option(&|r| r.sampling.frequency_penalty = f32::NAN), "frequency_penalty");
    assert_eq!(option(&|r| r.sampling.logit_bias = vec![(259, 1.0)]), "logit_bias");
    assert_eq!(option(&|r| r.sampling.logit_bias = vec![(1, f32::NAN)]), "logit_bias");
    let late = refused(&|r| r.deadline = Some(r.arrived));
    assert_eq!(late, EngineError::DeadlineExceeded { waited: Duration::ZERO });
    assert_eq!(rig.engine.status().counters.accepted, 0);
}

/// A request whose tokens depend on the draw.
fn drawn(rig: &Rig, seed: u64) -> Request {
    let mut request = rig.request(&prompt(150 + seed as usize, seed as usize));
    request.sampling = Sampling { temperature: 4.0, seed: Some(seed), ..Sampling::default() };
    request.stopping = Stopping { max_tokens: Some(20), ignore_eos: true, ..Stopping::default() };
    request.logprobs = Some(3);
    request
}

#[tokio::test]
async fn tokens_and_logprobs_are_the_same_alone_among_others_and_in_odd_chunks() {
    let alone = Rig::open("sim:", forgetful()).await;
    let reference = read(&mut alone.engine.generate(drawn(&alone, 1)).unwrap()).await;
    assert_eq!(reference.tokens.len(), 20);
    assert_ne!(reference.ids(), expected("sim:", &prompt(151, 1), 20), "nothing was drawn");
    for step_tokens_max in [1, 7, 61, 2048] {
        let config = EngineConfig { step_tokens_max, ..forgetful() };
        let rig = Rig::open("sim:", config).await;
        let mut all: Vec<_> =
            (0..8).map(|seed| rig.engine.generate(drawn(&rig, seed)).unwrap()).collect();
        let mut told = Vec::new();
        for generation in &mut all {
            told.push(read(generation).await);
        }
        assert_eq!(told[1].tokens, reference.tokens);
        assert!(told.iter().all(|told| told.tokens.len() == 20));
    }
}

#[tokio::test]
async fn logprobs_are_those_of_the_raw_logits() {
    let rig = Rig::open("sim:", forgetful()).await;
    let mut request = drawn(&rig, 3);
    request.sampling.logit_bias = vec![(65, 100.0)];
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    let token = &told.tokens[0];
    let logprobs = token.logprobs.as_ref().unwrap();
    assert_eq!(token.id, 65);
    assert!(logprobs.logprob < -15.0, "the bias is not part of it");
    assert_eq!(logprobs.top.len(), 3);
    assert!(logprobs.top[0].1 > -0.001);
    assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
}

#[tokio::test]
async fn sixty_four_at_once_each_get_their_own() {
    let config = EngineConfig { running_max: 48, ..forgetful() };
    let rig = Rig::open("sim:", config).await;
    let prompts: Vec<_> = (0..64).map(|i| prompt(1 + i * 5, i)).collect();
    let mut all: Vec<_> = prompts.iter().map(|prompt| rig.submit(prompt)).collect();
    for (generation, prompt) in all.iter_mut().zip(&prompts) {
        assert_eq!(read(generation).await.ids(), expected("sim:", prompt, 4));
    }
    assert_eq!(rig.at_rest().await.counters.finished, 64);
}

#[tokio::test]
async fn a_stop_ends_it_after_what_was_read() {
    let rig = Rig::open("sim:", forgetful()).await;
    let mut request = rig.request(&[1]);
    request.stopping.max_tokens = None;
    let mut generation = rig.engine.generate(request).unwrap();
    for _ in 0..4 {
        generation.next().await.unwrap();
    }
    generation.stop();
    let told = read(&mut generation).await;
    assert_eq!(told.tokens, []);
    assert_eq!(told.finished().reason, FinishReason::Stopped);
    assert_eq!(told.finished().usage.completion_tokens, 3);
    rig.at_rest().await;
}

#[tokio::test]
async fn samples_of_steps_name_the_traced_requests_in_them() {
    let mut rig = Rig::new("sim:", forgetful()).await;
    let mut samples = rig.engine.step_samples();
    let mark = |number| TraceMark { trace: [number; 16], span: [number; 8] };
    rig.hold();
    let mut all = [Some(mark(1)), None, Some(mark(2)), Some(mark(2))].map(|trace| {
        let request = Request { trace, ..rig.request(&[1, 2]) };
        rig.engine.generate(request).unwrap()
    });
    rig.next_step();
    let second = Duration::from_secs(1);
    rig.clock.turn(second);
    rig.gate.open();
    for generation in &mut all {
        assert_eq!(read(generation).await.tokens.len(), 4);
    }
    let told = [samples.recv().await.unwrap(), samples.recv().await.unwrap()];
    let [prefill, decode] = told.each_ref().map(|sample| sample.step);
    assert_eq!((prefill.phase, prefill.time), (Phase::Prefill, second));
    assert_eq!((prefill.tokens, prefill.sequences), (8, 4));
    assert_eq!((decode.phase, decode.tokens, decode.sequences), (Phase::Decode, 4, 4));
    assert_eq!(told.each_ref().map(|sample| sample.of), [1, 3]);
    for sample in &told {
        assert_eq!((&*sample.model, &*sample.requests), ("m", &[mark(1), mark(2)][..]));
    }
    drop(rig);
    assert_eq!(samples.recv().await, None, "the engine has ended");
}

#[tokio::test]
async fn samples_of_an_idle_model_do_not_wait_for_the_others() {
    let mut rig = Rig::new("sim:", forgetful()).await;
    load(&rig.engine, "n", "sim:").await.unwrap();
    let mut samples = rig.engine.step_samples();
    let mut busy = Request { model: "n".into(), ..rig.request(&[1]) };
    busy.stopping.max_tokens = None;
    let _busy = rig.engine.generate(busy).unwrap();
    rig.arrival();
    let mark = TraceMark { trace: [1; 16], span: [1; 8] };
    let mut request = Request { trace: Some(mark), ..rig.request(&[1]) };
    request.stopping.max_tokens = Some(1);
    let _traced = rig.engine.generate(request).unwrap();
    assert_eq!(rig.next_step().tokens, [1], "that of the model m");
    rig.next_step();
    assert_eq!(samples.try_recv().unwrap().model, "m");
}

#[tokio::test]
async fn timings_are_of_the_whole_prompt_and_count_from_arrival() {
    let config = EngineConfig { step_tokens_max: 10, ..forgetful() };
    let mut rig = Rig::new("sim:", config).await;
    let second = Duration::from_secs(1);
    let request = rig.request(&prompt(25, 0));
    rig.clock.turn(second);
    let mut generation = rig.engine.generate(request).unwrap();
    rig.arrival();
    // Three chunks and three further tokens, a second each.
    for _ in 0..5 {
        rig.clock.turn(second);
        rig.next_step();
    }
    rig.clock.turn(second);
    rig.gate.open();
    let timings = read(&mut generation).await.finished().timings;
    let expected = Timings {
        queue: second,
        prefill: 3 * second,
        decode: 3 * second,
        first_token: Some(4 * second),
    };
    assert_eq!(timings, expected);
}
