//! The simulated model behaves as a real one would, as far as an engine can see.

use super::*;
use crate::model::PointEmit;
use crate::state::{PointId, Prefix, PrefixPoint, SequenceId, StateError};

fn model(spec: SimulatedSpec) -> SimulatedModel {
    SimulatedModel::new(spec, &LoadOptions::default()).unwrap()
}

fn open(model: &mut SimulatedModel, tokens: usize) -> SequenceId {
    let id = model.pool.open().unwrap();
    model.pool.reserve(id, tokens).unwrap();
    id
}

/// Evaluates one segment and returns the logits after it.
fn step(model: &mut SimulatedModel, id: SequenceId, tokens: &[u32]) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push(id, model.pool.len(id).unwrap(), tokens, true);
    model.forward(&batch).unwrap().row(0).unwrap().to_vec()
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

fn complete(model: &mut SimulatedModel, prompt: &[u32], count: usize) -> Vec<u32> {
    let id = open(model, prompt.len() + count);
    let mut next = argmax(&step(model, id, prompt));
    let mut tokens = vec![next];
    while tokens.len() < count && next != EOS_ID {
        next = argmax(&step(model, id, &[next]));
        tokens.push(next);
    }
    model.pool.close(id).unwrap();
    tokens
}

#[test]
fn chunks_do_not_matter_and_every_token_does() {
    let mut model = model(SimulatedSpec::default());
    let prompt: Vec<u32> = (0..50).collect();
    let whole = open(&mut model, 50);
    let expected = step(&mut model, whole, &prompt);
    let cut = open(&mut model, 50);
    step(&mut model, cut, &prompt[..7]);
    step(&mut model, cut, &prompt[7..8]);
    assert_eq!(step(&mut model, cut, &prompt[8..]), expected);
    for lost in 0..50 {
        let mut other = prompt.clone();
        other.remove(lost);
        let id = open(&mut model, 50);
        assert_ne!(step(&mut model, id, &other), expected, "token {lost} does not matter");
        model.pool.close(id).unwrap();
    }
}

#[test]
fn the_batch_does_not_matter() {
    let mut model = model(SimulatedSpec::default());
    let alone = open(&mut model, 3);
    let expected = step(&mut model, alone, &[1, 2, 3]);
    let (one, two) = (open(&mut model, 3), open(&mut model, 3));
    let mut batch = Batch::default();
    batch.push(one, 0, &[9, 9], false);
    batch.push(two, 0, &[1, 2, 3], true);
    let mut logits = model.forward(&batch).unwrap();
    assert_eq!(logits.rows(), 1);
    assert_eq!(logits.row(0).unwrap(), expected);
}

#[test]
fn completions_are_printable_and_differ_by_seed() {
    let text = |seed| {
        let mut model = model(SimulatedSpec { seed, ..SimulatedSpec::default() });
        complete(&mut model, b"hello".map(u32::from).as_slice(), 64)
    };
    let one = text(1);
    assert!(one.iter().all(|&id| id == 32 || (97..123).contains(&id)), "{one:?}");
    assert_eq!(one, text(1));
    assert_ne!(one, text(2));
}

#[test]
fn it_ends_after_as_many_completion_tokens_as_asked_also_when_computed_again() {
    let mut model = model(SimulatedSpec { eos_after: 5, ..SimulatedSpec::default() });
    let prompt = [1, 2, 3];
    let tokens = complete(&mut model, &prompt, 100);
    assert_eq!((tokens.len(), tokens[5]), (6, EOS_ID));
    let mut so_far = prompt.to_vec();
    so_far.extend(&tokens[..3]);
    assert_eq!(complete(&mut model, &so_far, 100), tokens[3..]);
    // A longer conversation starts a completion of its own.
    so_far.extend([7, 8, 9]);
    assert_eq!(complete(&mut model, &so_far, 100).len(), 6);
}

#[test]
fn a_batch_that_breaks_a_rule_is_refused_and_changes_nothing() {
    let mut model = model(SimulatedSpec::default());
    let id = open(&mut model, 4);
    let mut batch = Batch::default();
    batch.push(id, 1, &[1], true);
    assert!(matches!(model.forward(&batch), Err(Error::Batch { .. })));
    batch.clear();
    batch.push(id, 0, &[1; 65], true);
    assert!(matches!(model.forward(&batch), Err(Error::Batch { .. })));
    assert_eq!(model.pool.len(id).unwrap(), 0);
}

#[test]
fn faults_come_where_they_are_asked_for() {
    let mut failing = model(SimulatedSpec { fail_at: 3, ..SimulatedSpec::default() });
    let id = open(&mut failing, 3);
    step(&mut failing, id, &[1, 2]);
    let mut batch = Batch::default();
    batch.push(id, 2, &[3], true);
    assert!(failing.forward(&batch).unwrap_err().to_string().contains("at token 3"));
    assert_eq!(failing.pool.len(id).unwrap(), 2);

    let mut nan = model(SimulatedSpec { nan_at: 2, ..SimulatedSpec::default() });
    let id = open(&mut nan, 2);
    assert!(step(&mut nan, id, &[1]).iter().all(|logit| logit.is_finite()));
    assert!(step(&mut nan, id, &[2]).iter().all(|logit| logit.is_nan()));
}

#[test]
fn a_load_reports_its_steps_and_can_be_given_up() {
    let options = LoadOptions::default();
    let path = "sim:load_steps=4,weights_bytes=100";
    let mut seen = Vec::new();
    let loaded = load_with_progress(path, &options, &mut |progress| {
        seen.push(progress.bytes_done);
        ControlFlow::Continue(())
    });
    assert!(loaded.is_ok());
    assert_eq!(seen, [0, 25, 50, 75, 100]);
    let cancelled = load_with_progress(path, &options, &mut |_| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

const RECURRENT: [bool; 2] = [false, true];

/// Computes `tokens`, keeps the pages of the first `len`, and a point there where there are points.
fn keep(model: &mut SimulatedModel, tokens: &[u32], len: usize) -> (Vec<u32>, Option<PointId>) {
    let id = open(model, tokens.len());
    let mut batch = Batch::default();
    batch.push(id, 0, tokens, false);
    let point = model.spec.recurrent.then(|| model.pool.take_point().unwrap());
    batch.emits.extend(point.map(|point| PointEmit { segment: 0, offset: len, point }));
    model.forward(&batch).unwrap();
    let pages = model.pool.page_table(id).unwrap()[..len.div_ceil(PAGE_TOKENS)].to_vec();
    model.pool.share_pages(&pages).unwrap();
    model.pool.close(id).unwrap();
    (pages, point)
}

/// Logits after `tokens` of a sequence that starts from a prefix of `len` tokens.
fn resume(
    model: &mut SimulatedModel,
    (pages, point): &(Vec<u32>, Option<PointId>),
    len: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let point = point.map_or(PrefixPoint::None, PrefixPoint::Slot);
    let id = model.pool.open_at(Prefix { len, pages, point }).unwrap();
    model.pool.reserve(id, tokens.len() - len).unwrap();
    let row = step(model, id, &tokens[len..]);
    model.pool.close(id).unwrap();
    row
}

#[test]
fn a_sequence_that_starts_from_a_prefix_goes_on_as_a_cold_one() {
    for recurrent in RECURRENT {
        let mut model = model(SimulatedSpec { recurrent, ..SimulatedSpec::default() });
        let tokens: Vec<u32> = (0..200).collect();
        let cold = open(&mut model, 200);
        let expected = step(&mut model, cold, &tokens);
        for len in [1, 63, 64, 70, 128, 199] {
            let kept = keep(&mut model, &tokens[..199], len);
            assert_eq!(resume(&mut model, &kept, len, &tokens), expected, "from {len}");
        }
    }
}

#[test]
fn a_foreign_page_or_point_shows_in_the_logits() {
    for recurrent in RECURRENT {
        let mut model = model(SimulatedSpec { recurrent, ..SimulatedSpec::default() });
        let tokens: Vec<u32> = (0..200).collect();
        let other: Vec<u32> = (1..201).collect();
        let own = keep(&mut model, &tokens, 150);
        let foreign = keep(&mut model, &other, 150);
        let expected = resume(&mut model, &own, 150, &tokens);
        for index in 0..own.0.len() {
            let mut mixed = own.clone();
            mixed.0[index] = foreign.0[index];
            assert_ne!(resume(&mut model, &mixed, 150, &tokens), expected, "page {index}");
        }
        if recurrent {
            let mixed = (own.0.clone(), foreign.1);
            assert_ne!(resume(&mut model, &mixed, 150, &tokens), expected);
        }
        assert_eq!(resume(&mut model, &own, 150, &tokens), expected);
        model.pool.check_invariants().unwrap();
    }
}

#[test]
fn a_fork_goes_on_as_its_origin_and_apart_from_it() {
    for recurrent in RECURRENT {
        let mut model = model(SimulatedSpec { recurrent, ..SimulatedSpec::default() });
        let origin = open(&mut model, 100);
        step(&mut model, origin, &[1; 70]);
        let fork = model.pool.fork(origin).unwrap();
        for id in [origin, fork] {
            model.pool.reserve(id, 2).unwrap();
        }
        let expected = step(&mut model, origin, &[2]);
        step(&mut model, origin, &[3]);
        assert_eq!(step(&mut model, fork, &[2]), expected);
    }
}

#[test]
fn emits_are_for_models_with_points_and_inside_of_segments() {
    let emit = |model: &mut SimulatedModel, emits: &[(usize, usize, PointId)]| {
        let id = open(model, 3);
        let mut batch = Batch::default();
        batch.push(id, 0, &[1, 2, 3], true);
        let point = |&(segment, offset, point)| PointEmit { segment, offset, point };
        batch.emits = emits.iter().map(point).collect();
        let result = model.forward(&batch).map(|_| ());
        let len = model.pool.len(id).unwrap();
        assert_eq!(len, if result.is_ok() { 3 } else { 0 });
        model.pool.close(id).unwrap();
        result
    };
    let mut recurrent = model(SimulatedSpec { recurrent: true, ..SimulatedSpec::default() });
    let point = recurrent.pool.take_point().unwrap();
    let stale = recurrent.pool.take_point().unwrap();
    recurrent.pool.release_point(stale).unwrap();
    emit(&mut recurrent, &[(0, 3, point)]).unwrap();
    for (emits, expected) in [
        (vec![(1, 1, point)], "emits from 1 segments, found segment 1"),
        (vec![(0, 0, point)], "an emit after 1 to 3 tokens, found 0"),
        (vec![(0, 4, point)], "an emit after 1 to 3 tokens, found 4"),
        (vec![(0, 1, point), (0, 2, point)], "one emit for each point"),
    ] {
        let error = emit(&mut recurrent, &emits).unwrap_err();
        assert!(
            matches!(error, Error::Batch { .. }) && error.to_string().contains(expected),
            "{error}"
        );
    }
    let error = emit(&mut recurrent, &[(0, 1, stale)]).unwrap_err();
    assert!(matches!(error, Error::State(StateError::NotAPoint(id)) if id == stale), "{error}");
    let mut plain = model(SimulatedSpec::default());
    let error = emit(&mut plain, &[(0, 1, point)]).unwrap_err();
    assert!(matches!(error, Error::Batch { .. }), "{error}");
}

#[test]
fn a_recurrent_model_is_another_one() {
    let fingerprint =
        |recurrent| model(SimulatedSpec { recurrent, ..SimulatedSpec::default() }).info.fingerprint;
    assert_ne!(fingerprint(false), fingerprint(true));
}
