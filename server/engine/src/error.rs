//! Everything the engine can answer instead of a token. An edge maps variants to status codes; the
//! messages carry the numbers.

use std::time::Duration;

use crate::status::ModelState;

/// Why a request, or an operation on a model, failed. Other requests are not affected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// As many requests wait as may; nothing was queued.
    #[error("the queue is full: {limit} requests are waiting, try again in {retry_after:?}")]
    QueueFull {
        /// Most requests that may wait.
        limit: usize,
        /// About how long until one leaves the queue.
        retry_after: Duration,
    },
    /// More commands to the engine (load, unload) than it takes up at once.
    #[error("the engine is busy: {limit} {operations} are in progress")]
    Busy {
        /// What there are too many of.
        operations: &'static str,
        /// Most that may be in progress.
        limit: usize,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty: expected at least one token")]
    EmptyPrompt,
    /// A prompt token that the model has no row for.
    #[error("prompt token {index} is {id}: expected an id below the vocabulary size {vocab_size}")]
    UnknownTokenId {
        /// Position in the prompt.
        index: usize,
        /// The token.
        id: u32,
        /// Rows of the model's head.
        vocab_size: usize,
    },
    /// No room in the context for the prompt and one completion token.
    #[error(
        "the prompt has {prompt_tokens} tokens: with one completion token it must fit the context \
         of {context_length}"
    )]
    ContextExceeded {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// Most tokens of prompt and completion together.
        context_length: usize,
    },
    /// An option outside its range.
    #[error("{option}: expected {expected}, found {found}")]
    InvalidOption {
        /// Its name, as in the protocol.
        option: &'static str,
        /// The range.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// No model of that name.
    #[error("model {model:?} is not loaded")]
    ModelNotFound {
        /// The name.
        model: String,
    },
    /// The model is known, but takes no requests.
    #[error("model {model:?} is {state}")]
    ModelNotReady {
        /// The name.
        model: String,
        /// What it is doing instead.
        state: ModelState,
    },
    /// The model was unloaded by force while the request waited or ran.
    #[error("model {model:?} was unloaded")]
    ModelUnloaded {
        /// The name.
        model: String,
    },
    /// The name is taken by a model with other settings.
    #[error("model {model:?} is already loaded with other settings: {difference}")]
    AlreadyLoaded {
        /// The name.
        model: String,
        /// The first setting that differs, as loaded and as asked for.
        difference: String,
    },
    /// The model could not be loaded.
    #[error("loading model {model:?}: {message}")]
    LoadFailed {
        /// The name.
        model: String,
        /// What went wrong.
        message: String,
    },
    /// The load was abandoned: nobody waited for it any more, or the model was unloaded meanwhile.
    #[error("loading model {model:?} was cancelled")]
    LoadCancelled {
        /// The name.
        model: String,
    },
    /// A budget has no room.
    #[error(transparent)]
    OutOfMemory(#[from] sconce_cache::Error),
    /// The request needs more pages of state than the model's pool has.
    #[error(
        "out of state memory: the sequence needs {pages} pages for {tokens} tokens, the pool of the \
         model has {pages_max}"
    )]
    OutOfPages {
        /// Tokens of prompt and completion that have to be held.
        tokens: usize,
        /// Pages for them.
        pages: usize,
        /// Pages of the pool.
        pages_max: usize,
    },
    /// Nothing is remembered for the model.
    #[error("model {model:?} has no cache: every tier is turned off")]
    CacheOff {
        /// The name of the model.
        model: String,
    },
    /// No snapshot of that identity.
    #[error("there is no snapshot {id:?}")]
    SnapshotNotFound {
        /// What was asked for.
        id: String,
    },
    /// There is no room to keep a snapshot.
    #[error("snapshot {name:?} has {tokens} tokens, and there is room for {kept}")]
    SnapshotTooLarge {
        /// Its name.
        name: String,
        /// Tokens it covers.
        tokens: usize,
        /// Tokens that could be kept.
        kept: usize,
    },
    /// What should be a snapshot is not, or has changed on its way.
    #[error("the snapshot is damaged: {problem}")]
    SnapshotDamaged {
        /// What is wrong.
        problem: String,
    },
    /// A snapshot of other weights.
    #[error("the snapshot is of another model: expected {expected:016x}, found {found:016x}")]
    SnapshotForeign {
        /// Fingerprint of the model it is for.
        expected: u64,
        /// Fingerprint in the snapshot.
        found: u64,
    },
    /// The deadline passed before the request was admitted.
    #[error("the deadline passed after {waited:?} in the queue")]
    DeadlineExceeded {
        /// How long the request waited.
        waited: Duration,
    },
    /// The model computed an infinity or a NaN.
    #[error("the logits of completion token {token_index} are not finite")]
    NonFiniteLogits {
        /// Which completion token they were for, from 0.
        token_index: usize,
    },
    /// A step failed.
    #[error("model {model:?} failed: {message}")]
    Forward {
        /// The name of the model.
        model: String,
        /// What went wrong.
        message: String,
    },
    /// The device thread panicked while it had the request.
    #[error("the engine failed while it had the request; its log tells how")]
    Panicked,
    /// The device thread panicked, and what it had is put in order; this request was not begun.
    #[error("the engine restarts after a failure")]
    Restarting,
    /// The engine finishes what it has and takes no more.
    #[error("the engine is draining and takes no requests")]
    Draining,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}
