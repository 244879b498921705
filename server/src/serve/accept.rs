//! Accepting connections, up to a bound and until told to close; what is spoken on them is the
//! caller's subject.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listener::{Accepted, Listener};

/// Pause after `accept` failed, as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts from `listener` until `closing`, at most as many at once as there are `slots`; what
/// `serve` makes of each connection is a task of `tasks`.
pub(crate) async fn accept<S>(
    listener: Listener,
    slots: Arc<Semaphore>,
    closing: CancellationToken,
    tasks: TaskTracker,
    serve: impl Fn(Accepted, OwnedSemaphorePermit) -> S,
) where
    S: Future<Output = ()> + Send + 'static,
{
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            () = closing.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        // The semaphore is never closed.
        let Ok(slot) = slot else { return };
        match accepted {
            Ok(accepted) => {
                tasks.spawn(serve(accepted, slot));
            }
            Err(error) => {
                tracing::warn!(%error, address = %listener.address(), "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
