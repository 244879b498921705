//! One reader of the history, at its own pace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use sconce_proto::compat::smg::grpc::common::{EngineLoad, KvEventBatch};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::history::Unknown;
use super::{Newest, Shared};
use crate::error::CallError;

/// Batches taken out of the history at a time.
const BATCHES_AT_ONCE: usize = 16;

/// How long nothing is said before the load is.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Subscription<L> {
    shared: Arc<Shared>,
    newest: watch::Receiver<Newest>,
    /// Number of the last batch that was read; 0 before the first.
    cursor: u64,
    /// Read and not sent yet.
    ready: VecDeque<KvEventBatch>,
    load: L,
    loads: u64,
    ended: bool,
    /// Among the readers.
    _place: OwnedSemaphorePermit,
}

impl<L: Fn() -> EngineLoad + Send + 'static> Subscription<L> {
    /// Begins after number `cursor`, or with all that is known at 0.
    ///
    /// # Errors
    /// [`CallError::EventsUnknown`].
    pub(super) fn begin(
        shared: Arc<Shared>,
        cursor: u64,
        load: L,
        place: OwnedSemaphorePermit,
    ) -> Result<impl Stream<Item = Result<KvEventBatch, CallError>> + Send + 'static, CallError>
    {
        let newest = shared.newest.subscribe();
        let (cursor, ready) = {
            let history = shared.history.lock();
            if cursor == 0 {
                (history.newest(), history.snapshot())
            } else {
                let check = history.after(cursor, 0);
                check.map_err(|Unknown { oldest, newest }| CallError::EventsUnknown {
                    cursor,
                    oldest,
                    newest,
                })?;
                (cursor, VecDeque::new())
            }
        };
        let subscription =
            Self { shared, newest, cursor, ready, load, loads: 0, ended: false, _place: place };
        Ok(stream::unfold(subscription, |mut subscription| async move {
            let batch = subscription.next().await?;
            Some((batch, subscription))
        }))
    }

    /// The next batch; an error is the last.
    async fn next(&mut self) -> Option<Result<KvEventBatch, CallError>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(mut batch) = self.ready.pop_front() {
                batch.load = Some(self.load(false));
                return Some(Ok(batch));
            }
            let Newest { number, open } = *self.newest.borrow_and_update();
            if !open {
                return self.end(CallError::Draining);
            }
            if number <= self.cursor {
                match timeout(HEARTBEAT, self.newest.changed()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) => return self.end(CallError::Draining),
                    Err(_) => return Some(Ok(self.heartbeat())),
                }
            }
            let read = self.shared.history.lock().after(self.cursor, BATCHES_AT_ONCE);
            match read {
                Ok(batches) => {
                    self.cursor = batches.last().map_or(self.cursor, |last| last.sequence_number);
                    self.ready.extend(batches);
                }
                Err(Unknown { oldest, .. }) => {
                    let behind = self.cursor;
                    return self.end(CallError::EventsLost { behind, oldest });
                }
            }
        }
    }

    fn end(&mut self, error: CallError) -> Option<Result<KvEventBatch, CallError>> {
        self.ended = true;
        Some(Err(error))
    }

    fn heartbeat(&mut self) -> KvEventBatch {
        let load = Some(self.load(true));
        KvEventBatch { sequence_number: self.cursor, load, ..KvEventBatch::default() }
    }

    fn load(&mut self, alone: bool) -> EngineLoad {
        self.loads += 1;
        EngineLoad { sample: self.loads, load_only: alone, ..(self.load)() }
    }
}
