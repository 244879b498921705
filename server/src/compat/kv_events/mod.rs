//! What is remembered of the served model, for gateways that send a prompt to where its beginning is.
//!
//! [`follow`] keeps a [`Mirror`](mirror::Mirror) of the cache by its events, looking whenever the
//! engine says that there are new ones, and a [`History`](history::History) of what readers were
//! told. A [`Subscription`](subscription::Subscription) reads that at its own pace: there is no queue
//! for each reader, and one that falls behind is told so.
//!
//! State under a salt is never told: a salt says that others must not learn of it.

mod history;
mod mirror;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use sconce_cache::{DomainKey, Event};
use sconce_engine::LoadedModel;
use sconce_models::PAGE_TOKENS;
use sconce_proto::compat::smg::grpc::common::{EngineLoad, KvEventBatch};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::vllm::Served;
use crate::error::CallError;
use crate::models::Models;
use history::History;
use mirror::Mirror;
use subscription::Subscription;

/// Tokens of a block: those of a page, to which restore points on the way are rounded too, so that
/// what a gateway believes to be reusable is, to the block.
pub const BLOCK_TOKENS: usize = PAGE_TOKENS;

/// Most readers at once. Each may have to be told all that is remembered, and holds it until it has read
/// it; a gateway is one.
const READERS_MAX: usize = 64;

/// When one of the readers may have gone.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What subscribers read; clones are the same. When the last is dropped, nobody follows the cache any
/// more.
#[derive(Debug, Clone)]
pub struct Feed {
    shared: Arc<Shared>,
    readers: Arc<Semaphore>,
    _follower: Arc<DropGuard>,
}

/// The common ground of the follower and the subscriptions.
#[derive(Debug)]
pub(super) struct Shared {
    history: Mutex<History>,
    /// Number of the newest batch; wakes subscribers. Closed when the server drains.
    newest: watch::Sender<Newest>,
}

/// The state of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    number: u64,
    open: bool,
}

/// Begins to follow what is remembered of the served model. Must be called within a tokio runtime.
pub fn follow(models: Models, served: Served) -> Feed {
    let history = History::new();
    let newest = watch::Sender::new(Newest { number: history.newest(), open: true });
    let shared = Arc::new(Shared { history: Mutex::new(history), newest });
    let dropped = CancellationToken::new();
    let follower = Follower { models, served, shared: shared.clone(), known: None };
    let stopped = dropped.clone();
    tokio::spawn(async move {
        // Its end and that of the last feed are the same.
        stopped.run_until_cancelled(follower.run()).await;
    });
    let readers = Arc::new(Semaphore::new(READERS_MAX));
    Feed { shared, readers, _follower: Arc::new(dropped.drop_guard()) }
}

impl Feed {
    /// The batches after number `cursor`; from 0 on, all that is remembered and what follows. `load`
    /// is asked for a record with each, and between them now and then.
    ///
    /// # Errors
    /// A number that is not known, or no more; too many readers.
    pub fn subscribe(
        &self,
        cursor: u64,
        load: impl Fn() -> EngineLoad + Send + 'static,
    ) -> Result<impl Stream<Item = Result<KvEventBatch, CallError>> + Send + 'static, CallError>
    {
        let place = self.readers.clone().try_acquire_owned().map_err(|_| CallError::QueueFull {
            what: "the list of readers of events".to_owned(),
            bound: READERS_MAX,
            retry_after: RETRY_AFTER,
        })?;
        Subscription::begin(self.shared.clone(), cursor, load, place)
    }
}

/// Keeps the history true.
struct Follower {
    models: Models,
    served: Served,
    shared: Arc<Shared>,
    known: Option<Known>,
}

/// The model that is followed, and how far.
struct Known {
    model: Arc<LoadedModel>,
    domain: Option<DomainKey>,
    next: u64,
}

impl Follower {
    async fn run(mut self) {
        let mut statuses = self.models.watch_status();
        loop {
            let (next, draining) = {
                let status = statuses.borrow_and_update();
                (status.cache.events, status.draining)
            };
            if draining {
                self.shared.newest.send_modify(|newest| newest.open = false);
                return;
            }
            // What fails is tried again at the next change; the engine may be stopping.
            if let Err(error) = self.look(next).await {
                tracing::debug!(%error, "what is remembered cannot be followed");
            }
            if statuses.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes in what happened up to event number `next`.
    async fn look(&mut self, next: u64) -> Result<(), CallError> {
        let served = self.served.name().ok();
        let loaded = served.and_then(|name| self.models.loaded_as(&name));
        match (loaded, &mut self.known) {
            (None, None) => {}
            (None, Some(_)) => {
                self.known = None;
                self.change(|history| history.begin(Mirror::new(BLOCK_TOKENS, false)));
            }
            (Some(model), Some(known)) if Arc::ptr_eq(&model, &known.model) => {
                if known.next == next {
                    return Ok(());
                }
                let told = self.models.cache_events(known.next).await?;
                if told.lagged {
                    return self.begin(model).await;
                }
                known.next = told.next;
                let domain = known.domain;
                self.change(|history| {
                    let own = told.events.iter().filter(|event| is_public(event, domain));
                    own.for_each(|event| history.mirror().take(event));
                    history.publish();
                });
            }
            (Some(model), _) => return self.begin(model).await,
        }
        Ok(())
    }

    /// Begins with all that is remembered of a model now.
    async fn begin(&mut self, model: Arc<LoadedModel>) -> Result<(), CallError> {
        let picture = self.models.cache_picture(&model.name).await?;
        let mut mirror = Mirror::new(BLOCK_TOKENS, picture.needs_points);
        picture.events.iter().for_each(|event| mirror.take(event));
        self.change(|history| history.begin(mirror));
        self.known = Some(Known { model, domain: picture.domain, next: picture.next });
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut History)) {
        let number = {
            let mut history = self.shared.history.lock();
            change(&mut history);
            history.newest()
        };
        self.shared.newest.send_if_modified(|newest| {
            let grown = newest.number != number;
            newest.number = number;
            grown
        });
    }
}

/// Whether an event is of `domain`, and of nobody's own namespace there.
fn is_public(event: &Event, domain: Option<DomainKey>) -> bool {
    let (of, salt) = match event {
        Event::Stored(stretch) | Event::Removed(stretch) => (stretch.domain, &stretch.salt),
        Event::PointStored(mark) | Event::PointRemoved(mark) => (mark.domain, &mark.salt),
        Event::Cleared { .. } => return false,
    };
    Some(of) == domain && salt.is_none()
}

#[cfg(test)]
mod tests {
    use sconce_cache::{Landmark, PageStart};

    use super::*;

    #[test]
    fn a_salt_and_other_models_stay_private() {
        let domain = DomainKey { fingerprint: 1, instance: 0 };
        let event = |domain, salt: Option<&str>| {
            Event::PointStored(Landmark {
                domain,
                salt: salt.map(Into::into),
                offset: 0,
                page: PageStart { offset: 0, hash: 0, tokens: Box::default() },
            })
        };
        assert!(is_public(&event(domain, None), Some(domain)));
        assert!(!is_public(&event(domain, Some("")), Some(domain)));
        let other = DomainKey { fingerprint: 2, instance: 0 };
        assert!(!is_public(&event(other, None), Some(domain)));
        assert!(!is_public(&event(domain, None), None));
    }
}
