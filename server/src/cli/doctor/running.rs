//! A server that runs: whether it answers, and what its models do.

use std::time::Duration;

use sconce_proto::health::HealthCheckRequest;
use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::health::health_client::HealthClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{GetStatusRequest, GetStatusResponse, ModelState};

use super::Check;
use crate::cli::credentials::{CredentialArgs, connect};
use crate::cli::error::CliError;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What this program is.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a server said of itself.
#[derive(Debug)]
pub(super) struct Running {
    ready: ServingStatus,
    status: GetStatusResponse,
}

impl Running {
    /// Its version.
    pub(super) fn version(&self) -> &str {
        &self.status.version
    }
}

/// Asks the server at `address`.
///
/// # Errors
/// Nobody there, no answer in time, or one that is no server of ours.
pub(super) async fn look(address: &str, credentials: &CredentialArgs) -> Result<Running, CliError> {
    let asked = async {
        let channel = connect(address, credentials).await?;
        let service = "readiness".to_owned();
        let health = HealthClient::new(channel.clone());
        let ready = { health }.check(HealthCheckRequest { service }).await?.into_inner().status();
        let mut models = ModelServiceClient::new(channel);
        let status = models.get_status(GetStatusRequest {}).await?.into_inner();
        Ok(Running { ready, status })
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(PATIENCE);
        Err(CliError::Unavailable(format!("{address} did not answer within {limit}")))
    })
}

/// What the server at `address` is found to be; `named` if it was asked for.
pub(super) fn checks(address: &str, named: bool, server: Result<Running, CliError>) -> Vec<Check> {
    match server {
        Ok(server) => judge(address, &server),
        Err(error) if named => {
            let advice = "start it with `sconce serve`, or name where it listens with --server";
            vec![Check::fail("server", error.to_string(), advice)]
        }
        Err(_) => vec![Check::ok("server", format!("none answers at {address}"))],
    }
}

fn judge(address: &str, server: &Running) -> Vec<Check> {
    let (status, version) = (&server.status, server.version());
    let found = format!("sconce {version} answers at {address}");
    let mut checks = vec![if version == VERSION {
        Check::ok("server", found)
    } else {
        let advice = format!("this program is {VERSION}; use the same version of both");
        Check::warn("server", found, advice)
    }];
    checks.push(match (server.ready, status.draining) {
        (ServingStatus::Serving, _) => Check::ok("health", "ready"),
        (_, true) => Check::warn("health", "it drains", "wait for it to end, or start it again"),
        (_, false) if status.models.is_empty() => {
            Check::warn("health", "no model is loaded", "load one with `sconce load NAME PATH`")
        }
        (_, false) => Check::warn("health", "not ready", "see its models below and its log"),
    });
    for model in &status.models {
        let name = format!("serving {}", model.model);
        let counts = model.sequences.unwrap_or_default();
        let busy = format!("{} running, {} waiting", counts.running, counts.waiting);
        checks.push(match model.state() {
            ModelState::Ready => Check::ok(name, format!("ready, {busy}")),
            ModelState::Failed => {
                let advice = "its log says why; `sconce unload` it and load it again";
                Check::fail(name, "broke down", advice)
            }
            ModelState::Loading => Check::ok(name, "loading"),
            ModelState::Unloading => Check::ok(name, format!("unloading, {busy}")),
            ModelState::Unspecified => {
                Check::warn(name, "in a state that this program does not know", "update it")
            }
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use sconce_proto::v1::ModelStatus;

    use super::super::Level;
    use super::*;

    #[test]
    fn a_model_that_broke_down_is_a_failure() {
        let model = |state: ModelState| ModelStatus {
            model: "m".into(),
            state: state.into(),
            ..ModelStatus::default()
        };
        let status = GetStatusResponse {
            version: "0.0.1".into(),
            models: vec![model(ModelState::Ready), model(ModelState::Failed)],
            ..GetStatusResponse::default()
        };
        let server = Running { ready: ServingStatus::Serving, status };
        let levels: Vec<Level> = judge("a:1", &server).iter().map(|check| check.level).collect();
        assert_eq!(
            levels,
            [Level::Warn, Level::Ok, Level::Ok, Level::Fail],
            "another version warns"
        );
    }

    #[test]
    fn nobody_there_is_a_failure_only_if_somebody_was_named() {
        let gone = || Err(CliError::Unavailable("gone".into()));
        assert_eq!(checks("a:1", true, gone())[0].level, Level::Fail);
        assert_eq!(checks("a:1", false, gone())[0].level, Level::Ok);
    }
}
