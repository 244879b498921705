//! A row's logits do not depend on what else is in the batch, nor on how its prompt was cut into
//! steps: compared bit by bit, for dense and quantized weights in both precisions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/stepping.rs"]
mod stepping;

use std::collections::BTreeMap;

use sconce_models::{Batch, Model, Precision, SequenceId};

use stepping::{Random, argmax, feed, fixture, load, options, quantized_llama, smollm2};

/// Bits of the logits after each position that was asked for.
type Bits = BTreeMap<usize, Vec<u32>>;

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn prompt(len: usize, vocabulary: u32, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(vocabulary)).collect()
}

/// Feeds `tokens` in steps of the given lengths, in turn, and keeps the logits after each.
fn in_steps(model: &mut dyn Model, tokens: &[u32], lengths: &[usize]) -> Bits {
    let id = model.state_mut().open().unwrap();
    let mut found = Bits::new();
    let mut at = 0;
    for len in lengths.iter().cycle() {
        let end = tokens.len().min(at + len);
        let logits = feed(model, id, &tokens[at..end]);
        found.insert(end - 1, bits(&logits));
        at = end;
        if at == tokens.len() {
            break;
        }
    }
    model.state_mut().close(id).unwrap();
    found
}

/// Feeds `tokens` in steps that each hold segments of seven other sequences too, before and after.
fn among_others(model: &mut dyn Model, tokens: &[u32], vocabulary: u32) -> Bits {
    const OTHERS: usize = 7;
    let id = model.state_mut().open().unwrap();
    let others: Vec<SequenceId> = (0..OTHERS).map(|_| model.state_mut().open().unwrap()).collect();
    let mut random = Random(99);
    let mut found = Bits::new();
    let mut at = 0;
    for len in [5, 1, 30, 1, 1, 64].into_iter().cycle() {
        let end = tokens.len().min(at + len);
        let mut batch = Batch::default();
        let mut row = 0;
        for (index, other) in others.iter().enumerate() {
            if index == OTHERS / 2 {
                model.state_mut().reserve(id, end - at).unwrap();
                batch.push(id, at, &tokens[at..end], true);
            }
            let wants_logits = random.below(2) == 0;
            row += usize::from(wants_logits && index < OTHERS / 2);
            let piece =
                prompt(1 + random.below(9) as usize, vocabulary, u64::from(random.below(1000)));
            let first = model.state().len(*other).unwrap();
            model.state_mut().reserve(*other, piece.len()).unwrap();
            batch.push(*other, first, &piece, wants_logits);
        }
        found.insert(end - 1, bits(model.forward(&batch).unwrap().row(row).unwrap()));
        at = end;
        if at == tokens.len() {
            break;
        }
    }
    for id in others.into_iter().chain([id]) {
        model.state_mut().close(id).unwrap();
    }
    found
}

/// Every way to feed a prompt of `len` tokens gives the same bits.
fn assert_invariant(path: &str, precision: Precision, len: usize) {
    let mut model = load(path, &options(precision));
    let model = model.as_mut();
    let vocabulary = model.info().vocab_size as u32;
    let tokens = prompt(len, vocabulary, 1);
    let alone = in_steps(model, &tokens, &[1]);
    let whole = in_steps(model, &tokens, &[len]);
    let odd = in_steps(model, &tokens, &[3, 7, 1, 61, 13]);
    let mixed = among_others(model, &tokens, vocabulary);
    let [sevens, pages] = [7, 64].map(|len| in_steps(model, &tokens, &[len]));
    for (way, found) in [
        ("whole", whole),
        ("in sevens", sevens),
        ("page by page", pages),
        ("odd chunks", odd),
        ("among others", mixed),
    ] {
        for (position, bits) in found {
            assert!(alone[&position] == bits, "{path}, {precision:?}, {way}: position {position}");
        }
    }
    let distinct: std::collections::BTreeSet<_> = alone.values().collect();
    assert!(distinct.len() > len / 2, "the logits hardly depend on the prompt");
    model.state().check_invariants().unwrap();
    assert_eq!(model.state().pages_used(), 0);
}

fn quantized_file() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, quantized_llama()).unwrap();
    let path = path.to_str().unwrap().to_string();
    (folder, path)
}

#[test]
fn a_dense_model_answers_alike_alone_and_in_any_batch() {
    for precision in Precision::ALL {
        assert_invariant(&fixture("llama_bf16"), precision, 60);
    }
}

#[test]
fn a_quantized_model_answers_alike_alone_and_in_any_batch() {
    let (_folder, path) = quantized_file();
    for precision in Precision::ALL {
        assert_invariant(&path, precision, 200);
    }
}

#[test]
fn norms_on_heads_and_windows_answer_alike_alone_and_in_any_batch() {
    for name in ["qwen3_f32", "qwen3_mlx_6bit", "gemma3_f32", "gemma3_mlx_4bit"] {
        for precision in Precision::ALL {
            assert_invariant(&fixture(name), precision, 150);
        }
    }
}

#[test]
fn a_hybrid_model_answers_alike_alone_and_in_any_batch() {
    for name in ["qwen3_next_f32", "qwen3_5_hub", "qwen3_5_moe_f32", "qwen3_next_mlx_4bit"] {
        for precision in Precision::ALL {
            assert_invariant(&fixture(name), precision, 150);
        }
    }
}

#[test]
fn a_model_with_experts_answers_alike_alone_and_in_any_batch() {
    for name in ["qwen3_moe_bf16", "qwen3_moe_mlx_mixed", "qwen3_moe_mlx_nvfp4"] {
        for precision in Precision::ALL {
            // The prompt as a whole is more rows than experts are computed for at a time.
            assert_invariant(&fixture(name), precision, 300);
        }
    }
}

#[test]
fn a_fork_of_a_hybrid_goes_on_as_the_original_does_and_apart_from_it() {
    let mut model = load(&fixture("qwen3_5_f32"), &options(Precision::Exact));
    let model = model.as_mut();
    let tokens = prompt(100, stepping::VOCABULARY, 3);
    let original = model.state_mut().open().unwrap();
    feed(model, original, &tokens[..90]);
    let fork = model.state_mut().fork(original).unwrap();
    feed(model, original, &[1, 2, 3]);
    let from_fork = feed(model, fork, &tokens[90..]);
    assert_eq!(bits(&from_fork), in_steps(model, &tokens, &[100])[&99]);
    model.state_mut().truncate(fork, 0).unwrap();
    assert_eq!(bits(&feed(model, fork, &tokens)), bits(&from_fork));
}

#[test]
fn smollm2_answers_alike_alone_and_in_any_batch() {
    let Some(path) = smollm2() else {
        eprintln!("skipped: no SmolLM2; set SCONCE_SMOLLM2 or put it into .models/");
        return;
    };
    for precision in Precision::ALL {
        assert_invariant(&path, precision, 70);
    }
}

#[test]
fn a_model_with_latents_answers_alike_alone_and_in_any_batch() {
    for name in ["glm4_moe_lite_bf16", "glm4_moe_lite_f16", "glm4_moe_lite_mlx_4bit"] {
        for precision in Precision::ALL {
            // More rows than heads are multiplied for at a time, and more pages than one.
            assert_invariant(&fixture(name), precision, 150);
        }
    }
}

#[test]
fn a_fork_goes_on_as_the_original_does() {
    let (_folder, path) = quantized_file();
    let mut model = load(&path, &options(Precision::Fast));
    let model = model.as_mut();
    let tokens = prompt(100, stepping::VOCABULARY, 3);
    let original = model.state_mut().open().unwrap();
    feed(model, original, &tokens[..90]);
    let fork = model.state_mut().fork(original).unwrap();
    let from_fork = feed(model, fork, &tokens[90..]);
    let from_original = feed(model, original, &tokens[90..]);
    assert_eq!(bits(&from_fork), bits(&from_original));
    assert_eq!(bits(&from_fork), in_steps(model, &tokens, &[100])[&99]);
}

#[test]
fn a_truncated_sequence_goes_on_as_if_it_had_never_been_longer() {
    let (_folder, path) = quantized_file();
    let mut model = load(&path, &options(Precision::Fast));
    let model = model.as_mut();
    let tokens = prompt(100, stepping::VOCABULARY, 4);
    let id = model.state_mut().open().unwrap();
    feed(model, id, &prompt(30, stepping::VOCABULARY, 5));
    model.state_mut().truncate(id, 0).unwrap();
    feed(model, id, &tokens[..80]);
    feed(model, id, &prompt(64, stepping::VOCABULARY, 6));
    model.state_mut().truncate(id, 80).unwrap();
    let again = feed(model, id, &tokens[80..]);
    assert_eq!(bits(&again), in_steps(model, &tokens, &[100])[&99]);
}

#[test]
fn a_step_that_is_refused_advances_nobody() {
    let (_folder, path) = quantized_file();
    let mut model = load(&path, &options(Precision::Fast));
    let model = model.as_mut();
    let tokens = prompt(40, stepping::VOCABULARY, 8);
    let expected = in_steps(model, &tokens, &[40]);
    let (id, other) = (model.state_mut().open().unwrap(), model.state_mut().open().unwrap());
    feed(model, id, &tokens[..20]);
    model.state_mut().reserve(id, 20).unwrap();

    let refuse = |model: &mut dyn Model, batch: &Batch| {
        assert!(model.forward(batch).is_err());
        assert_eq!((model.state().len(id).unwrap(), model.state().len(other).unwrap()), (20, 0));
    };
    let mut batch = Batch::default();
    refuse(model, &batch);
    batch.push(id, 20, &tokens[20..], true);
    batch.push(other, 0, &[1], true);
    refuse(model, &batch);
    model.state_mut().reserve(other, 2).unwrap();
    batch.clear();
    batch.push(other, 0, &[1, stepping::VOCABULARY], true);
    batch.push(id, 20, &tokens[20..], true);
    refuse(model, &batch);
    assert_eq!(bits(&feed(model, id, &tokens[20..])), expected[&39]);
}

#[test]
fn rows_that_nobody_asked_for_have_no_logits() {
    let (_folder, path) = quantized_file();
    let mut model = load(&path, &options(Precision::Exact));
    let ids: Vec<SequenceId> = (0..3).map(|_| model.state_mut().open().unwrap()).collect();
    let mut batch = Batch::default();
    for (index, id) in ids.iter().enumerate() {
        model.state_mut().reserve(*id, 4).unwrap();
        batch.push(*id, 0, &[1, 2, 3, index as u32], index == 1);
    }
    let mut logits = model.forward(&batch).unwrap();
    assert_eq!((logits.rows(), logits.row(0).unwrap().len()), (1, stepping::VOCABULARY as usize));
    let one = argmax(logits.row(0).unwrap());
    let id = model.state_mut().open().unwrap();
    assert_eq!(argmax(&feed(model.as_mut(), id, &[1, 2, 3, 1])), one);
    batch.clear();
    batch.push(ids[0], 4, &[5], false);
    model.state_mut().reserve(ids[0], 1).unwrap();
    assert_eq!(model.forward(&batch).unwrap().rows(), 0);
    assert_eq!(model.state().len(ids[0]).unwrap(), 5);
}

#[test]
fn greedy_smollm2_knows_the_capital_of_france() {
    let Some(path) = smollm2() else {
        eprintln!("skipped: no SmolLM2; set SCONCE_SMOLLM2 or put it into .models/");
        return;
    };
    // "The capital of France is", and " Paris" with a full stop.
    let (question, answer) = ([504, 3575, 282, 4649, 314], [7042, 30]);
    for precision in Precision::ALL {
        let mut model = load(&path, &options(precision));
        let id = model.state_mut().open().unwrap();
        let first = argmax(&feed(model.as_mut(), id, &question));
        let second = argmax(&feed(model.as_mut(), id, &[first]));
        assert_eq!([first, second], answer, "{precision:?}");
    }
}
