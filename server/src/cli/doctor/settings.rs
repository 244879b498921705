//! The settings, and what they name: models, the cache directory, files of TLS and tokens, addresses.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{Access, access};
use sconce_models::{Checkpoint, LoadOptions, estimate};
use sconce_server::serve::{ListenAddress, ModelPlan, ServePlan, check_guards};

use super::{Check, running};
use crate::cli::credentials::CredentialArgs;
use crate::cli::output;
use crate::config::{ConfigError, Machine, default_file};

/// Whether the settings hold; the error says which does not and where it was set.
pub(super) fn configuration(
    file: Option<&Path>,
    planned: Result<&ServePlan, &ConfigError>,
) -> Check {
    match planned {
        Ok(_) => {
            let from = match file.or_else(default_file) {
                Some(file) => file.display().to_string(),
                None => "no file".to_owned(),
            };
            Check::ok("configuration", format!("valid; {from}, and the environment"))
        }
        Err(error) => {
            let advice = "mend the setting; what depends on it (models, memory, cache, addresses) \
                          was not looked at";
            Check::fail("configuration", error.to_string(), advice)
        }
    }
}

/// Whether each model is there and can be loaded, and whether they fit together.
pub(super) fn models(plan: &ServePlan) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut wanted: u64 = 0;
    for model in &plan.models {
        let name = format!("model {}", model.name);
        match fixed_bytes(model, plan) {
            Ok(None) => checks.push(Check::ok(name, "the simulated one")),
            Ok(Some((bytes, found))) => {
                wanted = wanted.saturating_add(bytes);
                checks.push(Check::ok(name, found));
            }
            Err(problem) => {
                let advice = format!("look at it with `sconce inspect {}`", model.path);
                checks.push(Check::fail(name, format!("{}: {problem}", model.path), advice));
            }
        }
    }
    if let Some(budget) = plan.engine.memory_budget.filter(|budget| wanted > *budget) {
        let found = format!(
            "weights, workspace and one sequence each take {}, the budget is {}",
            output::bytes(wanted),
            output::bytes(budget)
        );
        let advice = "raise engine.memory_budget, serve fewer models, or ones in fewer bits";
        checks.push(Check::fail("models together", found, advice));
    }
    if plan.models.is_empty() {
        checks.push(Check::ok("models", "none at start; `sconce load` brings them"));
    }
    checks
}

/// The bytes that a model needs to run one sequence, and words for it; `None` for the simulated one.
fn fixed_bytes(model: &ModelPlan, plan: &ServePlan) -> Result<Option<(u64, String)>, String> {
    if model.path.starts_with("sim:") {
        return Ok(None);
    }
    let checkpoint = Checkpoint::open(&model.path).map_err(|error| error.to_string())?;
    let about = checkpoint.describe().map_err(|error| error.to_string())?;
    let options = |context_length| LoadOptions {
        context_length,
        device: plan.engine.device,
        precision: plan.precision,
        step_tokens_max: plan.engine.prefill_chunk_tokens,
        sequences_max: plan.engine.sequences_max,
        ..LoadOptions::default()
    };
    let asked = model.context_length;
    let plain = estimate(&model.path, &options(asked)).map_err(|error| error.to_string())?;
    // Without a wish the server's limit counts, where it is less than what the model was trained for.
    let max = plan.engine.context_length_max;
    let memory = match asked {
        None if plain.context_length > max => {
            estimate(&model.path, &options(Some(max))).map_err(|error| error.to_string())?
        }
        _ => plain,
    };
    let bytes = memory.weights_bytes + memory.workspace_bytes + memory.state_bytes_at_context;
    let found = format!(
        "{} in {}, {} with one sequence of {} tokens",
        about.architecture,
        model.path,
        output::bytes(bytes),
        memory.context_length,
    );
    Ok(Some((bytes, found)))
}

/// Whether the cache directory can be used, how much of its budget is free, and who has it.
pub(super) fn cache_directory(plan: &ServePlan, server_runs: bool) -> Vec<Check> {
    const NAME: &str = "cache directory";
    let Some(directory) = &plan.cache.directory else {
        return vec![Check::ok(NAME, "none: nothing is remembered over restarts")];
    };
    let shown = directory.display();
    let existing = directory.ancestors().find(|path| path.exists());
    let existing = existing.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        let found = format!("{}: {}", existing.display(), io::Error::from(error));
        let advice = "give it to the user that serves, or name another in cache.directory";
        return vec![Check::fail(NAME, found, advice)];
    }
    let mut checks = Vec::new();
    match (Machine::read().disk)(directory) {
        Ok(room) => {
            let budget = plan.cache.disk;
            let (room, told) = (room, output::bytes);
            let found = format!("{shown}: room for {}, the budget is {}", told(room), told(budget));
            checks.push(if budget > room {
                Check::warn(NAME, found, "lower cache.disk or make room on the file system")
            } else {
                Check::ok(NAME, found)
            });
        }
        Err(error) => checks.push(Check::fail(NAME, format!("{shown}: {error}"), "look at it")),
    }
    checks.push(match sconce_cache::disk::holder(directory) {
        Ok(None) => Check::ok("cache lock", "free"),
        Ok(Some(holder)) if server_runs => Check::ok("cache lock", format!("held by {holder}")),
        Ok(Some(holder)) => {
            let advice = "one server at a time uses a directory: stop that process, or give this \
                          server another";
            Check::fail("cache lock", format!("held by {holder}, which did not answer"), advice)
        }
        Err(error) => Check::fail("cache lock", error.to_string(), "give it to the user"),
    });
    checks
}

/// Whether the files of TLS and tokens, and the directories of models, are such that a server starts.
pub(super) fn guards(plan: &ServePlan) -> Vec<Check> {
    let advice = "mend the file or the setting: a server does not start like this";
    let check = |(setting, outcome): (&'static str, Result<(), String>)| match outcome {
        Ok(()) => Check::ok(setting, "can be used"),
        Err(problem) => Check::fail(setting, problem, advice),
    };
    check_guards(plan).into_iter().map(check).collect()
}

/// Whether an address can be listened on, or a server of ours has it. One that runs with TLS or tokens
/// does not say there who it is, but has answered elsewhere.
pub(super) async fn address(listen: &ListenAddress, server_runs: bool) -> Check {
    let name = format!("address {listen}");
    let error = match taken(listen) {
        Ok(None) => return Check::ok(name, "free"),
        Ok(Some(error)) => error,
        Err(error) => return unusable(name, &error),
    };
    match running::look(&reachable(listen), &CredentialArgs::default()).await {
        Ok(server) => Check::ok(name, format!("a sconce {} listens there", server.version())),
        Err(_) if server_runs => Check::ok(name, TAKEN_BY_OURS),
        Err(_) => Check::fail(name, error.to_string(), TAKEN),
    }
}

/// The same of an address of the admin port, which does not say whose it is.
pub(super) fn admin(listen: &ListenAddress, server_runs: bool) -> Check {
    let name = format!("admin {listen}");
    match taken(listen) {
        Ok(None) => Check::ok(name, "free"),
        Ok(Some(_)) if server_runs => Check::ok(name, TAKEN_BY_OURS),
        Ok(Some(error)) => Check::fail(name, error.to_string(), TAKEN),
        Err(error) => unusable(name, &error),
    }
}

/// What is found of an address that the server that runs seems to have.
const TAKEN_BY_OURS: &str = "taken, as by the server that runs";

/// What to do about an address that somebody else has.
const TAKEN: &str = "another process has it: stop that or choose another address";

fn unusable(name: String, error: &io::Error) -> Check {
    let advice = "an address of this machine, with a port above 1023 unless privileged";
    Check::fail(name, error.to_string(), advice)
}

/// The error of listening on an address that somebody has; none if it is free.
///
/// # Errors
/// Any other reason why it cannot be listened on.
fn taken(listen: &ListenAddress) -> io::Result<Option<io::Error>> {
    let bound = match listen {
        ListenAddress::Tcp(address) => TcpListener::bind(address).map(drop),
        ListenAddress::Unix(path) => socket_place(path),
    };
    match bound {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// What binding a socket at `path` would meet, without making or removing anything.
fn socket_place(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
                // Nobody listens any more: a server replaces it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                Err(error) => Err(error),
            }
        }
        Ok(_) => Err(io::Error::other("the path exists and is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            Ok(access(folder.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)?)
        }
        Err(error) => Err(error),
    }
}

/// An address at which a server that listens on `listen` can be asked.
fn reachable(listen: &ListenAddress) -> String {
    match listen {
        ListenAddress::Tcp(address) if address.ip().is_unspecified() => {
            let here = match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            SocketAddr::new(here, address.port()).to_string()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_server_on_all_interfaces_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:50051", "127.0.0.1:50051"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:2", "10.0.0.1:2"),
            ("unix:/run/s.sock", "unix:/run/s.sock"),
        ] {
            assert_eq!(reachable(&listen.parse().unwrap()), asked);
        }
    }

    #[tokio::test]
    async fn an_address_is_free_taken_or_not_ours_to_take() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = ListenAddress::Tcp(other.local_addr().unwrap());
        // Hangs up on everybody, which no server of ours does; ends with the process.
        std::thread::spawn(move || other.incoming().for_each(drop));
        let taken = address(&listen, false).await;
        assert_eq!(taken.level, Level::Fail, "{taken:?}");
        assert_eq!(address(&listen, true).await.level, Level::Ok);
        assert_eq!(admin(&listen, false).level, Level::Fail);
        assert_eq!(admin(&listen, true).level, Level::Ok);
        assert_eq!(address(&"127.0.0.1:0".parse().unwrap(), false).await.level, Level::Ok);
        let folder = tempfile::tempdir().unwrap();
        let unix = |name: &str| ListenAddress::Unix(folder.path().join(name));
        assert_eq!(address(&unix("s.sock"), false).await.level, Level::Ok);
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(address(&unix("file"), false).await.level, Level::Fail);
        assert_eq!(address(&unix("no/such/folder.sock"), false).await.level, Level::Fail);
    }

    #[test]
    fn models_that_do_not_fit_together_fail() {
        let model = |name: &str, path: &str| ModelPlan {
            name: name.to_owned(),
            path: path.to_owned(),
            context_length: None,
            keep_alive: None,
        };
        let plan = ServePlan {
            models: vec![model("sim", "sim:"), model("gone", "/no/such/model")],
            ..ServePlan::default()
        };
        let levels: Vec<Level> = models(&plan).iter().map(|check| check.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Fail]);
    }
}
