//! A `sconce serve` as a child, the gateway's client of it, and what a Generate said.

use std::future::Future;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use openai_protocol::worker::{SchedulerLoadSnapshot, WorkerLoadResponse};
use smg_grpc_client::vllm_engine::AbortOnDropStream;
use smg_grpc_client::vllm_proto::generate_response::Response;
use smg_grpc_client::vllm_proto::{GenerateComplete, GenerateRequest, GenerateStreamChunk};
use smg_grpc_client::{VllmEngineClient, is_transport_failure};
use tonic::{Code, Status};

/// Longest a test may take; far above what any needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Load reports that are asked for before a test gives up waiting for one.
const REPORTS_MAX: usize = 20_000;

/// The name that every worker's model has.
pub(crate) const MODEL: &str = "served";

/// Steps slow enough, and a context long enough, for a request that outlasts its test.
pub(crate) const SLOW: &str = "sim:decode_us=1000,context=1000000";

/// Most tokens of such a request.
pub(crate) const ENDLESS: u32 = 900_000;

/// Runs a test's body, bounded in time.
pub(crate) async fn within<T>(body: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, Box::pin(body)).await.expect("the test ends in time")
}

/// A server of one model on a free port of loopback; killed when dropped.
pub(crate) struct Worker {
    child: Child,
    address: String,
    /// Kept open, for as long as the server may write to it.
    _stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// A server of the model at `path`, once it is loaded. `settings` are variables of its environment,
    /// without the prefix.
    pub(crate) fn start(path: &str, settings: &[(&str, &str)]) -> Self {
        Self::with_log(path, settings, Stdio::inherit())
    }

    /// The same with a log that goes to `log`.
    pub(crate) fn with_log(path: &str, settings: &[(&str, &str)], log: impl Into<Stdio>) -> Self {
        let model = format!("{MODEL}={path}");
        let mut command = sconce(&["serve", "--listen", "127.0.0.1:0", "--model", &model]);
        command
            .env("SCONCE__ENGINE__CONTEXT_LENGTH_MAX", "1000000")
            .env("SCONCE__ENGINE__MEMORY_BUDGET", "1GiB")
            .env("SCONCE__ENGINE__THREADS", "1")
            .env("SCONCE__SERVER__WITHDRAWAL", "0s")
            .env("SCONCE__TELEMETRY__LOG", "error")
            .envs(settings.iter().map(|(name, value)| (format!("SCONCE__{name}"), value)));
        let mut child =
            command.stdout(Stdio::piped()).stderr(log).spawn().expect("SCONCE_BIN can be run");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("standard output is piped"));
        stdout.read_line(&mut line).expect("the server announces its address");
        let address = line
            .trim_end()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("expected `listening on ADDRESS`, found {line:?}"))
            .to_owned();
        let worker = Self { child, address, _stdout: stdout };
        worker.until_ready();
        worker
    }

    fn until_ready(&self) {
        let mut arguments = vec!["health", "--wait", "--timeout", "60s"];
        arguments.extend(["--service", "readiness", "--server", &self.address]);
        let ready = sconce(&arguments).stdout(Stdio::null()).status().expect("SCONCE_BIN runs");
        assert!(ready.success(), "the server does not get ready: {ready}");
    }

    /// A client as the gateway makes one for `--worker-urls`.
    pub(crate) async fn client(&self) -> VllmEngineClient {
        VllmEngineClient::connect(&self.url()).await.expect("connects")
    }

    /// What the gateway is told about where it is.
    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Asks the server to drain.
    pub(crate) fn terminate(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Takes what `Stdio::piped()` was given for.
    pub(crate) fn log(&mut self) -> impl Iterator<Item = String> + Send + 'static {
        let log = self.child.stderr.take().expect("the log is piped, and taken once");
        BufReader::new(log).lines().map_while(Result::ok)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, without the settings of whoever runs the tests.
fn sconce(arguments: &[&str]) -> Command {
    let program = std::env::var_os("SCONCE_BIN").expect("SCONCE_BIN names a built `sconce`");
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SCONCE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What a Generate's stream said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) chunks: Vec<GenerateStreamChunk>,
    pub(crate) ends: Vec<GenerateComplete>,
    pub(crate) status: Option<Status>,
}

impl Said {
    /// Tokens of one completion, as they came in chunks.
    pub(crate) fn ids(&self, index: u32) -> Vec<u32> {
        let own = self.chunks.iter().filter(|chunk| chunk.index == index);
        own.flat_map(|chunk| chunk.token_ids.clone()).collect()
    }

    /// The end of the only completion.
    pub(crate) fn end(&self) -> &GenerateComplete {
        assert_eq!(self.ends.len(), 1, "{self:?}");
        &self.ends[0]
    }
}

/// Reads a stream to its end, as the gateway does: what is complete needs no abort.
pub(crate) async fn read(mut stream: AbortOnDropStream) -> Said {
    let mut said = Said::default();
    while let Some(message) = stream.next().await {
        match message {
            Ok(message) => match message.response.expect("a message says something") {
                Response::Chunk(chunk) => {
                    let over = said.ends.iter().any(|end| end.index == chunk.index);
                    assert!(!over, "a chunk after the end: {chunk:?}");
                    said.chunks.push(chunk);
                }
                Response::Complete(end) => said.ends.push(end),
            },
            Err(status) => said.status = Some(status),
        }
    }
    stream.mark_completed();
    said
}

/// Runs a request that ends in order.
pub(crate) async fn run(client: &VllmEngineClient, request: GenerateRequest) -> Said {
    let said = read(client.generate(request).await.expect("is accepted")).await;
    assert!(said.status.is_none(), "{said:?}");
    said
}

/// Asserts that the server itself answered with `code`: what fails below gRPC the gateway blames on
/// the connection.
pub(crate) fn answered(status: &Status, code: Code) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!is_transport_failure(status), "{status:?}");
}

/// The load as the gateway keeps it after a poll.
pub(crate) async fn load(client: &VllmEngineClient) -> SchedulerLoadSnapshot {
    // What the gateway asks for.
    let include = ["core", "disagg", "queues", "memory"].map(str::to_owned).to_vec();
    let told = client.get_loads(include).await.expect("tells its load");
    let mut told = WorkerLoadResponse::from(told);
    assert_eq!((told.dp_rank_count, told.loads.len()), (1, 1), "{told:?}");
    told.loads.remove(0)
}

/// Asks for the load until so many requests run and wait.
pub(crate) async fn until_load(client: &VllmEngineClient, running: i32, waiting: i32) {
    let mut last = None;
    for _ in 0..REPORTS_MAX {
        let now = load(client).await;
        if (now.num_running_reqs, now.num_waiting_reqs) == (running, waiting) {
            return;
        }
        last = Some(now);
    }
    panic!("expected {running} to run and {waiting} to wait, found at last {last:#?}");
}
