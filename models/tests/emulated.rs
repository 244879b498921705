//! Whole models on the kernels of GPUs, emulated: the golden answers of `golden_models.rs`, for an
//! unquantized and a quantized checkpoint of each architecture, exactly and in the default precision.
//! Operators have `parity.rs` of the kernels; here is what lies between them.

#![cfg(feature = "emulate")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "how far a bound is from what was measured")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/rounded.rs"]
mod rounded;
#[path = "support/stepping.rs"]
mod stepping;

use sconce_kernels::draw_tokens::reference::{self as draw_tokens, Top};
use sconce_kernels::gpu::{HostBuffer, Language, emulate, with_wgmma};
use sconce_kernels::top_logits::{TOP_MAX, reference as top_logits};
use sconce_models::{
    Batch, Draw, Drawn, LoadOptions, Model, Precision, Prefix, PrefixPoint, RowUse, SequenceId,
};

use fixtures::Fixture;
use rounded::{CHOSEN, Prompts, Runner};
use stepping::{feed, fixture, load, options};

/// Largest difference of a log-probability from that of the reference, both in f32: sums are in other
/// orders than on the CPU, and in longer chains.
const LOGPROB_BOUND: f64 = 1e-3;
/// Tokens of a step: emulated threads are slow, and their number grows with this.
const STEP_TOKENS_MAX: usize = 512;

/// Steps a prompt of a fixture beside its golden answer, in both languages.
fn compare(name: &str, prompt: usize) {
    let all = fixtures::all();
    let fixture = all.iter().find(|fixture| fixture.name == name).unwrap();
    let prompt = &fixture.golden["prompts"][prompt];
    let options = LoadOptions { step_tokens_max: STEP_TOKENS_MAX, ..options(Precision::Exact) };
    for language in [Language::Cuda, Language::Metal] {
        let worst = emulate(language, || {
            let mut model = load(fixture.path.to_str().unwrap(), &options);
            golden::follow(model.as_mut(), prompt, &format!("{name}, {language:?}"))
        });
        eprintln!("{name}, {language:?}: logprobs within {worst:.1e} of {LOGPROB_BOUND:.0e}");
        assert!(worst <= LOGPROB_BOUND, "{name}, {language:?}: logprobs differ by {worst}");
    }
}

macro_rules! emulated {
    ($($test:ident: $($fixture:literal),+;)*) => {
        $(#[test]
        fn $test() {
            $(compare($fixture, 0);)+
        })*
    };
}

emulated! {
    llama_answers_as_on_the_cpu: "llama_f32", "gguf_llama_q4_0.gguf";
    qwen3_answers_as_on_the_cpu: "gguf_qwen3_f32.gguf", "gguf_qwen3_k_quants.gguf";
    qwen3_moe_answers_as_on_the_cpu: "gguf_qwen3moe_f32.gguf", "gguf_qwen3moe_mxfp4.gguf";
    gemma3_answers_as_on_the_cpu: "gemma3_f32", "gemma3_mlx_4bit";
    glm4_moe_lite_answers_as_on_the_cpu: "gguf_deepseek2_f32.gguf", "gguf_deepseek2_q4_1.gguf";
    qwen3_next_answers_as_on_the_cpu: "qwen3_next_f32", "qwen3_next_mlx_4bit";
    qwen3_5_answers_as_on_the_cpu: "gguf_qwen35_f32.gguf", "gguf_qwen35_bf16.gguf";
    qwen3_5_moe_answers_as_on_the_cpu: "gguf_qwen35moe_f32.gguf", "gguf_qwen35moe_iq4_nl.gguf";
}

#[test]
fn a_prompt_longer_than_a_chunk_of_the_delta_rule_is_answered_as_on_the_cpu() {
    compare("qwen3_next_f32", 1);
}

/// Holds a fixture to its bounds in the default precision; by `wgmma` where that is asked for. Returns
/// the mean difference of a log-probability.
fn hold(fixture: &Fixture, which: Prompts, language: Language, wgmma: bool) -> f64 {
    let runner = match language {
        Language::Cuda => Runner::Cuda,
        Language::Metal => Runner::Metal,
    };
    let options = LoadOptions { step_tokens_max: STEP_TOKENS_MAX, ..options(Precision::default()) };
    with_wgmma(wgmma, || emulate(language, || rounded::hold(fixture, which, runner, options)))
}

/// A long prompt of the fixture of an architecture, in both languages.
fn hold_chosen(architecture: &str) {
    let all = fixtures::all();
    let mut chosen = all.iter().filter(|fixture| CHOSEN.contains(&&*fixture.name));
    let fixture = chosen.find(|fixture| fixture.architecture == architecture).unwrap();
    for language in [Language::Cuda, Language::Metal] {
        hold(fixture, Prompts::FirstLong, language, false);
    }
}

macro_rules! rounded {
    ($($test:ident: $architecture:literal;)*) => {
        $(#[test]
        fn $test() {
            hold_chosen($architecture);
        })*

        const ROUNDED: &[&str] = &[$($architecture),*];
    };
}

rounded! {
    llama_rounded_is_near_its_reference: "llama";
    qwen3_rounded_is_near_its_reference: "qwen3";
    qwen3_moe_rounded_is_near_its_reference: "qwen3_moe";
    gemma3_rounded_is_near_its_reference: "gemma3";
    glm4_moe_lite_rounded_is_near_its_reference: "glm4_moe_lite";
    qwen3_next_rounded_is_near_its_reference: "qwen3_next";
    qwen3_5_rounded_is_near_its_reference: "qwen3_5";
    qwen3_5_moe_rounded_is_near_its_reference: "qwen3_5_moe";
}

#[test]
fn each_architecture_is_rounded() {
    let all: Vec<_> = fixtures::ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    assert_eq!(ROUNDED, all);
}

/// Projections and experts.
#[test]
fn a_prompt_multiplied_by_wgmma_is_near_its_reference() {
    let all = fixtures::all();
    let fixture = all.iter().find(|fixture| fixture.name == "gguf_qwen3moe_mxfp4.gguf").unwrap();
    let by = |wgmma| hold(fixture, Prompts::FirstLong, Language::Cuda, wgmma);
    assert_ne!(by(true), by(false), "wgmma was not what ran");
}

/// Every prompt of every fixture, from which the bounds were taken.
fn hold_all(language: Language, wgmma: bool) {
    for fixture in fixtures::all() {
        hold(&fixture, Prompts::All, language, wgmma);
    }
}

#[test]
#[ignore = "minutes; bounds are taken from it"]
fn every_fixture_rounded_is_near_its_reference_on_cuda() {
    hold_all(Language::Cuda, false);
}

#[test]
#[ignore = "minutes; bounds are taken from it"]
fn every_fixture_rounded_is_near_its_reference_on_metal() {
    hold_all(Language::Metal, false);
}

#[test]
#[ignore = "minutes; bounds are taken from it"]
fn every_fixture_rounded_is_near_its_reference_by_wgmma() {
    hold_all(Language::Cuda, true);
}

/// A step of a decoded token and a prompt has both forms of a gated delta layer.
#[test]
fn a_token_decoded_beside_a_prompt_is_answered_as_alone() {
    let prompts: [&[u32]; 2] = [&[3, 1, 4, 1, 5, 9, 2], &[6, 5, 3, 5, 8]];
    for language in [Language::Cuda, Language::Metal] {
        emulate(language, || {
            let mut model = load(&stepping::fixture("qwen3_next_f32"), &options(Precision::Exact));
            let model = model.as_mut();
            let [first, second] = [(); 2].map(|()| model.state_mut().open().unwrap());
            stepping::feed(model, first, prompts[0]);
            let mut batch = Batch::default();
            for (id, tokens) in [(first, &[7][..]), (second, prompts[1])] {
                let at = model.state().len(id).unwrap();
                model.state_mut().reserve(id, tokens.len()).unwrap();
                batch.push(id, at, tokens, true);
            }
            let mut logits = model.forward(&batch).unwrap();
            let found = [0, 1].map(|row| golden::logprobs(logits.row(row).unwrap()));
            let alone = [(); 2].map(|()| model.state_mut().open().unwrap());
            stepping::feed(model, alone[0], prompts[0]);
            let expected = [(alone[0], &[7][..]), (alone[1], prompts[1])]
                .map(|(id, tokens)| golden::logprobs(&stepping::feed(model, id, tokens)));
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() <= LOGPROB_BOUND, "{found} for {expected}");
            }
        });
    }
}
/// Feeds a prompt, has its state leave the pool after so many tokens and come back to other pages and
/// another slot, and compares what follows with a run that was left alone.
fn assert_resumes(name: &str, len: usize) {
    let path = fixture(name);
    let tokens: Vec<u32> = (0..len as u32 + 3).map(|index| 3 + index * 7 % 50).collect();
    for language in [Language::Cuda, Language::Metal] {
        emulate(language, || {
            let options = LoadOptions { step_tokens_max: 128, ..options(Precision::Fast) };
            let mut model = load(&path, &options);
            let model = model.as_mut();
            let whole = model.state_mut().open().unwrap();
            feed(model, whole, &tokens[..len]);
            let table = model.state().page_table(whole).unwrap().to_vec();
            let (pages, point) = page_out(model, whole, &table, len);
            let expected = feed(model, whole, &tokens[len..]);
            let pool = model.state_mut();
            let slices: Vec<_> = pages.iter().map(|page| &**page).collect();
            let others = pool.take_pages(pages.len()).unwrap();
            assert!(others.iter().all(|page| !table.contains(page)));
            pool.write_pages(&others, &slices).unwrap();
            let point = point.as_deref().map_or(PrefixPoint::None, PrefixPoint::Bytes);
            let again = pool.open_at(Prefix { len, pages: &others, point }).unwrap();
            pool.release_pages(&others).unwrap();
            let found = feed(model, again, &tokens[len..]);
            let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&found) == bits(&expected), "{name}, {language:?}");
            model.state().check_invariants().unwrap();
        });
    }
}

/// Copies of the pages of an open sequence, and of its recurrent state if it has any.
fn page_out(
    model: &mut dyn Model,
    id: SequenceId,
    table: &[u32],
    len: usize,
) -> (Vec<HostBuffer>, Option<HostBuffer>) {
    let pool = model.state_mut();
    let layout = pool.layout().clone();
    let tokens = |(index, page): (usize, &u32)| (*page, len - index * layout.page_tokens);
    let wanted: Vec<_> = table.iter().enumerate().map(tokens).collect();
    let size = layout.bytes_per_page() as usize;
    let mut pages: Vec<_> = table.iter().map(|_| pool.host_buffer(size)).collect();
    let mut blocks: Vec<&mut [u8]> = pages.iter_mut().map(|page| &mut **page).collect();
    pool.read_pages(&wanted, &mut blocks).unwrap();
    let point = layout.recurrent.map(|_| {
        let point = pool.save_point(id).unwrap();
        let mut bytes = pool.host_buffer(layout.bytes_per_sequence() as usize);
        pool.read_point(point, &mut bytes).unwrap();
        pool.release_point(point).unwrap();
        bytes
    });
    (pages, point)
}

#[test]
fn a_model_with_attention_alone_resumes_what_was_elsewhere() {
    assert_resumes("llama_f32", 70);
}

#[test]
fn a_model_with_recurrent_layers_resumes_what_was_elsewhere() {
    assert_resumes("qwen3_next_mlx_4bit", 70);
}

/// Only the tokens are copied from the device; then the largest logits, and then a row, where they are
/// asked for.
#[test]
fn tokens_are_drawn_where_the_logits_are() {
    for language in [Language::Cuda, Language::Metal] {
        emulate(language, || {
            let mut model = load(&fixture("qwen3_next_f32"), &options(Precision::Exact));
            let (model, mut batch) = (model.as_mut(), Batch::default());
            let sampled =
                Draw { temperature: 0.8, top_k: 6, top_p: 0.9, min_p: 0.01, uniform: 0.77 };
            let draws = [Some(Draw::GREEDY), None, Some(sampled), Some(Draw::GREEDY)];
            for (index, draw) in draws.into_iter().enumerate() {
                let id = model.state_mut().open().unwrap();
                let prompt = [3, 1, 4, 1, 5 + index as u32];
                model.state_mut().reserve(id, prompt.len()).unwrap();
                batch.push(id, 0, &prompt, true);
                batch.uses.push(RowUse { draw, largest: index });
            }
            let mut logits = model.forward(&batch).unwrap();
            for (index, draw) in draws.into_iter().enumerate() {
                let row = logits.row(index).unwrap().to_vec();
                // Of the row that nobody draws from as many as were asked for.
                let count = draw.map_or(index, |draw| draw.looks_at(TOP_MAX).max(index)).max(1);
                let temperature = draw.map_or(1.0, |draw| draw.temperature);
                let (largest, sums) = top_logits::find(&row, count, temperature);
                let (ids, values): (Vec<u32>, Vec<f32>) = largest.into_iter().unzip();
                let top = Top { values: &values, ids: &ids, sums, vocab: row.len() };
                let expected = draw.map_or(Drawn::Undrawn, |draw| draw_tokens::draw(top, &draw).0);
                assert_eq!(logits.drawn(index), expected, "{language:?}, row {index}");
                let found = logits.top(index).unwrap().unwrap();
                assert_eq!((found.ids, found.values), (&ids[..], &values[..]), "row {index}");
                assert!((found.sums[1] - sums[1]).abs() < 1e-5 * sums[1], "row {index}");
            }
        });
    }
}
