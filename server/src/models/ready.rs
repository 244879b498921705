//! A model that takes requests, together with its text: prompts to tokens and back, and what of a call
//! depends on the model.

use std::sync::{Arc, Weak};

use sconce_engine::{LoadedModel, Sampling};

use super::text::{EncodedPrompt, ModelText};
use super::worker_failed;
use super::workers::{LARGE, Workers};
use crate::completion::{CompletionCall, Prompt};
use crate::error::CallError;

/// A model that takes requests, with its text.
#[derive(Debug, Clone)]
pub struct ReadyModel {
    pub(super) model: Arc<LoadedModel>,
    pub(super) text: Arc<ModelText>,
    pub(super) workers: Workers,
}

impl ReadyModel {
    /// What was loaded.
    pub fn loaded(&self) -> &LoadedModel {
        &self.model
    }

    /// Tells this load from all others, of the same model too, and keeps nothing of it.
    pub fn load(&self) -> Weak<LoadedModel> {
        Arc::downgrade(&self.model)
    }

    /// What unset sampling fields mean.
    pub fn sampling_defaults(&self) -> &Sampling {
        self.text.sampling_defaults()
    }

    /// Whether conversations can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.text.has_chat_template()
    }

    /// The tokens of a prompt, and where its messages end. Unless `add_special_tokens` says
    /// otherwise, the tokenizer adds its own to a text and not to a conversation.
    ///
    /// # Errors
    /// A model without a chat template, a template that fails, a text that cannot be tokenized.
    pub async fn encode(
        &self,
        prompt: Prompt,
        add_special_tokens: Option<bool>,
    ) -> Result<EncodedPrompt, CallError> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids.into()),
            Prompt::Text(text) => {
                let size = text.len();
                let special = add_special_tokens.unwrap_or(true);
                let work = move |model: &ModelText| model.encode(&text, special, "text");
                self.work(size, work).await.map(EncodedPrompt::from)
            }
            Prompt::Chat(chat) => {
                let special = add_special_tokens.unwrap_or(false);
                // A template can make much of little, so that a small size says nothing.
                let size = chat.content_bytes().max(LARGE);
                self.work(size, move |model| model.encode_chat(chat, special)).await
            }
        }
    }

    /// What each token stands for.
    ///
    /// # Errors
    /// Internal, if the tokenizer does not know its own tokens.
    pub async fn pieces(&self, ids: Vec<u32>) -> Result<(Vec<u32>, Vec<String>), CallError> {
        self.work(ids.len(), move |model| model.pieces(&ids).map(|pieces| (ids, pieces))).await
    }

    /// The text of `ids`.
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub async fn decode(&self, ids: Vec<u32>, skip_special: bool) -> Result<String, CallError> {
        self.work(ids.len(), move |model| model.decode(&ids, skip_special)).await
    }

    /// Whether the model can take a prompt; `field` is the one it came in.
    pub(super) fn check_prompt(&self, prompt: &[u32], field: &str) -> Result<(), CallError> {
        if prompt.is_empty() {
            return Err(CallError::field(field, "expected at least one token, found none"));
        }
        if let Some(i) = self.outside(prompt) {
            return Err(self.unknown(format!("{field}.ids[{i}]"), prompt[i]));
        }
        let (tokens, context) = (prompt.len(), self.model.info.context_length);
        if tokens >= context {
            let problem = format!(
                "expected a prompt shorter than the context of {context} tokens, found {tokens} tokens"
            );
            return Err(CallError::field(field, problem));
        }
        Ok(())
    }

    /// Index of the first id that the vocabulary does not have.
    fn outside(&self, ids: &[u32]) -> Option<usize> {
        ids.iter().position(|&id| id as usize >= self.model.info.vocab_size)
    }

    fn unknown(&self, field: String, id: u32) -> CallError {
        let vocab_size = self.model.info.vocab_size;
        let problem = format!("expected an id below the vocabulary size {vocab_size}, found {id}");
        CallError::field(field, problem)
    }

    /// What of `call` depends on the model; `field` is the one the prompt came in.
    pub(super) fn check(
        &self,
        call: &CompletionCall,
        prompt: &[u32],
        field: &str,
    ) -> Result<(), CallError> {
        self.check_prompt(prompt, field)?;
        if let Some(i) = self.outside(&call.stop_token_ids) {
            return Err(self.unknown(format!("stop_token_ids[{i}]"), call.stop_token_ids[i]));
        }
        let biased: Vec<u32> = call.sampling.logit_bias.iter().map(|&(id, _)| id).collect();
        if let Some(i) = self.outside(&biased) {
            return Err(self.unknown(format!("sampling.logit_bias[{}]", biased[i]), biased[i]));
        }
        let (tokens, context) = (prompt.len(), self.model.info.context_length);
        let points = call.cache.restore_points.iter();
        if let Some((i, found)) = points.enumerate().find(|&(_, &point)| point > tokens) {
            let problem =
                format!("expected 1 to {tokens}, the length of the prompt, found {found}");
            return Err(CallError::field(format!("cache.restore_points[{i}]"), problem));
        }
        match call.max_tokens {
            Some(max) if max > context - tokens => {
                let problem = format!(
                    "expected at most {}, for the prompt has {tokens} tokens and the context {context}, \
                     found {max}",
                    context - tokens
                );
                Err(CallError::field("max_tokens", problem))
            }
            _ => Ok(()),
        }
    }

    /// Runs `work` here if `size` is small, else on a thread for it.
    async fn work<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce(&ModelText) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        if size < LARGE {
            return work(&self.text);
        }
        let text = self.text.clone();
        let worker = self.workers.enter(size).await?;
        let working = tokio::task::spawn_blocking(move || {
            let _worker = worker;
            work(&text)
        });
        working.await.map_err(worker_failed)?
    }
}
