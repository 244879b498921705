//! `sconce detokenize`: token ids to text.

use sconce_proto::v1::DetokenizeRequest;

use super::error::CliError;
use super::output;
use super::prompt::parse_ids;
use super::target::{Session, TargetArgs};

/// Arguments of `sconce detokenize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The ids, separated by spaces or commas; standard input if there are none
    ids: Vec<String>,
    /// Leave control tokens out of the text
    #[arg(long)]
    skip_special_tokens: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs `sconce detokenize`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    let argument = (!args.ids.is_empty()).then(|| args.ids.join(" "));
    let token_ids = parse_ids(&output::argument_or_stdin(argument)?)?;
    let session = Session::open(&args.target).await?;
    let request = DetokenizeRequest {
        model: session.model.clone(),
        token_ids,
        skip_special_tokens: Some(args.skip_special_tokens),
    };
    let answer = session.inference().detokenize(request).await;
    session.close().await?;
    output::line(answer?.into_inner().text)
}
