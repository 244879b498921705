//! Whom a subcommand asks: a running server, or the very same server started in this process on a
//! private Unix socket. Either way the answer comes over the protocol; there is no second path.

use std::path::PathBuf;
use std::time::Duration;

use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{ListModelsRequest, LoadRequest};
use sconce_server::serve::Server;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::credentials::{Connection, CredentialArgs, connect};
use super::error::CliError;
use super::serve::EngineArgs;
use crate::config::{Flag, Layers};

/// Where a server is looked for when nothing is said.
pub(crate) const SERVER_DEFAULT: &str = "127.0.0.1:50051";

/// Largest message accepted from a server; token lists of long texts are the largest there are.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// A running server.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the server: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", default_value = SERVER_DEFAULT)]
    pub(crate) server: String,
    #[command(flatten)]
    credentials: CredentialArgs,
}

impl ServerArgs {
    /// Connects to it.
    pub(crate) async fn connect(&self) -> Result<Connection, CliError> {
        connect(&self.server, &self.credentials).await
    }
}

/// A model of a running server, or a checkpoint to run in this process.
#[derive(Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// Address of the server: HOST:PORT, https://HOST:PORT or unix:PATH [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR", conflicts_with = "path")]
    server: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Name of the model; needed where the server has several
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Run this checkpoint in process instead: a directory, a .gguf file, or sim:
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Most tokens of prompt and completion together, with --path
    #[arg(long, value_name = "TOKENS", requires = "path")]
    context_length: Option<u32>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A connection to a server and the name of a model it has loaded.
pub(crate) struct Session {
    /// The connection.
    pub(crate) channel: Connection,
    /// Name of the model.
    pub(crate) model: String,
    /// The server, where it runs in this process.
    local: Option<LocalServer>,
}

impl Session {
    /// Connects to what `args` name; with `--path`, starts a server and loads the checkpoint.
    pub(crate) async fn open(args: &TargetArgs) -> Result<Self, CliError> {
        if let Some(path) = &args.path {
            return Self::open_local(path, args).await;
        }
        if args.engine.is_given() {
            return Err(CliError::Usage(
                "--device, --exact, --threads and --config belong to a server of this process; \
                 give a checkpoint with --path"
                    .to_owned(),
            ));
        }
        let server = args.server.as_deref().unwrap_or(SERVER_DEFAULT);
        let channel = connect(server, &args.credentials).await?;
        let model = match &args.model {
            Some(model) => model.clone(),
            None => only_model(&channel).await?,
        };
        Ok(Self { channel, model, local: None })
    }

    async fn open_local(path: &str, args: &TargetArgs) -> Result<Self, CliError> {
        args.credentials.refuse("a server of this process")?;
        let local = LocalServer::start(&args.engine).await?;
        let channel = connect(&local.address, &CredentialArgs::default()).await?;
        let model = args.model.clone().unwrap_or_else(|| "local".to_owned());
        let request = LoadRequest {
            model: model.clone(),
            path: absolute(path)?,
            context_length: args.context_length,
            ..LoadRequest::default()
        };
        super::load::load(channel.clone(), request).await?;
        Ok(Self { channel, model, local: Some(local) })
    }

    /// A client for completions and tokens.
    pub(crate) fn inference(&self) -> InferenceServiceClient<Connection> {
        InferenceServiceClient::new(self.channel.clone())
            .max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// Ends the server of this process, if there is one.
    pub(crate) async fn close(self) -> Result<(), CliError> {
        drop(self.channel);
        match self.local {
            Some(local) => local.stop().await,
            None => Ok(()),
        }
    }
}

/// A server in this process.
struct LocalServer {
    address: String,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<(), CliError>>,
    /// Holds the socket; removed at the end.
    _folder: tempfile::TempDir,
}

impl LocalServer {
    async fn start(engine: &EngineArgs) -> Result<Self, CliError> {
        // Created readable by this user alone, so that nobody else finds the socket.
        let folder = tempfile::tempdir()
            .map_err(|source| CliError::io("cannot make a folder for a socket", source))?;
        let address = format!("unix:{}", folder.path().join("sconce.sock").display());
        let mut flags = engine.flags();
        flags.push(Flag::new("--path", ("server", "listen"), address.as_str()));
        let layers = Layers::new(engine.config.as_deref(), flags)?;
        let mut config = layers.extract()?;
        // Only the checkpoint that was asked for is run.
        config.models.clear();
        // Whoever finds the socket is this user.
        config.server.unguard();
        let mut plan = config.plan(&layers)?;
        // Nobody else knows of this server, so nobody has to notice that it goes.
        plan.drain.withdrawal = Duration::ZERO;
        let server = Server::bind(plan).await.map_err(super::serve::serve_error)?;
        let (shutdown, signal) = oneshot::channel();
        let task = tokio::spawn(async move {
            // A dropped sender means shutdown as well.
            let run = server.run(async { drop(signal.await) });
            run.await.map_err(super::serve::serve_error)
        });
        Ok(Self { address, shutdown, task, _folder: folder })
    }

    async fn stop(self) -> Result<(), CliError> {
        drop(self.shutdown);
        self.task.await.map_err(|error| CliError::Internal(format!("server: {error}")))?
    }
}

/// `path` as another working directory would see it; `sim:` stays as it is.
pub(crate) fn absolute(path: &str) -> Result<String, CliError> {
    if path.starts_with("sim:") {
        return Ok(path.to_owned());
    }
    let absolute: PathBuf = std::path::absolute(path)
        .map_err(|source| CliError::io(format!("path `{path}`"), source))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|_| CliError::Usage(format!("path `{path}` is not UTF-8")))
}

/// The one model that the server has loaded.
pub(crate) async fn only_model(channel: &Connection) -> Result<String, CliError> {
    let mut client = ModelServiceClient::new(channel.clone());
    let listed = client.list_models(ListModelsRequest {}).await?.into_inner();
    let mut names: Vec<String> = listed.models.into_iter().map(|model| model.model).collect();
    match names.len() {
        1 => Ok(names.remove(0)),
        0 => Err(CliError::Unavailable(
            "the server has no model loaded; load one with `sconce load NAME PATH`".to_owned(),
        )),
        _ => Err(CliError::Usage(format!(
            "the server has several models; name one with --model: {}",
            names.join(", ")
        ))),
    }
}
