//! A bound on how long a peer may leave what is written to it unread. HTTP/2 has its pings for that;
//! HTTP/1 has nothing, and a peer that never reads would hold its connection for ever.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::listener::Io;

/// How long a write may make no progress at all; then it fails, and the connection with it.
pub(crate) const STALL_TIME: Duration = Duration::from_secs(60);

/// A byte stream whose writes fail with [`io::ErrorKind::TimedOut`] after [`STALL_TIME`] without
/// progress.
pub(crate) struct Stalling {
    io: Box<dyn Io>,
    /// Runs while a write waits.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Stalling {
    /// Around `io`.
    pub(crate) fn new(io: Box<dyn Io>) -> Self {
        Self { io, patience: None }
    }

    /// `polled`, or the error if it has been pending for too long.
    fn bound<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.patience = None;
            return polled;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(STALL_TIME)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.bound(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.bound(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(context);
        self.bound(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(context);
        self.bound(polled, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_reads_fails_in_time() {
        let (_client, server) = tokio::io::duplex(4);
        let began = Instant::now();
        let error = Stalling::new(Box::new(server)).write_all(b"12345").await.expect_err("fails");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), STALL_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_borne_with() {
        let (mut client, server) = tokio::io::duplex(4);
        let mut server = Stalling::new(Box::new(server));
        let writes = async { server.write_all(&[7; 64]).await.expect("is read in time") };
        let reads = async {
            let mut read = [0; 4];
            for _ in 0..16 {
                tokio::time::sleep(STALL_TIME - Duration::from_secs(1)).await;
                client.read_exact(&mut read).await.expect("is written");
            }
        };
        tokio::join!(writes, reads);
    }
}
