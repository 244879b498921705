//! Places for texts that take long: so many are worked on at once, so many wait, more are refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::CallError;

/// Texts of at least this many bytes, or tokens, are worked on off the threads that serve sockets.
pub(super) const LARGE: usize = 16 << 10;

/// Large texts worked on at once, and those that may wait for it.
const LARGE_TEXTS_MAX: usize = 4;
const LARGE_WAITING_MAX: usize = 1024;

/// Texts of at least this many bytes, or tokens, are worked on one at a time: tokenizing takes about
/// a hundred times their memory, and seconds. They have a queue of their own, so that nobody else
/// waits for them.
const HUGE: usize = 1 << 20;

/// Huge texts that may wait; each can be as large as a request.
const HUGE_WAITING_MAX: usize = 8;

/// When a place may be free again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// See the module; clones share the places.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    large: Pool,
    huge: Pool,
}

#[derive(Debug, Clone)]
struct Pool {
    name: &'static str,
    working: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    waiting_max: usize,
}

impl Workers {
    /// All places free.
    pub(super) fn new() -> Self {
        Self {
            large: Pool::new("the queue of large texts", LARGE_TEXTS_MAX, LARGE_WAITING_MAX),
            huge: Pool::new("the queue of texts over 1 MiB", 1, HUGE_WAITING_MAX),
        }
    }

    /// Waits for a place for a text of `size`; it is free again when the permit is dropped.
    ///
    /// # Errors
    /// If too many wait already.
    pub(super) async fn enter(&self, size: usize) -> Result<OwnedSemaphorePermit, CallError> {
        let pool = if size < HUGE { &self.large } else { &self.huge };
        pool.enter().await
    }
}

impl Pool {
    fn new(name: &'static str, working: usize, waiting_max: usize) -> Self {
        let (working, waiting) =
            (Arc::new(Semaphore::new(working)), Arc::new(Semaphore::new(waiting_max)));
        Self { name, working, waiting, waiting_max }
    }

    async fn enter(&self) -> Result<OwnedSemaphorePermit, CallError> {
        if let Ok(place) = self.working.clone().try_acquire_owned() {
            return Ok(place);
        }
        let Ok(_waits) = self.waiting.try_acquire() else {
            return Err(CallError::QueueFull {
                what: self.name.to_owned(),
                bound: self.waiting_max,
                retry_after: RETRY_AFTER,
            });
        };
        Ok(self.working.clone().acquire_owned().await.expect("the semaphore is never closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_huge_text_does_not_hold_the_place_of_others() {
        let workers = Workers::new();
        let enter = |size| workers.enter(size).now_or_never();
        let _huge = enter(HUGE).expect("at once").expect("is free");
        assert!(enter(HUGE).is_none(), "waits");
        let places: Vec<_> = std::iter::repeat_with(|| enter(HUGE - 1)).map_while(|p| p).collect();
        assert_eq!(places.len(), LARGE_TEXTS_MAX);
    }

    #[tokio::test]
    async fn what_would_wait_behind_too_many_is_refused() {
        let workers = Workers::new();
        let place = workers.enter(HUGE).await.expect("is free");
        let mut waiting: Vec<_> =
            (0..HUGE_WAITING_MAX).map(|_| Box::pin(workers.enter(HUGE))).collect();
        assert!(waiting.iter_mut().all(|enter| enter.now_or_never().is_none()));
        let refused = workers.enter(HUGE).await.expect_err("is full");
        assert!(matches!(refused, CallError::QueueFull { bound: HUGE_WAITING_MAX, .. }));
        drop(place);
        let next = waiting.remove(0).await;
        drop(next.expect("comes next"));
        drop(waiting);
        let again = workers.enter(HUGE).await;
        assert!(again.is_ok(), "nobody waits any more");
    }
}
