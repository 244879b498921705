//! `sconce tokenize`: text to token ids, with how the vocabulary spells each.

use sconce_proto::v1::TokenizeRequest;
use sconce_proto::v1::tokenize_request::Prompt;
use serde_json::json;

use super::error::CliError;
use super::output;
use super::prompt::chat;
use super::target::{Session, TargetArgs};

/// Arguments of `sconce tokenize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The text; standard input if there is none
    text: Option<String>,
    /// Tokenize the text as a user's message, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// Add what the tokenizer puts around a sequence [default: with text, not with --chat]
    #[arg(long, value_name = "BOOL")]
    add_special_tokens: Option<bool>,
    /// Print the ids alone, on one line
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs `sconce tokenize`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    let text = output::argument_or_stdin(args.text.clone())?;
    let session = Session::open(&args.target).await?;
    let prompt = if args.chat { Prompt::Chat(chat(None, text)) } else { Prompt::Text(text) };
    let request = TokenizeRequest {
        model: session.model.clone(),
        prompt: Some(prompt),
        add_special_tokens: args.add_special_tokens,
    };
    let answer = session.inference().tokenize(request).await;
    session.close().await?;
    let answer = answer?.into_inner();
    if args.json {
        return output::json(&json!({ "token_ids": answer.token_ids, "pieces": answer.pieces }));
    }
    if args.ids {
        let ids: Vec<String> = answer.token_ids.iter().map(u32::to_string).collect();
        return output::line(ids.join(" "));
    }
    let lines = answer.token_ids.iter().zip(&answer.pieces);
    output::write(
        &lines.map(|(id, piece)| format!("{id}\t{}\n", visible(piece))).collect::<String>(),
    )
}

/// A piece on one line of a terminal.
fn visible(piece: &str) -> String {
    let escape = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    piece.chars().map(escape).collect()
}
