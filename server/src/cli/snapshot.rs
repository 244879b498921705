//! `sconce snapshot`: keeps the state of prompts under names, and moves it between servers through
//! files (`file.rs` is their format, `place.rs` where they lie).

mod file;
mod place;
mod transfer;

use sconce_proto::v1::complete_request::Prompt as CompletePrompt;
use sconce_proto::v1::snapshot_request::Prompt;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::{DropSnapshotRequest, ListSnapshotsRequest, SnapshotInfo, SnapshotRequest};
use serde_json::{Value, json};
use std::time::Duration;

use super::cache::report::tier_name;
use super::credentials::Connection;
use super::error::CliError;
use super::output;
use super::prompt::PromptForm;
use super::target::{ServerArgs, only_model};
use crate::config::Span;

/// Arguments of `sconce snapshot`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Compute a prompt and keep its state under a name
    Create(CreateArgs),
    /// List what is kept
    List(ListArgs),
    /// Let snapshots go
    Drop(DropArgs),
    /// Write a snapshot to a file, or to an object store
    Export(transfer::ExportArgs),
    /// Keep a snapshot that was exported, on this or another server
    Import(transfer::ImportArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Name to keep it under
    name: String,
    /// The prompt; standard input if there is none
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    #[command(flatten)]
    form: PromptForm,
    /// Never evict it
    #[arg(long)]
    pin: bool,
    /// Let it go after this time, such as 12h
    #[arg(long, value_name = "TIME")]
    ttl: Option<Span>,
    /// Share it only with requests of the same salt
    #[arg(long, value_name = "TEXT")]
    salt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only those of this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Only those of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
struct DropArgs {
    /// Ids of the snapshots, as `sconce snapshot list` tells them
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

/// A model of a running server.
#[derive(Debug, clap::Args)]
struct ModelArgs {
    /// Name of the model; needed where the server has several
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

impl ModelArgs {
    /// A connection, and the name of the model.
    async fn open(&self) -> Result<(Connection, String), CliError> {
        let channel = self.server.connect().await?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => only_model(&channel).await?,
        };
        Ok((channel, model))
    }
}

/// Runs `sconce snapshot`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::Create(args) => create(args).await,
        Command::List(args) => list(args).await,
        Command::Drop(args) => drop_each(args).await,
        Command::Export(args) => transfer::export(args).await,
        Command::Import(args) => transfer::import(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), CliError> {
    let prompt = match args.form.prompt(args.prompt)? {
        CompletePrompt::Text(text) => Prompt::Text(text),
        CompletePrompt::Tokens(tokens) => Prompt::Tokens(tokens),
        CompletePrompt::Chat(chat) => Prompt::Chat(chat),
    };
    let ttl = args.ttl.map(|Span(ttl)| prost_types::Duration::try_from(ttl)).transpose();
    let ttl = ttl.map_err(|error| CliError::Usage(format!("--ttl: {error}")))?;
    let (channel, model) = args.model.open().await?;
    let request = SnapshotRequest {
        model,
        prompt: Some(prompt),
        name: args.name,
        pinned: args.pin,
        ttl,
        salt: args.salt,
        ..SnapshotRequest::default()
    };
    let answer = StateServiceClient::new(channel).snapshot(request).await?.into_inner();
    tell(&answer.snapshot.unwrap_or_default(), args.json)
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let mut client = StateServiceClient::new(args.server.connect().await?);
    let request = ListSnapshotsRequest { model: args.model, name: args.name };
    let snapshots = client.list_snapshots(request).await?.into_inner().snapshots;
    if args.json {
        return output::json(&snapshots.iter().map(to_json).collect());
    }
    let header = ["model", "name", "id", "tokens", "bytes", "tier", "pinned", "ends in"];
    let rows: Vec<Vec<String>> = snapshots.iter().map(row).collect();
    output::write(&output::table(&header, &[3, 4], &rows))
}

async fn drop_each(args: DropArgs) -> Result<(), CliError> {
    let mut client = StateServiceClient::new(args.server.connect().await?);
    for id in args.ids {
        client.drop_snapshot(DropSnapshotRequest { id: id.clone() }).await?;
        output::line(format_args!("{id} is dropped"))?;
    }
    Ok(())
}

/// Says what is kept now.
fn tell(snapshot: &SnapshotInfo, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return output::json(&to_json(snapshot));
    }
    output::line(format_args!(
        "{}: {} tokens of model {} as {}, {} in {} memory",
        snapshot.id,
        snapshot.token_count,
        snapshot.model,
        snapshot.name,
        output::bytes(snapshot.bytes),
        tier_name(snapshot.tier()),
    ))
}

fn row(snapshot: &SnapshotInfo) -> Vec<String> {
    let ends = time_left(snapshot).map(|left| {
        // Whole seconds are enough for people.
        humantime::format_duration(Duration::from_secs(left.as_secs())).to_string()
    });
    vec![
        snapshot.model.clone(),
        snapshot.name.clone(),
        snapshot.id.clone(),
        snapshot.token_count.to_string(),
        output::bytes(snapshot.bytes),
        tier_name(snapshot.tier()).to_owned(),
        if snapshot.pinned { "yes" } else { "no" }.to_owned(),
        ends.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn time_left(snapshot: &SnapshotInfo) -> Option<Duration> {
    snapshot.ttl.and_then(|ttl| Duration::try_from(ttl).ok())
}

/// A snapshot as JSON, named as in the protocol; times in seconds.
fn to_json(snapshot: &SnapshotInfo) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "token_count": snapshot.token_count,
        "bytes": snapshot.bytes,
        "tier": snapshot.tier().as_str_name(),
        "model": snapshot.model,
        "pinned": snapshot.pinned,
        "ttl": time_left(snapshot).map(|left| left.as_secs_f64()),
    })
}
