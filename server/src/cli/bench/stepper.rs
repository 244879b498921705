//! Drives one model step by step: feeds prompts in the chunks it takes, decodes rows together.

use sconce_models::{Batch, Error, Logits, Model, SequenceId, StateError};

/// A model and the batch that is used for every step.
pub(super) struct Stepper {
    model: Box<dyn Model>,
    batch: Batch,
}

impl Stepper {
    /// Takes over `model`.
    pub(super) fn new(model: Box<dyn Model>) -> Self {
        Self { model, batch: Batch::default() }
    }

    /// The model.
    pub(super) fn model(&self) -> &dyn Model {
        self.model.as_ref()
    }

    /// Opens `count` empty sequences.
    ///
    /// # Errors
    /// More sequences than the model's pool has.
    pub(super) fn open(&mut self, count: usize) -> Result<Vec<SequenceId>, StateError> {
        (0..count).map(|_| self.model.state_mut().open()).collect()
    }

    /// Closes sequences.
    ///
    /// # Errors
    /// One that is not open.
    pub(super) fn close(&mut self, sequences: &[SequenceId]) -> Result<(), StateError> {
        sequences.iter().try_for_each(|id| self.model.state_mut().close(*id))
    }

    /// Evaluates `tokens` after what `sequence` holds, in steps of at most `chunk`, and of what
    /// the model takes.
    /// Logits are computed for the last token alone, as for a prompt.
    ///
    /// # Errors
    /// A pool without room, or an operator that failed.
    pub(super) fn prefill(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        chunk: usize,
    ) -> Result<(), Error> {
        let mut position = self.model.state().len(sequence)?;
        self.model.state_mut().reserve(sequence, tokens.len())?;
        let chunk = chunk.clamp(1, self.model.step_tokens_max());
        let last = tokens.len().div_ceil(chunk).saturating_sub(1);
        for (index, tokens) in tokens.chunks(chunk).enumerate() {
            self.batch.clear();
            self.batch.push(sequence, position, tokens, index == last);
            self.model.forward(&self.batch)?;
            position += tokens.len();
        }
        Ok(())
    }

    /// Evaluates one token for each sequence in one step; a row of logits for each.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub(super) fn decode(
        &mut self,
        sequences: &[SequenceId],
        tokens: &[u32],
    ) -> Result<Logits<'_>, Error> {
        self.batch.clear();
        for (&sequence, token) in sequences.iter().zip(tokens) {
            let position = self.model.state().len(sequence)?;
            self.model.state_mut().reserve(sequence, 1)?;
            self.batch.push(sequence, position, std::slice::from_ref(token), true);
        }
        self.model.forward(&self.batch)
    }
}

/// Token ids below `vocab_size` that look random and are the same in every run.
pub(super) fn random_tokens(count: usize, vocab_size: usize) -> Vec<u32> {
    // Knuth's MMIX generator; its high bits are good enough to spread over a vocabulary.
    let mut state = 0x5eed_u64;
    let vocab_size = vocab_size.max(1) as u64;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab_size) as u32
        })
        .collect()
}
