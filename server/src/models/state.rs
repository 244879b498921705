//! What is remembered, as the edge asks for it: snapshots kept, listed and moved, prompts looked
//! up, trees described. The engine does the work; here are the checks and the bounds.

mod private;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sconce_cache::NodeView;
use sconce_engine::{
    CacheReport, CacheStatus, CacheUse, Sampling, SnapshotFile, SnapshotInfo, SnapshotRequest,
    Stopping,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{EncodedPrompt, Models, ReadyModel};
use crate::caller::Namespace;
use crate::completion::{self, CallContext, Prompt};
use crate::error::CallError;
use crate::memory;

/// Snapshots on the way to or from other servers at once; each lies in main memory as a whole.
const TRANSFERS_MAX: usize = 4;

/// Largest snapshot that is taken from elsewhere.
pub const SNAPSHOT_BYTES_MAX: u64 = 64 << 30;

/// When a transfer may have ended.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A prompt whose state is asked for, with every field in its range.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixCall {
    /// Name of the model.
    pub model: String,
    /// The prompt.
    pub prompt: Prompt,
    /// Separates caches.
    pub salt: Option<String>,
}

/// What is remembered under a name.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotCall {
    /// The prompt.
    pub prefix: PrefixCall,
    /// Name to keep it under.
    pub name: String,
    /// Never evicts it.
    pub pinned: bool,
    /// Lets it go after this long.
    pub ttl: Option<Duration>,
}

/// A snapshot is on its way; dropping this makes room for another.
#[derive(Debug)]
pub struct Transfer {
    _place: OwnedSemaphorePermit,
    announced: u64,
    all_announced: Arc<Mutex<u64>>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        *self.all_announced.lock() -= self.announced;
    }
}

/// Bounds what transfers take together.
#[derive(Debug, Clone)]
pub(super) struct Transfers {
    places: Arc<Semaphore>,
    /// Bytes of content that the running imports have room for, received or not.
    announced: Arc<Mutex<u64>>,
}

impl Transfers {
    /// All places free.
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(TRANSFERS_MAX)), announced: Arc::default() }
    }

    /// A place for a snapshot of `bytes` that is yet to come, if main memory has `available` bytes.
    fn enter(&self, bytes: u64, available: Option<u64>) -> Result<Transfer, CallError> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| CallError::QueueFull {
            what: "the queue of snapshot transfers".to_owned(),
            bound: TRANSFERS_MAX,
            retry_after: RETRY_AFTER,
        })?;
        let mut announced = self.announced.lock();
        // What others have announced and received counts twice, which errs on the safe side.
        let free = available.unwrap_or(u64::MAX).saturating_sub(*announced);
        if bytes > free {
            let problem = format!(
                "main memory is full: {bytes} bytes wanted for a snapshot, {free} available"
            );
            return Err(CallError::MemoryExhausted { problem });
        }
        *announced += bytes;
        Ok(Transfer { _place: place, announced: bytes, all_announced: self.announced.clone() })
    }
}

impl Models {
    /// Computes a prompt and keeps its state under a name.
    ///
    /// # Errors
    /// Those of a completion up to its admission, and no room for the state.
    pub async fn snapshot(
        &self,
        call: SnapshotCall,
        context: CallContext,
    ) -> Result<SnapshotInfo, CallError> {
        let (_, prompt) = self.prefix(&call.prefix).await?;
        let salt = context.caller.namespace().salt(call.prefix.salt.as_deref());
        let asked = CacheUse { salt, ..CacheUse::default() };
        let request = SnapshotRequest {
            request: sconce_engine::Request {
                model: call.prefix.model,
                request_id: context.request_id,
                cache: completion::cache_use(asked, prompt.boundaries),
                prompt: prompt.ids,
                sampling: Sampling::default(),
                stopping: Stopping::default(),
                logprobs: None,
                priority: 0,
                deadline: Some(context.deadline),
                arrived: context.arrived,
                trace: context.trace,
            },
            name: call.name,
            pinned: call.pinned,
            ttl: call.ttl,
        };
        // It waits, then it runs: the whole of it counts as waiting.
        let _waiting = self.wait_as(&context.caller)?;
        tokio::select! {
            kept = self.inner.engine.snapshot(request) => Ok(kept?),
            () = self.inner.cut_off.cancelled() => Err(CallError::Draining),
        }
    }

    /// Snapshots of a namespace, of every model, sorted by model, then name.
    ///
    /// # Errors
    /// If the engine is gone.
    pub async fn snapshots(&self, of: &Namespace) -> Result<Vec<SnapshotInfo>, CallError> {
        let mut snapshots = self.inner.engine.snapshots().await?;
        snapshots.retain(|snapshot| of.has(snapshot.salt.as_deref()));
        Ok(snapshots)
    }

    /// Refuses snapshots of other namespaces as if there were none. No identity is given twice while
    /// a server runs, so what is found here is what the next question to the engine is about.
    async fn expect_own(&self, id: &str, of: &Namespace) -> Result<(), CallError> {
        match self.snapshots(of).await?.iter().any(|snapshot| snapshot.id == id) {
            true => Ok(()),
            false => Err(CallError::UnknownSnapshot { id: id.to_owned() }),
        }
    }

    /// Lets a snapshot of a namespace go.
    ///
    /// # Errors
    /// If there is none of that identity.
    pub async fn drop_snapshot(&self, id: &str, of: &Namespace) -> Result<(), CallError> {
        self.expect_own(id, of).await?;
        Ok(self.inner.engine.drop_snapshot(id).await?)
    }

    /// A snapshot of a namespace for another server, under the salt that its request asked for. It
    /// takes memory as long as the transfer is held.
    ///
    /// # Errors
    /// If there is none of that identity, its state is damaged, or too many are on their way.
    pub async fn export_snapshot(
        &self,
        id: &str,
        of: &Namespace,
    ) -> Result<(SnapshotFile, Transfer), CallError> {
        let transfer = self.inner.transfers.enter(0, None)?;
        self.expect_own(id, of).await?;
        let of = of.clone();
        let asked = move |salt: Option<String>| {
            // Of another namespace it cannot be, for it was found in this one.
            of.asked(salt.as_deref()).ok().flatten().map(str::to_owned)
        };
        Ok((self.inner.engine.export_snapshot_as(id, asked).await?, transfer))
    }

    /// Makes room for a snapshot of another server, of which `file` is all but the content.
    ///
    /// # Errors
    /// A model that is not ready or another than the snapshot's, a snapshot too large, no memory
    /// for it, too many on their way.
    pub fn expect_snapshot(&self, model: &str, file: &SnapshotFile) -> Result<Transfer, CallError> {
        let model = self.inner.engine.model(model)?;
        let (expected, found) = (model.info.fingerprint, file.fingerprint);
        if expected != found {
            return Err(CallError::SnapshotForeign {
                problem: format!(
                    "the snapshot was computed by a model of fingerprint {found:016x}, model `{}` \
                     has {expected:016x}",
                    model.name
                ),
            });
        }
        if file.bytes > SNAPSHOT_BYTES_MAX {
            let problem = format!("expected at most {SNAPSHOT_BYTES_MAX}, found {}", file.bytes);
            return Err(CallError::field("header.bytes", problem));
        }
        self.inner.transfers.enter(file.bytes, memory::available())
    }

    /// Keeps a snapshot of another server in a namespace, for which room was made.
    ///
    /// # Errors
    /// Content that is not a snapshot of the model, no room to keep it.
    pub async fn import_snapshot(
        &self,
        model: &str,
        file: SnapshotFile,
        transfer: Transfer,
        into: &Namespace,
    ) -> Result<SnapshotInfo, CallError> {
        let salted = |salt: Option<String>| into.salt(salt.as_deref());
        let kept = self.inner.engine.import_snapshot_as(model, file, salted).await?;
        drop(transfer);
        Ok(kept)
    }

    /// How long a prompt is, and what a completion of it in a namespace would resume.
    ///
    /// # Errors
    /// A prompt that the model cannot take.
    pub async fn match_prefix(
        &self,
        call: PrefixCall,
        of: &Namespace,
    ) -> Result<(usize, CacheReport), CallError> {
        let (model, prompt) = self.prefix(&call).await?;
        let tokens = prompt.ids.len();
        let salt = of.salt(call.salt.as_deref());
        let asked = CacheUse { salt, ..CacheUse::default() };
        let asked = completion::cache_use(asked, prompt.boundaries);
        let name = &model.loaded().name;
        Ok((tokens, self.inner.engine.match_prefix(name, &asked, prompt.ids).await?))
    }

    /// What a namespace has of the prefix tree of a model, depth first, and the cache over all models.
    ///
    /// # Errors
    /// If the model is not ready.
    pub async fn describe_cache(
        &self,
        model: &str,
        of: &Namespace,
    ) -> Result<(Vec<NodeView>, CacheStatus), CallError> {
        self.inner.engine.model(model)?;
        let own = of.clone();
        let told = move |salt: Option<&str>| own.has(salt);
        let nodes = self.inner.engine.describe_cache_where(model, told).await?;
        let status = self.status().cache;
        Ok(if of.is_common() { (nodes, status) } else { private::described(nodes, status) })
    }

    /// The model of a call and the tokens of its prompt, checked as for a completion.
    async fn prefix(&self, call: &PrefixCall) -> Result<(ReadyModel, EncodedPrompt), CallError> {
        let model = self.ready(&call.model).await?;
        let prompt = model.encode(call.prompt.clone(), None).await?;
        model.check_prompt(&prompt.ids, call.prompt.field())?;
        Ok((model, prompt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_transfers_run_at_once() {
        let transfers = Transfers::new();
        let mut running: Vec<_> =
            (0..TRANSFERS_MAX).map(|_| transfers.enter(0, None).expect("is free")).collect();
        let refused = transfers.enter(0, None).expect_err("is full");
        assert!(matches!(refused, CallError::QueueFull { bound: TRANSFERS_MAX, .. }));
        running.pop();
        assert!(transfers.enter(0, None).is_ok());
    }

    #[test]
    fn announced_snapshots_share_the_memory() {
        let transfers = Transfers::new();
        let first = transfers.enter(60, Some(100)).expect("fits");
        let refused = transfers.enter(41, Some(100)).expect_err("does not fit beside the first");
        assert!(matches!(refused, CallError::MemoryExhausted { .. }));
        assert_eq!(
            refused.to_string(),
            "main memory is full: 41 bytes wanted for a snapshot, 40 available"
        );
        drop(first);
        assert!(transfers.enter(100, Some(100)).is_ok());
    }
}
