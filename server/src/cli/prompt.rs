//! What to ask of a model: the flags of sampling and stopping, as fields of the protocol.

use std::time::Duration;

use sconce_proto::v1::{ChatMessage, ChatPrompt, CompleteRequest, Sampling};
use tonic::Request;

use crate::config::Span;

/// How tokens are drawn and when to stop. Unset flags take the model's own defaults.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Spread of the draw; 0 picks the likeliest token
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the likeliest tokens until their sum reaches this, in (0, 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Keep tokens at least this likely relative to the likeliest, in [0, 1]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide the logits of tokens seen before; 1 is off
    #[arg(long, value_name = "X")]
    repeat_penalty: Option<f32>,
    /// Subtract once from the logit of each token seen before
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    presence_penalty: Option<f32>,
    /// Subtract from the logit of a token for each time it was seen
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    frequency_penalty: Option<f32>,
    /// How many last tokens the penalties look at; 0 none, -1 all
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    repeat_last_n: Option<i32>,
    /// Make the draw reproducible
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Add BIAS to the logit of token ID; may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// Most completion tokens [default: until the context is full]
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<u32>,
    /// End at this text and cut it off; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// End at this token; may be repeated
    #[arg(long, value_name = "ID")]
    stop_token_id: Vec<u32>,
    /// Go on past the model's end-of-sequence tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Larger is admitted first
    #[arg(long, value_name = "N", allow_hyphen_values = true, default_value_t = 0)]
    priority: i32,
    /// Give up after this time, such as 30s
    #[arg(long, value_name = "TIME")]
    deadline: Option<Span>,
}

impl SamplingArgs {
    /// A request without a prompt.
    pub(crate) fn request(&self, model: &str) -> CompleteRequest {
        CompleteRequest {
            model: model.to_owned(),
            sampling: Some(Sampling {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                min_p: self.min_p,
                repeat_penalty: self.repeat_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                repeat_last_n: self.repeat_last_n,
                seed: self.seed,
                logit_bias: self.logit_bias.iter().copied().collect(),
            }),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_id.clone(),
            ignore_eos: self.ignore_eos,
            priority: self.priority,
            ..CompleteRequest::default()
        }
    }

    /// `message` with the deadline that was asked for.
    pub(crate) fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(Span(deadline)) = self.deadline {
            request.set_timeout(deadline.max(Duration::from_millis(1)));
        }
        request
    }
}

/// A conversation of one user message, after a system message if there is one.
pub(crate) fn chat(system: Option<&str>, user: String) -> ChatPrompt {
    let mut messages: Vec<ChatMessage> =
        system.map(|text| message("system", text)).into_iter().collect();
    messages.push(message("user", &user));
    ChatPrompt { messages, ..ChatPrompt::default() }
}

/// A message of `role`.
pub(crate) fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: Some(content.to_owned()),
        ..ChatMessage::default()
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let expected = || format!("expected ID=BIAS such as `42=-1.5`, found `{text}`");
    let (id, bias) = text.split_once('=').ok_or_else(expected)?;
    Ok((id.parse().map_err(|_| expected())?, bias.parse().map_err(|_| expected())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn request(line: &str) -> CompleteRequest {
        let words = std::iter::once("test").chain(line.split_whitespace());
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).sampling.request("m")
    }

    #[test]
    fn unset_flags_stay_unset_on_the_wire() {
        let expected = CompleteRequest {
            model: "m".into(),
            sampling: Some(Sampling::default()),
            ..CompleteRequest::default()
        };
        assert_eq!(request(""), expected);
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let made = request(
            "--temperature 0.5 --top-p 0.9 --top-k 40 --min-p 0.1 --repeat-penalty 1.1 \
             --presence-penalty -0.5 --frequency-penalty 0.25 --repeat-last-n -1 --seed 7 \
             --logit-bias 42=-1.5 -n 9 --stop a --stop b --stop-token-id 3 --ignore-eos \
             --priority -2",
        );
        let expected = CompleteRequest {
            model: "m".into(),
            sampling: Some(Sampling {
                temperature: Some(0.5),
                top_p: Some(0.9),
                top_k: Some(40),
                min_p: Some(0.1),
                repeat_penalty: Some(1.1),
                presence_penalty: Some(-0.5),
                frequency_penalty: Some(0.25),
                repeat_last_n: Some(-1),
                seed: Some(7),
                logit_bias: [(42, -1.5)].into(),
            }),
            max_tokens: Some(9),
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![3],
            ignore_eos: true,
            priority: -2,
            ..CompleteRequest::default()
        };
        assert_eq!(made, expected);
    }
}
