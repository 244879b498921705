//! A step's memory is allocated at load. Once buffers that grow have grown to a shape of steps, another
//! of that shape, decode or prefill, of any architecture and packing, allocates nothing on any thread.
//! With other threads it cannot be said when all have grown, so there one quiet run of many must do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/allocations.rs"]
mod allocations;
#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use std::sync::Arc;

use sconce_kernels::Pool;
use sconce_models::{Batch, Model, ModelInfo, PAGE_TOKENS, Precision, SequenceId};

use allocations::{Allocations, counted, first, watch};
use stepping::{Random, feed, load, options};

/// Sequences of a step, and tokens that each gets: decode alone and together, prefill of a few pages
/// and of more rows than experts take at once.
const SHAPES: &[(usize, usize)] = &[(1, 1), (3, 1), (8, 1), (1, 100), (4, 75)];

/// Steps of a run.
const STEPS: usize = 8;

/// Tokens that sequences have before a run: decode goes past the end of a page in it.
const HISTORY: usize = PAGE_TOKENS - STEPS / 2;

/// Precision, threads, and runs of which one at least must be quiet. What a thread grows, once for a
/// shape, hangs on what it comes to do: on the experts that rows choose and, with other threads, on
/// who is faster.
const WAYS: &[(Precision, usize, usize)] =
    &[(Precision::Fast, 1, 4), (Precision::Exact, 1, 4), (Precision::Fast, 2, 200)];

/// Sequences that all get the same number of tokens in each step.
struct Run<'a> {
    model: &'a mut dyn Model,
    ids: Vec<SequenceId>,
    batch: Batch,
    tokens: Vec<u32>,
    random: Random,
}

impl<'a> Run<'a> {
    fn new(model: &'a mut dyn Model, (sequences, len): (usize, usize)) -> Self {
        let ids = (0..sequences).map(|_| model.state_mut().open().unwrap()).collect();
        let len = len.min(model.info().context_length);
        Self { model, ids, batch: Batch::default(), tokens: vec![0; len], random: Random(1) }
    }

    /// Whether [`STEPS`] steps after a history asked for nothing; if not, what the first that did
    /// asked for, and where.
    fn steps(&mut self) -> Result<(), String> {
        let context = self.model.info().context_length;
        for index in 0..self.ids.len() {
            self.model.state_mut().truncate(self.ids[index], 0).unwrap();
            let history = HISTORY.min(context.saturating_sub(STEPS));
            if self.tokens.len() == 1 && history > 0 {
                feed(self.model, self.ids[index], &vec![1; history]);
            }
        }
        let mut outcome = Ok(());
        for step in 0..STEPS {
            let (found, origin) = self.step();
            if found.count > 0 {
                outcome = outcome.and_then(|()| Err(format!("step {step}: {found:?}\n{origin}")));
            }
        }
        outcome
    }

    /// A step, and what its forward pass asked for.
    fn step(&mut self) -> (Allocations, String) {
        let ModelInfo { vocab_size, context_length, .. } = *self.model.info();
        self.batch.clear();
        for id in &self.ids {
            let state = self.model.state_mut();
            if state.len(*id).unwrap() + self.tokens.len() > context_length {
                state.truncate(*id, 0).unwrap();
            }
            let at = state.len(*id).unwrap();
            state.reserve(*id, self.tokens.len()).unwrap();
            self.tokens.fill_with(|| self.random.below(vocab_size as u32));
            self.batch.push(*id, at, &self.tokens, true);
        }
        watch();
        let forward = || self.model.forward(&self.batch).map(|logits| logits.rows());
        let (rows, found) = counted(forward);
        assert_eq!(rows.unwrap(), self.ids.len());
        (found, first())
    }

    fn close(self) {
        for id in self.ids {
            self.model.state_mut().close(id).unwrap();
        }
    }
}

/// Runs of every shape come to allocate nothing.
fn assert_quiet(name: &str, path: &str) {
    for (precision, threads, runs_max) in WAYS {
        Pool::with(&Arc::new(Pool::new(*threads).unwrap()), || {
            let mut model = load(path, &options(*precision));
            for shape in SHAPES {
                let mut run = Run::new(model.as_mut(), *shape);
                let mut outcome = run.steps();
                for _ in 1..*runs_max {
                    if outcome.is_ok() {
                        break;
                    }
                    outcome = run.steps();
                }
                run.close();
                if let Err(found) = outcome {
                    panic!("{name}, {precision:?}, {threads} threads, {shape:?}, {found}");
                }
            }
        });
    }
}

#[test]
fn a_step_of_a_shape_seen_before_allocates_nothing() {
    let seen: Vec<_> = fixtures::all()
        .into_iter()
        .map(|fixture| {
            assert_quiet(&fixture.name, fixture.path.to_str().unwrap());
            fixture.architecture
        })
        .collect();
    for (architecture, _) in fixtures::ARCHITECTURES {
        assert!(seen.contains(architecture), "{architecture}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quantized.gguf");
    std::fs::write(&path, stepping::quantized_llama()).unwrap();
    assert_quiet("quantized", path.to_str().unwrap());
}
