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
            let mut history = shared.history.lock();
            if cursor == 0 {
                (history.newest(), history.snapshot())
            } else {
                history.check(cursor).map_err(|Unknown { oldest, newest }| {
                    CallError::EventsUnknown { cursor, oldest, newest }
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::StreamExt as _;
    use parking_lot::Mutex;
    use sconce_cache::Event;
    use tokio::sync::Semaphore;
    use tonic::{Code, Status};

    use super::super::BLOCK_TOKENS;
    use super::super::history::tests::stretch;
    use super::super::history::{BATCH_BLOCKS_MAX, History};
    use super::super::mirror::Mirror;
    use super::*;

    #[tokio::test]
    async fn a_reader_cut_off_within_a_snapshot_begins_again() {
        let mut mirror = Mirror::new(BLOCK_TOKENS, false);
        (0..=2 * BATCH_BLOCKS_MAX).for_each(|block| mirror.take(&Event::Stored(stretch(block))));
        let mut history = History::new();
        history.begin(mirror);
        let newest = watch::Sender::new(Newest { number: history.newest(), open: true });
        let shared = Arc::new(Shared { history: Mutex::new(history), newest });
        let places = Arc::new(Semaphore::new(2));
        let begin = |cursor| {
            let place = places.clone().try_acquire_owned().expect("is free");
            Subscription::begin(shared.clone(), cursor, EngineLoad::default, place)
        };
        for (parts, is_whole) in [(1, false), (2, false), (3, true)] {
            let stream = begin(0).unwrap_or_else(|error| panic!("{error}"));
            let read: Vec<_> = stream.take(parts).collect().await;
            let last = read.last().expect("a part").as_ref().expect("is told");
            match begin(last.sequence_number) {
                Ok(_) => assert!(is_whole, "{parts} parts are not all"),
                Err(refused) => {
                    assert!(!is_whole, "{refused}");
                    assert_eq!(Status::from(refused).code(), Code::OutOfRange);
                }
            }
        }
    }

    #[tokio::test]
    async fn a_reader_too_far_behind_is_told_of_the_loss_and_nothing_after() {
        let history = History::new();
        let first = history.newest();
        let newest = watch::Sender::new(Newest { number: first, open: true });
        let shared = Arc::new(Shared { history: Mutex::new(history), newest });
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("is free");
        let stream = Subscription::begin(shared.clone(), first, EngineLoad::default, place);
        let mut stream = pin!(stream.expect("is known"));

        let tell = |block| {
            let mut history = shared.history.lock();
            history.mirror().take(&Event::Stored(stretch(block)));
            history.publish();
            let number = history.newest();
            shared.newest.send_modify(|newest| newest.number = number);
        };
        tell(0);
        let told = stream.next().await.expect("goes on").expect("is kept");
        assert_eq!(told.sequence_number, first + 1);
        // More than are kept: each is one batch.
        (1..=HISTORY_OF_MORE).for_each(tell);
        let lost = stream.next().await.expect("is told").expect_err("is lost");
        assert_eq!(Status::from(lost).code(), Code::DataLoss);
        assert!(stream.next().await.is_none());
    }

    /// Batches that a history keeps only some of.
    const HISTORY_OF_MORE: usize = 2000;
}
