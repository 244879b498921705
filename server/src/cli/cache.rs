//! `sconce cache`: what a running server remembers of prompts: the tree, and what of one prompt a
//! completion would resume.

pub(crate) mod report;
pub(crate) mod tree;

use sconce_proto::v1::complete_request::Prompt as CompletePrompt;
use sconce_proto::v1::match_prefix_request::Prompt;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::{DescribeCacheRequest, MatchPrefixRequest};
use serde_json::json;

use super::error::CliError;
use super::output;
use super::prompt::PromptForm;
use super::target::ServerArgs;

/// Arguments of `sconce cache`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Draw the prefix tree of a model, and the tiers that hold it
    Show(ShowArgs),
    /// Tell what a completion of a prompt would resume, without running it
    Match(MatchArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Name of the model
    model: String,
    /// Most nodes to show [default: 10000]
    #[arg(long, value_name = "N")]
    nodes_max: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
struct MatchArgs {
    /// Name of the model
    model: String,
    /// The prompt; standard input if there is none
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    #[command(flatten)]
    form: PromptForm,
    /// Look only among what requests of this salt left
    #[arg(long, value_name = "TEXT")]
    salt: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `sconce cache`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::Show(args) => show(args).await,
        Command::Match(args) => matched(args).await,
    }
}

async fn show(args: ShowArgs) -> Result<(), CliError> {
    let mut client = StateServiceClient::new(args.server.connect().await?);
    let request = DescribeCacheRequest { model: args.model.clone(), nodes_max: args.nodes_max };
    let cache = client.describe_cache(request).await?.into_inner();
    if args.json {
        return output::json(&tree::json(&args.model, &cache));
    }
    output::write(&tree::draw(&cache))
}

async fn matched(args: MatchArgs) -> Result<(), CliError> {
    let prompt = match args.form.prompt(args.prompt)? {
        CompletePrompt::Text(text) => Prompt::Text(text),
        CompletePrompt::Tokens(tokens) => Prompt::Tokens(tokens),
        CompletePrompt::Chat(chat) => Prompt::Chat(chat),
    };
    let mut client = StateServiceClient::new(args.server.connect().await?);
    let request = MatchPrefixRequest {
        model: args.model,
        prompt: Some(prompt),
        salt: args.salt,
        ..MatchPrefixRequest::default()
    };
    let answer = client.match_prefix(request).await?.into_inner();
    let report = answer.cache.unwrap_or_default();
    if args.json {
        let cache = report::json(&report);
        return output::json(&json!({ "prompt_tokens": answer.prompt_tokens, "cache": cache }));
    }
    let text = report::line(&report);
    output::line(format_args!("of {} prompt tokens: {text}", answer.prompt_tokens))
}
