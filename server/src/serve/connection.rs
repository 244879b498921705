//! Connections: accepted up to a bound, spoken as HTTP/2, closed in order. HTTP/1.1 is spoken too,
//! for scrapers of metrics alone: see [`crate::layer::scrape`].

use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt as _};

use super::accept::accept;
use super::door::{Door, Guest};
use super::listener::{Accepted, Io, Listener};
use super::stall::Stalling;
use super::{LAST_WORDS, Limits};
use crate::layer::access_log::AccessLogLayer;
use crate::layer::auth::{AuthLayer, Gate};
use crate::layer::deadline::DeadlineLayer;
use crate::layer::error_detail::ErrorDetailLayer;
use crate::layer::limits::LimitsLayer;
use crate::layer::panic::PanicLayer;
use crate::layer::request_id::RequestIdLayer;
use crate::layer::scrape::ScrapeLayer;
use crate::layer::{HttpRequest, HttpResponse};
use crate::metrics::Metrics;

/// We ping a silent peer this often, and close when it does not answer in time.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Flow-control windows: a large prompt should not wait for window updates at each 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Bytes of one stream's answer that wait for a slow reader; more wait in the handler.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Longest list of request headers, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// Longest frame that is read. It is what HTTP/2 allows unless told otherwise; and as h2 bounds the
/// CONTINUATION frames of a list of headers by how many such frames it could fill, larger ones would
/// allow no less.
const FRAME_BYTES_MAX: u32 = 16 << 10;

/// Streams of one connection that were opened and reset before we came to look at them. A client that
/// cancels in earnest has few of these; one that floods (CVE-2023-44487) is sent away.
const RESETS_PENDING_MAX: usize = 20;

/// Streams of one connection that we had to reset because the client broke the rules (as
/// CVE-2025-8671 makes use of); one that goes on so is sent away.
const FAULTS_MAX: usize = 64;

/// A connection must have begun to speak by then, or it is closed: until it has, neither pings nor
/// GOAWAY reach it. As long may a request head of HTTP/1 take, and the time between two.
const PREFACE_TIME: Duration = Duration::from_secs(10);

/// Length of what an HTTP/2 client says first (RFC 9113, section 3.4). The head of a scrape is longer.
const PREFACE_BYTES: usize = 24;

/// The services with the layers around them.
#[derive(Clone)]
pub(super) struct Edge(BoxCloneSyncService<HttpRequest, HttpResponse, Infallible>);

impl Edge {
    /// Wraps `routes`, behind `gate`; requests end in `log`. The order of layers is explained in
    /// [`crate::layer`].
    pub(super) fn new(
        routes: Routes,
        metrics: Metrics,
        log: AccessLogLayer,
        limits: &Limits,
        gate: Gate,
    ) -> Self {
        let requests_max = gate.requests_max();
        let service = ServiceBuilder::new()
            .layer(ScrapeLayer::new(metrics.clone(), gate.clone()))
            .layer(RequestIdLayer::new())
            .layer(log)
            .layer(ErrorDetailLayer)
            .layer(PanicLayer)
            .layer(AuthLayer::new(gate))
            .layer(LimitsLayer::new(requests_max))
            .layer(DeadlineLayer::new(limits.request_seconds_max))
            .service(routes);
        Self(BoxCloneSyncService::new(service))
    }
}

/// How old connections may become.
#[derive(Debug, Clone, Copy)]
struct Age {
    /// Zero is any age.
    max: Duration,
    /// How long what was asked for by then may still take.
    grace: Duration,
}

impl Age {
    /// Part of the age by which connections differ, either way: those of one moment are not to come back
    /// in one moment.
    const SPREAD: f64 = 0.1;

    /// Ends when a connection is to be asked to go. One without an address is a Unix socket's, which
    /// no balancer is in front of.
    async fn reached(self, has_address: bool) {
        if self.max.is_zero() || !has_address {
            return std::future::pending().await;
        }
        let bits = RandomState::new().build_hasher().finish() >> 11;
        let random = bits as f64 / (1_u64 << 53) as f64;
        tokio::time::sleep(self.max.mul_f64(1.0 + Self::SPREAD * (2.0 * random - 1.0))).await;
    }
}

/// Accepts connections and serves them until told to close.
#[derive(Clone)]
pub(super) struct Acceptor {
    edge: Edge,
    door: Door,
    streams_max: u32,
    age: Age,
    slots: Arc<Semaphore>,
    closing: CancellationToken,
    abort: CancellationToken,
}

impl Acceptor {
    /// `closing` ends accepting and sends GOAWAY; `abort` drops connections.
    pub(super) fn new(
        edge: Edge,
        door: Door,
        limits: &Limits,
        closing: CancellationToken,
        abort: CancellationToken,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        // A request that takes as long as it may has something to say after that.
        let grace = limits.request_seconds_max.saturating_add(LAST_WORDS);
        let age = Age { max: limits.connection_age_max, grace };
        let streams_max = limits.streams_per_connection_max;
        Self { edge, door, streams_max, age, slots, closing, abort }
    }

    /// Accepts from `listener` until closing; each connection is a task of `tasks`.
    pub(super) async fn accept(self, listener: Listener, tasks: TaskTracker) {
        let (slots, closing) = (self.slots.clone(), self.closing.clone());
        let serve = |accepted, slot| self.clone().serve(accepted, slot);
        accept(listener, slots, closing, tasks, serve).await;
    }

    async fn serve(self, accepted: Accepted, _slot: OwnedSemaphorePermit) {
        let Self { edge, door, streams_max, age, closing, abort, .. } = self;
        let aged = age.reached(accepted.peer.is_some());
        let entered = tokio::select! {
            entered = door.let_in(accepted) => entered,
            () = closing.cancelled() => return,
        };
        let Guest { io, peer, place: _place } = match entered {
            Ok(guest) => guest,
            Err(error) => {
                tracing::debug!(%error, "a connection was not let in");
                return;
            }
        };
        let service = edge.0.map_request(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.map(Body::new)
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(PREFACE_TIME)
            .max_buf_size(HEADERS_BYTES_MAX as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
            .max_local_error_reset_streams(FAULTS_MAX)
            .max_concurrent_streams(streams_max);
        let spoken = CancellationToken::new();
        let io = Box::new(Stalling::new(io));
        let io = Greeted { io, missing: PREFACE_BYTES, spoken: spoken.clone() };
        let connection = builder
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
            .into_owned();
        let mut connection = std::pin::pin!(connection);

        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = silent(&spoken) => {
                tracing::debug!("a connection did not speak in time");
                return;
            }
            () = aged => None,
            () = closing.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => Some(ended),
            // It has asked for nothing, and would not hear that we close.
            None if !spoken.is_cancelled() => return,
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => Some(ended),
                    // A watch, say of health, would never end.
                    () = tokio::time::sleep(age.grace) => None,
                    () = abort.cancelled() => None,
                }
            }
        };
        if let Some(Err(error)) = ended {
            tracing::debug!(error = &*error, "a connection ended in disorder");
        }
    }
}

/// Ends if nothing was `spoken` in time.
async fn silent(spoken: &CancellationToken) {
    if tokio::time::timeout(PREFACE_TIME, spoken.cancelled()).await.is_ok() {
        std::future::pending().await
    }
}

/// A byte stream that tells when as much was read as a client says first.
struct Greeted {
    io: Box<dyn Io>,
    missing: usize,
    spoken: CancellationToken,
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.spoken.cancel();
            }
        }
        polled
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::health::HealthBoard;
    use crate::layer::recent::RecentRequests;
    use crate::models::Models;
    use crate::serve::{AuthPlan, Secrets, ServePlan};
    use crate::trace::Tracer;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tonic::server::NamedService;
    use tower::Service;

    const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// After what else a silent connection is closed for.
    const AGE: Duration = Duration::from_secs(200);

    /// A connection to a server without services that closes when told.
    fn connected(closing: &CancellationToken) -> (DuplexStream, impl Future<Output = ()> + use<>) {
        connected_from(None, Routes::default(), closing)
    }

    /// To `routes`, from an address or a Unix socket.
    fn connected_from(
        peer: Option<SocketAddr>,
        routes: Routes,
        closing: &CancellationToken,
    ) -> (DuplexStream, impl Future<Output = ()> + use<>) {
        let limits = Limits { connection_age_max: AGE, ..Limits::default() };
        let plan = ServePlan::default();
        let models = Models::start(&plan.engine, &plan.cache, plan.precision).expect("starts");
        let metrics =
            Metrics::new(models, HealthBoard::new(), Secrets::default(), plan.engine.device);
        let gate = Gate::new(AuthPlan::default(), None, true);
        let log =
            AccessLogLayer::new(RecentRequests::default(), metrics.calls(), Tracer::default());
        let edge = Edge::new(routes, metrics, log, &limits, gate);
        let door = Door::new(1, None);
        let acceptor =
            Acceptor::new(edge, door, &limits, closing.clone(), CancellationToken::new());
        let slot = acceptor.slots.clone().try_acquire_owned().expect("is free");
        let (client, server) = tokio::io::duplex(1 << 10);
        (client, acceptor.serve(Accepted { io: Box::new(server), peer }, slot))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_too_little_is_closed_in_time() {
        for said in [0, PREFACE_BYTES - 1] {
            let (mut client, served) = connected(&CancellationToken::new());
            client.write_all(&PREFACE[..said]).await.expect("has room");
            let began = tokio::time::Instant::now();
            served.await;
            assert_eq!(began.elapsed(), PREFACE_TIME, "after {said} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_http_1_has_as_long() {
        for said in ["GET", "GET /metrics HTTP/1.1\r\nhost: x\r\n"] {
            let (mut client, served) = connected(&CancellationToken::new());
            client.write_all(said.as_bytes()).await.expect("has room");
            let began = tokio::time::Instant::now();
            served.await;
            assert_eq!(began.elapsed(), PREFACE_TIME, "after {said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_of_http_1_is_closed_in_time_and_at_the_end() {
        for closed in [false, true] {
            let closing = CancellationToken::new();
            let (mut client, served) = connected(&closing);
            let said = b"HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
            client.write_all(said).await.expect("has room");
            let mut heard = [0; 15];
            let mut served = std::pin::pin!(served);
            tokio::select! {
                _ = client.read_exact(&mut heard) => assert_eq!(&heard, b"HTTP/1.1 200 OK"),
                () = served.as_mut() => panic!("the connection is kept"),
            }
            if closed {
                closing.cancel();
            }
            let began = tokio::time::Instant::now();
            served.await;
            let expected = if closed { Duration::ZERO } else { PREFACE_TIME };
            assert_eq!(began.elapsed(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_does_not_delay_the_end() {
        let closing = CancellationToken::new();
        let (_client, served) = connected(&closing);
        closing.cancel();
        let began = tokio::time::Instant::now();
        served.await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_speaks_may_be_idle() {
        let (mut client, served) = connected(&CancellationToken::new());
        client.write_all(PREFACE).await.expect("has room");
        // An empty SETTINGS frame.
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("has room");
        let mut served = std::pin::pin!(served);
        tokio::time::timeout(PREFACE_TIME * 2, served.as_mut()).await.expect_err("goes on");
        let mut heard = [0; 9];
        client.read_exact(&mut heard).await.expect("the server's SETTINGS");
        assert_eq!(heard[3], 4);
    }

    /// Answers pings (frames of type 6) and hears whether it is to go (type 7), until the end.
    async fn answer(client: &mut DuplexStream) -> bool {
        let mut goaway = false;
        let mut head = [0; 9];
        while client.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[2])];
            client.read_exact(&mut payload).await.expect("the rest of a frame");
            goaway |= head[3] == 7;
            if head[3] == 6 && head[4] & 1 == 0 {
                head[4] = 1;
                let answer = [&head[..], &payload].concat();
                client.write_all(&answer).await.expect("has room");
            }
        }
        goaway
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_is_asked_to_go_unless_it_is_a_unix_sockets() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        for peer in [Some(address), None] {
            let (mut client, served) =
                connected_from(peer, Routes::default(), &CancellationToken::new());
            client.write_all(PREFACE).await.expect("has room");
            client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("has room");
            let began = tokio::time::Instant::now();
            let both = async { tokio::join!(answer(&mut client), served).0 };
            match tokio::time::timeout(2 * AGE, both).await {
                Ok(goaway) => {
                    assert!(goaway && peer.is_some(), "from {peer:?}");
                    let age = began.elapsed().div_duration_f64(AGE);
                    assert!((1.0 - Age::SPREAD..=1.01 + Age::SPREAD).contains(&age), "{age}");
                }
                Err(_) => assert_eq!(peer, None),
            }
        }
    }

    /// A service that takes so long to answer, and as long as it likes: its name is that of a watch.
    #[derive(Clone)]
    struct Slow(Duration);

    impl NamedService for Slow {
        const NAME: &'static str = "grpc.test.Slow";
    }

    impl Service<http::Request<Body>> for Slow {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            let time = self.0;
            Box::pin(async move {
                tokio::time::sleep(time).await;
                Ok(http::Response::new(Body::empty()))
            })
        }
    }

    /// Asks a service that takes `time`; what came of it, and whether the connection takes another
    /// request, when it has ended.
    async fn ask_slowly(time: Duration) -> (Option<http::StatusCode>, bool) {
        let peer = Some(SocketAddr::from(([127, 0, 0, 1], 9)));
        let routes = Routes::new(Slow(time));
        let (client, served) = connected_from(peer, routes, &CancellationToken::new());
        let served = tokio::spawn(served);
        let io = TokioIo::new(client);
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let shaken = builder.timer(TokioTimer::new()).handshake(io).await;
        let (mut requests, connection) = shaken.expect("speaks HTTP/2");
        let connection = tokio::spawn(connection);
        let request = http::Request::post("http://test/grpc.test.Slow/Ask").body(Body::empty());
        let answer = requests.send_request(request.expect("a request")).await;
        let takes_more = requests.ready().await.is_ok();
        served.await.expect("does not panic");
        drop(connection.await.expect("does not panic"));
        (answer.ok().map(|answer| answer.status()), takes_more)
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_goes_when_what_it_asked_for_is_answered() {
        let began = tokio::time::Instant::now();
        assert_eq!(ask_slowly(2 * AGE).await, (Some(http::StatusCode::OK), false));
        let lived = began.elapsed();
        assert!((2 * AGE..3 * AGE).contains(&lived), "{lived:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_with_a_watch_goes_after_the_longest_request() {
        let began = tokio::time::Instant::now();
        assert_eq!(ask_slowly(Duration::from_secs(1 << 20)).await, (None, false));
        let lived = began.elapsed();
        let grace = Limits::default().request_seconds_max + LAST_WORDS;
        assert!((grace..grace + 2 * AGE).contains(&lived), "{lived:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_a_ping_is_gone() {
        let (mut client, served) = connected(&CancellationToken::new());
        client.write_all(PREFACE).await.expect("has room");
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("has room");
        let began = tokio::time::Instant::now();
        served.await;
        let expected = KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT;
        let after = began.elapsed();
        assert!((expected..expected + Duration::from_secs(1)).contains(&after), "{after:?}");
    }
}
