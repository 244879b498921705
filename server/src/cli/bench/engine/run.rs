//! Runs cases and takes their time. Every repetition runs all of them in turn, so that a machine
//! that slows down meanwhile slows all of them alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_bench::Pool;
use sconce_models::{Error, SequenceId, StepShape, StepWork, TokenWork};

use super::plan::Case;
use crate::cli::bench::machine::Threads;
use crate::cli::bench::stepper::{Stepper, random_tokens};

/// A model, and the tokens that its sequences are made of.
pub(super) struct Bench {
    stepper: Stepper,
    /// Sequence `i` reads from the token `i` on, so that each has others.
    tokens: Vec<u32>,
}

/// How cases are run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) cases: &'a [Case],
    pub(super) repetitions: usize,
    /// Tokens of the run of each case that is not counted; none if 0.
    pub(super) warm_up: usize,
}

impl Bench {
    /// Cases of a model, the largest of which are of `context` tokens and `streams` sequences.
    pub(super) fn new(stepper: Stepper, context: usize, streams: usize) -> Self {
        let vocab_size = stepper.model().info().vocab_size;
        Self { tokens: random_tokens(context + streams, vocab_size), stepper }
    }

    /// What is measured.
    pub(super) fn stepper(&self) -> &Stepper {
        &self.stepper
    }

    /// Times of each case, in the order of the repetitions.
    ///
    /// # Errors
    /// A step that failed.
    pub(super) fn measure(
        &mut self,
        plan: Plan<'_>,
        threads: &[Threads],
    ) -> Result<Vec<Vec<Duration>>, Error> {
        // Weights are paged in and threads started by the first run, which nobody waits for in
        // service.
        if plan.warm_up > 0 {
            for case in plan.cases {
                self.time(case.warm_up(plan.warm_up), threads)?;
            }
        }
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); plan.cases.len()];
        for _ in 0..plan.repetitions {
            for (case, times) in plan.cases.iter().zip(&mut times) {
                times.push(self.time(*case, threads)?);
            }
        }
        Ok(times)
    }

    /// Time of one run of `case` on its threads, from sequences that are at its depth already. They
    /// are brought there anew each time, since state that is recurrent cannot be rewound.
    fn time(&mut self, case: Case, threads: &[Threads]) -> Result<Duration, Error> {
        let pool = threads.iter().find(|threads| threads.count == case.threads);
        let pool = Arc::clone(&pool.expect("cases are made from these threads").pool);
        Pool::with(&pool, || {
            let sequences = self.stepper.open(case.streams)?;
            self.prefill(&sequences, 0, case.depth, case.step_tokens)?;
            let start = Instant::now();
            self.prefill(&sequences, case.depth, case.prompt, case.step_tokens)?;
            self.decode(&sequences, case.depth + case.prompt, case.generate)?;
            let time = start.elapsed();
            self.stepper.close(&sequences)?;
            Ok(time)
        })
    }

    /// Advances one sequence after another by the same number of tokens.
    fn prefill(
        &mut self,
        sequences: &[SequenceId],
        position: usize,
        len: usize,
        chunk: usize,
    ) -> Result<(), Error> {
        for (index, &sequence) in sequences.iter().enumerate() {
            let tokens = &self.tokens[index + position..][..len];
            self.stepper.prefill(sequence, tokens, chunk)?;
        }
        Ok(())
    }

    /// Advances all sequences together, token by token.
    fn decode(
        &mut self,
        sequences: &[SequenceId],
        position: usize,
        len: usize,
    ) -> Result<(), Error> {
        for position in position..position + len {
            let tokens = &self.tokens[position..][..sequences.len()];
            self.stepper.decode(sequences, tokens)?;
        }
        Ok(())
    }
}

/// What a case costs at least: the work of all its steps.
pub(super) fn work_of(case: &Case, work: &TokenWork) -> StepWork {
    let mut total = StepWork::default();
    let prompt = case.prompt;
    for start in (0..prompt).step_by(case.step_tokens) {
        let len = case.step_tokens.min(prompt - start);
        let first_position = case.depth + start;
        let logits = start + len == prompt;
        let step = work.step(StepShape { sequences: 1, first_position, len, logits });
        for _ in 0..case.streams {
            total = total.and(step);
        }
    }
    for token in 0..case.generate {
        let first_position = case.depth + prompt + token;
        let (sequences, len, logits) = (case.streams, 1, true);
        total = total.and(work.step(StepShape { sequences, first_position, len, logits }));
    }
    total
}
