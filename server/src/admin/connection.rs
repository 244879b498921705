//! One connection of the admin port, spoken as HTTP/1.1 within bounds.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{Admin, routes};
use crate::serve::listener::Io;
use crate::serve::stall::Stalling;

/// Longest request head, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long a request head may take to come, and a connection may be idle between two.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Answers on `io` until the peer is done, the port closes, or `abort`.
pub(super) async fn serve(
    io: Box<dyn Io>,
    _slot: OwnedSemaphorePermit,
    admin: Admin,
    abort: CancellationToken,
) {
    let closing = admin.closing.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        // Bodies are not read: no route has a use for one.
        let (head, _) = request.into_parts();
        ready(Ok::<_, Infallible>(routes::answer(&admin, &head)))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Stalling::new(io)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => Some(ended),
                () = abort.cancelled() => None,
            }
        }
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "an admin connection ended in disorder");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::sync::Semaphore;
    use tokio::time::Instant;

    use super::*;

    fn connected(admin: Admin) -> (DuplexStream, impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(1));
        let slot = slots.try_acquire_owned().expect("is free");
        let (client, server) = tokio::io::duplex(64 << 10);
        (client, serve(Box::new(server), slot, admin, CancellationToken::new()))
    }

    /// What is answered to `said` until the connection ends, and after which time it does.
    async fn answered(said: &[u8]) -> (String, Duration) {
        let (mut client, served) = connected(routes::tests::admin());
        let began = Instant::now();
        let talk = async {
            // The server may close before it has read everything.
            drop(client.write_all(said).await);
            let mut heard = Vec::new();
            drop(client.read_to_end(&mut heard).await);
            String::from_utf8(heard).expect("is text")
        };
        let (heard, ()) = tokio::join!(talk, served);
        (heard, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_closed_in_time() {
        for said in ["", "GET /livez HTTP/1.1\r\nhost: x\r\n"] {
            let (_, time) = answered(said.as_bytes()).await;
            assert_eq!(time, HEAD_TIME, "after {said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_in_time() {
        let (heard, time) = answered(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
        assert_eq!(time, HEAD_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_over_the_bound_is_refused() {
        let said = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        let (heard, time) = answered(said.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 431 "), "{heard}");
        assert_eq!(time, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_does_not_delay_the_end() {
        let admin = routes::tests::admin();
        let closing = admin.closing.clone();
        let (mut client, served) = connected(admin);
        client.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("has room");
        let mut served = std::pin::pin!(served);
        let mut heard = [0; 15];
        tokio::select! {
            _ = client.read_exact(&mut heard) => {}
            () = served.as_mut() => panic!("the connection is kept open"),
        }
        let began = Instant::now();
        closing.cancel();
        served.await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
