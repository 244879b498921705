//! A sequence that starts from pages and points which others hold goes on as one that computed all of
//! its prompt: compared bit by bit, for every tiny checkpoint, from slots, from bytes, from pages that
//! were elsewhere in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use sconce_models::{
    Batch, Error, Model, PointEmit, PointId, Precision, Prefix, PrefixPoint, SequenceId,
};

use stepping::{Random, feed, fixture, load, options};

/// Tokens of a prompt, where the context has room for them: two whole pages and a part.
const PROMPT: usize = 150;

/// Where sequences resume: at the borders of pages, beside them, and at both ends.
const OFFSETS: [usize; 9] = [1, 2, 37, 63, 64, 65, 100, 128, 149];

fn prompt(model: &dyn Model, seed: u64) -> Vec<u32> {
    let info = model.info();
    let mut random = Random(seed);
    let len = PROMPT.min(info.context_length);
    (0..len).map(|_| random.below(info.vocab_size as u32)).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn open(model: &mut dyn Model) -> SequenceId {
    model.state_mut().open().unwrap()
}

fn close(model: &mut dyn Model, id: SequenceId) {
    model.state_mut().close(id).unwrap();
}

fn is_recurrent(model: &dyn Model) -> bool {
    model.state().layout().recurrent.is_some()
}

/// Logits after the last of `tokens`, which a new sequence computes all of.
fn cold(model: &mut dyn Model, tokens: &[u32]) -> Vec<u32> {
    let id = open(model);
    let logits = bits(&feed(model, id, tokens));
    close(model, id);
    logits
}

/// What is held of a prompt: pages of all of it, and where sequences resume a point, if the model has
/// points.
struct Held {
    pages: Vec<u32>,
    points: Vec<(usize, Option<PointId>)>,
}

/// Computes `tokens` in one step that emits a point at every offset.
fn hold(model: &mut dyn Model, tokens: &[u32]) -> Held {
    let id = open(model);
    model.state_mut().reserve(id, tokens.len()).unwrap();
    let mut batch = Batch::default();
    batch.push(id, 0, tokens, false);
    let mut points = Vec::new();
    for offset in OFFSETS.into_iter().filter(|offset| *offset < tokens.len()) {
        let point = is_recurrent(model).then(|| model.state_mut().take_point().unwrap());
        batch.emits.extend(point.map(|point| PointEmit { segment: 0, offset, point }));
        points.push((offset, point));
    }
    model.forward(&batch).unwrap();
    let pages = model.state().page_table(id).unwrap().to_vec();
    model.state_mut().share_pages(&pages).unwrap();
    close(model, id);
    Held { pages, points }
}

/// The state of a prefix, copied out of the pool.
struct Stored {
    len: usize,
    pages: Vec<Vec<u8>>,
    point: Option<Vec<u8>>,
}

fn store(model: &dyn Model, pages: &[u32], len: usize, point: Option<PointId>) -> Stored {
    let pool = model.state();
    let page_tokens = pool.layout().page_tokens;
    let page = |(index, page): (usize, &u32)| {
        let mut bytes = Vec::new();
        pool.read_page(*page, len - index * page_tokens, &mut bytes).unwrap();
        bytes
    };
    let point = point.map(|point| {
        let mut bytes = vec![7; pool.layout().bytes_per_sequence() as usize];
        pool.read_point(point, &mut bytes).unwrap();
        bytes
    });
    Stored { len, pages: pages.iter().enumerate().map(page).collect(), point }
}

/// Brings a prefix back into other pages and opens a sequence with them.
fn restore(model: &mut dyn Model, stored: &Stored) -> SequenceId {
    let pool = model.state_mut();
    let pages = pool.take_pages(stored.pages.len()).unwrap();
    for (page, bytes) in pages.iter().zip(&stored.pages) {
        pool.write_page(*page, bytes).unwrap();
    }
    let point = stored.point.as_deref().map_or(PrefixPoint::None, PrefixPoint::Bytes);
    let id = pool.open_at(Prefix { len: stored.len, pages: &pages, point }).unwrap();
    pool.release_pages(&pages).unwrap();
    id
}

/// Every offset of a prompt gives the bits of a cold run, from wherever its state comes.
fn assert_resumable(path: &str, precision: Precision) {
    let mut model = load(path, &options(precision));
    let model = model.as_mut();
    let tokens = prompt(model, 1);
    let expected = cold(model, &tokens);
    let held = hold(model, &tokens);
    let page_tokens = model.state().layout().page_tokens;
    let mut stored = Vec::new();
    for &(len, point) in &held.points {
        let pages = &held.pages[..len.div_ceil(page_tokens)];
        let from = point.map_or(PrefixPoint::None, PrefixPoint::Slot);
        let id = model.state_mut().open_at(Prefix { len, pages, point: from }).unwrap();
        let logits = bits(&feed(model, id, &tokens[len..]));
        assert!(logits == expected, "{path}, {precision:?}: from {len} tokens in the pool");
        close(model, id);
        stored.push(store(model, pages, len, point));
    }
    model.state_mut().release_pages(&held.pages).unwrap();
    for point in held.points.into_iter().filter_map(|(_, point)| point) {
        model.state_mut().release_point(point).unwrap();
    }
    // Others leave their state in the pages and slots that come next.
    let others: Vec<_> = (2..6).map(|seed| prompt(model, seed)).collect();
    let ids: Vec<_> = others.iter().map(|_| open(model)).collect();
    for (id, other) in ids.iter().zip(&others) {
        feed(model, *id, other);
    }
    ids.into_iter().for_each(|id| close(model, id));
    for stored in stored {
        let id = restore(model, &stored);
        let len = stored.len;
        let logits = bits(&feed(model, id, &tokens[len..]));
        assert!(logits == expected, "{path}, {precision:?}: from {len} tokens outside the pool");
        close(model, id);
    }
    let pool = model.state();
    assert_eq!((pool.pages_used(), pool.points_used(), pool.sequences()), (0, 0, 0));
    pool.check_invariants().unwrap();
}

fn assert_all_resumable(architecture: &str) {
    let mut found = 0;
    for fixture in fixtures::all().iter().filter(|f| f.architecture == architecture) {
        assert_resumable(fixture.path.to_str().unwrap(), Precision::Fast);
        found += 1;
    }
    assert!(found > 0, "no fixture of {architecture}");
}

/// A test for each architecture, and the list of them.
macro_rules! resumed {
    ($($test:ident: $architecture:literal,)*) => {
        $(#[test]
        fn $test() {
            assert_all_resumable($architecture);
        })*

        const RESUMED: &[&str] = &[$($architecture),*];
    };
}

resumed! {
    llama_resumes_with_the_bits_of_a_cold_run: "llama",
    qwen3_resumes_with_the_bits_of_a_cold_run: "qwen3",
    qwen3_moe_resumes_with_the_bits_of_a_cold_run: "qwen3_moe",
    gemma3_resumes_with_the_bits_of_a_cold_run: "gemma3",
    glm4_moe_lite_resumes_with_the_bits_of_a_cold_run: "glm4_moe_lite",
    qwen3_next_resumes_with_the_bits_of_a_cold_run: "qwen3_next",
    qwen3_5_resumes_with_the_bits_of_a_cold_run: "qwen3_5",
    qwen3_5_moe_resumes_with_the_bits_of_a_cold_run: "qwen3_5_moe",
}

#[test]
fn every_architecture_is_resumed() {
    let known: Vec<_> = fixtures::ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    assert_eq!(RESUMED, known);
}

#[test]
fn exact_activations_resume_with_the_bits_of_a_cold_run() {
    for name in ["gguf_llama_q4_0.gguf", "gemma3_mlx_4bit", "qwen3_next_mlx_4bit"] {
        assert_resumable(&fixture(name), Precision::Exact);
    }
}

/// The recurrent state after so many tokens, by a sequence that stops there.
fn stopped(model: &mut dyn Model, tokens: &[u32]) -> Vec<u8> {
    let id = open(model);
    feed(model, id, tokens);
    let point = model.state_mut().close_to_point(id).unwrap();
    let state = store(model, &[], 0, Some(point)).point.unwrap();
    model.state_mut().release_point(point).unwrap();
    state
}

/// Who else is in the steps that emit.
struct Others {
    ids: Vec<SequenceId>,
    random: Random,
}

impl Others {
    /// Appends a short segment of each to the batch; the first also emits, to `point`.
    fn push(&mut self, model: &mut dyn Model, batch: &mut Batch, point: PointId) {
        let vocabulary = model.info().vocab_size as u32;
        for (index, &id) in self.ids.iter().enumerate() {
            let len = 1 + self.random.below(9) as usize;
            let tokens: Vec<u32> = (0..len).map(|_| self.random.below(vocabulary)).collect();
            let first = model.state().len(id).unwrap();
            model.state_mut().reserve(id, len).unwrap();
            if index == 0 {
                let segment = batch.segments.len();
                batch.emits.push(PointEmit { segment, offset: len, point });
            }
            batch.push(id, first, &tokens, false);
        }
    }
}

/// Feeds `tokens` in steps of the given lengths, in turn, and returns the states emitted at `OFFSETS`
/// and the logits after the last token.
fn emitted(
    model: &mut dyn Model,
    tokens: &[u32],
    lengths: &[usize],
    others: usize,
) -> (Vec<Vec<u8>>, Vec<u32>) {
    let id = open(model);
    let ids: Vec<_> = (0..others).map(|_| open(model)).collect();
    let (before, after) = ids.split_at(others / 2);
    let mut sides = [before, after].map(|ids| Others { ids: ids.to_vec(), random: Random(9) });
    let foreign = [(); 2].map(|()| model.state_mut().take_point().unwrap());
    let points = OFFSETS.map(|_| model.state_mut().take_point().unwrap());
    let (mut at, mut logits) = (0, Vec::new());
    for len in lengths.iter().cycle() {
        let end = tokens.len().min(at + len);
        let mut batch = Batch::default();
        sides[0].push(model, &mut batch, foreign[0]);
        let segment = batch.segments.len();
        model.state_mut().reserve(id, end - at).unwrap();
        batch.push(id, at, &tokens[at..end], true);
        // Backwards: emits come in any order.
        for (&offset, &point) in OFFSETS.iter().zip(&points).rev() {
            if (at + 1..=end).contains(&offset) {
                batch.emits.push(PointEmit { segment, offset: offset - at, point });
            }
        }
        sides[1].push(model, &mut batch, foreign[1]);
        logits = bits(model.forward(&batch).unwrap().row(0).unwrap());
        at = end;
        if at == tokens.len() {
            break;
        }
    }
    let states = points.map(|point| store(model, &[], 0, Some(point)).point.unwrap());
    for point in points.into_iter().chain(foreign) {
        model.state_mut().release_point(point).unwrap();
    }
    ids.into_iter().chain([id]).for_each(|id| close(model, id));
    (states.to_vec(), logits)
}

fn assert_emits(architecture: &str) {
    for fixture in fixtures::all().iter().filter(|f| f.architecture == architecture) {
        let mut model = load(fixture.path.to_str().unwrap(), &options(Precision::Fast));
        let model = model.as_mut();
        assert!(is_recurrent(model), "{}", fixture.name);
        let tokens = prompt(model, 1);
        let expected: Vec<_> =
            OFFSETS.iter().map(|offset| stopped(model, &tokens[..*offset])).collect();
        let logits = cold(model, &tokens);
        let (whole, odd) = (&[PROMPT][..], &[3, 7, 1, 61, 13][..]);
        for (lengths, others) in [(whole, 0), (whole, 7), (odd, 0), (odd, 7), (&[64][..], 7)] {
            let found = emitted(model, &tokens, lengths, others);
            for (offset, pair) in OFFSETS.iter().zip(expected.iter().zip(&found.0)) {
                let name = &fixture.name;
                assert!(pair.0 == pair.1, "{name}: {lengths:?}, {others} others: at {offset}");
            }
            assert!(found.1 == logits, "{}: emits change the logits", fixture.name);
        }
        model.state().check_invariants().unwrap();
    }
}

#[test]
fn states_that_qwen3_next_emits_are_those_of_stopping_there() {
    assert_emits("qwen3_next");
}

#[test]
fn states_that_qwen3_5_emits_are_those_of_stopping_there() {
    assert_emits("qwen3_5");
}

#[test]
fn states_that_qwen3_5_moe_emits_are_those_of_stopping_there() {
    assert_emits("qwen3_5_moe");
}

#[test]
fn a_model_without_recurrent_layers_emits_nothing() {
    let mut hybrid = load(&fixture("qwen3_5_f32"), &options(Precision::Fast));
    let point = hybrid.state_mut().take_point().unwrap();
    let mut model = load(&fixture("llama_f32"), &options(Precision::Fast));
    assert_eq!(model.state().points_max(), 0);
    let id = open(model.as_mut());
    model.state_mut().reserve(id, 2).unwrap();
    let mut batch = Batch::default();
    batch.push(id, 0, &[1, 2], true);
    batch.emits.push(PointEmit { segment: 0, offset: 1, point });
    let error = model.forward(&batch).unwrap_err();
    assert!(matches!(error, Error::Batch { .. }), "{error}");
    assert_eq!(model.state().len(id).unwrap(), 0);
}
