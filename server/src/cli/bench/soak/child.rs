//! The server under load: a process of its own, so that what it holds can be told from what its
//! clients hold. Its memory is `VmRSS` of `/proc/PID/status`, its files are `/proc/PID/fd`.

use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use sconce_proto::health::HealthCheckRequest;
use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::health::health_client::HealthClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{GetStatusRequest, GetStatusResponse};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::MODEL;
use crate::cli::bench::server::client::CONNECTIONS_MAX;
use crate::cli::credentials::{Connection, CredentialArgs, connect};
use crate::cli::error::CliError;

/// How often a server is asked whether anything runs.
const IDLE_INTERVAL: Duration = Duration::from_millis(50);
/// Longest that a server may take to end when it is told to.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// How the server is started.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) path: String,
    pub(super) sequences: usize,
    pub(super) waiting: usize,
    pub(super) cache: u64,
    pub(super) threads: Option<usize>,
}

/// See the module. Killed when dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    id: u32,
    address: String,
    /// Where everything but requests is asked.
    channel: Connection,
    /// Holds the socket.
    _folder: tempfile::TempDir,
}

/// What a server holds when nobody asks it anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// Resident memory, in bytes.
    pub(super) resident: u64,
    /// The part of it that is no file.
    pub(super) anonymous: u64,
    /// Open file descriptors.
    pub(super) files: u64,
    /// What the ledger has in all tiers and classes. On the device remembered state and that of
    /// sequences share a pool, so that only their sum stays the same.
    pub(super) ledger: u64,
    /// What it has as remembered state.
    pub(super) cached: u64,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:.1} MiB resident ({:.1} anonymous), {} files, {:.1} MiB in the ledger, {:.1} MiB \
             remembered",
            mebibytes(self.resident),
            mebibytes(self.anonymous),
            self.files,
            mebibytes(self.ledger),
            mebibytes(self.cached),
        )
    }
}

impl Reading {
    /// For programs.
    pub(super) fn to_json(self) -> Value {
        json!({
            "resident_bytes": self.resident,
            "anonymous_bytes": self.anonymous,
            "open_files": self.files,
            "ledger_bytes": self.ledger,
            "cached_bytes": self.cached,
        })
    }
}

impl Child {
    /// Starts a server and waits until its model is loaded.
    pub(super) async fn start(settings: &Settings) -> Result<Self, CliError> {
        let io = |context: &'static str| move |source| CliError::io(context, source);
        let folder = tempfile::tempdir().map_err(io("cannot make a folder for a socket"))?;
        let address = format!("unix:{}", folder.path().join("sconce.sock").display());
        let program = std::env::current_exe().map_err(io("cannot find this program"))?;
        let mut command = tokio::process::Command::new(program);
        command
            .args(["serve", "--listen", &address])
            .arg("--model")
            .arg(format!("{MODEL}={}", settings.path))
            .env("SCONCE__ENGINE__SEQUENCES_MAX", settings.sequences.to_string())
            .env("SCONCE__ENGINE__WAITING_MAX", settings.waiting.to_string())
            .env("SCONCE__CACHE__DEVICE", settings.cache.to_string())
            .env("SCONCE__CACHE__HOST", settings.cache.to_string())
            .env("SCONCE__SERVER__WITHDRAWAL", "0s")
            .env("SCONCE_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if let Some(threads) = settings.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let mut process = command.spawn().map_err(io("cannot start a server"))?;
        let gone = || CliError::Unavailable("the server ended before it listened".to_owned());
        let id = process.id().ok_or_else(gone)?;
        let stdout = process.stdout.take().ok_or_else(gone)?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line).await;
        if read.map_err(io("cannot read from the server"))? == 0 {
            return Err(gone());
        }
        let channel = connect(&address, &CredentialArgs::default()).await?;
        let child = Self { process, id, address, channel, _folder: folder };
        child.ready().await?;
        Ok(child)
    }

    async fn ready(&self) -> Result<(), CliError> {
        let request = HealthCheckRequest { service: "readiness".to_owned() };
        let mut states = HealthClient::new(self.channel.clone()).watch(request).await?.into_inner();
        while let Some(state) = states.message().await? {
            if state.status() == ServingStatus::Serving {
                return Ok(());
            }
        }
        Err(CliError::Unavailable("the server ended before its model was loaded".to_owned()))
    }

    /// Connections for requests.
    pub(super) async fn connect(&self, count: usize) -> Result<Vec<Connection>, CliError> {
        if !(1..=CONNECTIONS_MAX).contains(&count) {
            return Err(CliError::Usage(format!(
                "--connections: expected 1 to {CONNECTIONS_MAX}, found {count}"
            )));
        }
        let mut channels = Vec::new();
        for _ in 0..count {
            channels.push(connect(&self.address, &CredentialArgs::default()).await?);
        }
        Ok(channels)
    }

    /// A connection for everything else.
    pub(super) fn channel(&self) -> Connection {
        self.channel.clone()
    }

    async fn status(&self) -> Result<GetStatusResponse, CliError> {
        let mut client = ModelServiceClient::new(self.channel.clone());
        Ok(client.get_status(GetStatusRequest {}).await?.into_inner())
    }

    /// Waits until no request waits or runs.
    pub(super) async fn idle(&self, patience: Duration) -> Result<(), CliError> {
        let idle = async {
            loop {
                let sequences = self.status().await?.sequences.unwrap_or_default();
                if sequences.waiting + sequences.running == 0 {
                    return Ok(());
                }
                tokio::time::sleep(IDLE_INTERVAL).await;
            }
        };
        match tokio::time::timeout(patience, idle).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let status = self.status().await?.sequences.unwrap_or_default();
                Err(CliError::Missed(format!(
                    "expected no request {} s after the last was answered, found {} that wait and \
                     {} that run",
                    patience.as_secs(),
                    status.waiting,
                    status.running
                )))
            }
        }
    }

    /// What it holds.
    pub(super) async fn read(&self) -> Result<Reading, CliError> {
        let folder = PathBuf::from(format!("/proc/{}", self.id));
        let io = |source| CliError::io(format!("cannot read {}", folder.display()), source);
        let text = tokio::fs::read_to_string(folder.join("status")).await.map_err(io)?;
        let mut files = 0;
        let mut entries = tokio::fs::read_dir(folder.join("fd")).await.map_err(io)?;
        while entries.next_entry().await.map_err(io)?.is_some() {
            files += 1;
        }
        let memory = self.status().await?.memory;
        let cached: u64 = memory.iter().map(|tier| tier.cached_state_bytes).sum();
        let others = memory
            .iter()
            .map(|tier| tier.weights_bytes + tier.workspace_bytes + tier.live_state_bytes);
        let bytes = |name: &str| {
            let found = kibibytes(&text, name).map(|kibibytes| kibibytes << 10);
            let status = folder.join("status");
            // A leak must not hide behind a 0.
            found.ok_or_else(|| {
                CliError::Internal(format!("expected a line `{name}` in {}", status.display()))
            })
        };
        Ok(Reading {
            resident: bytes("VmRSS:")?,
            anonymous: bytes("RssAnon:")?,
            files,
            ledger: cached + others.sum::<u64>(),
            cached,
        })
    }

    /// Tells it to stop, and waits until it has.
    pub(super) async fn stop(&mut self) -> Result<(), CliError> {
        let id = i32::try_from(self.id).ok().and_then(rustix::process::Pid::from_raw);
        let told = id.map(|id| rustix::process::kill_process(id, rustix::process::Signal::TERM));
        if let Some(Err(error)) = told {
            return Err(CliError::io("cannot tell the server to stop", error.into()));
        }
        match tokio::time::timeout(STOP_PATIENCE, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(CliError::Missed(format!("the server ended with {status}"))),
            Ok(Err(source)) => Err(CliError::io("cannot wait for the server", source)),
            Err(_) => Err(CliError::Missed("the server did not end when told to".to_owned())),
        }
    }
}

/// The value of a line such as `VmRSS:   123 kB`.
fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let text = "Name:\tsconce\nVmRSS:\t   5120 kB\nRssAnon:\t    1024 kB\n";
        assert_eq!(kibibytes(text, "VmRSS:"), Some(5120));
        assert_eq!(kibibytes(text, "RssAnon:"), Some(1024));
        assert_eq!(kibibytes(text, "VmSwap:"), None);
    }
}
