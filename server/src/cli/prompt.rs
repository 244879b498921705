//! What to ask of a model: the prompt in its forms, and the flags of sampling, stopping and of the
//! prefix cache, as fields of the protocol.

use std::time::Duration;

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::{
    CacheOptions, ChatMessage, ChatPrompt, CompleteRequest, Sampling, TokensPrompt,
};
use tonic::Request;

use super::error::CliError;
use super::output;
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

    /// `message` with the deadline that was asked for, in the trace of whoever runs this command.
    pub(crate) fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(Span(deadline)) = self.deadline {
            request.set_timeout(deadline.max(Duration::from_millis(1)));
        }
        for (variable, header) in TRACE_VARIABLES {
            let value = std::env::var(variable).ok().and_then(|value| value.parse().ok());
            if let Some(value) = value {
                request.metadata_mut().insert(header, value);
            }
        }
        request
    }
}

/// Variables by which programs hand their trace to those that they run, and the headers for it.
const TRACE_VARIABLES: [(&str, &str); 2] =
    [("TRACEPARENT", "traceparent"), ("TRACESTATE", "tracestate")];

/// In which form a prompt is sent.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PromptForm {
    /// Send the prompt as a user's message, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// A system message before the user's
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Read the prompt as token ids, separated by spaces or commas
    #[arg(long, conflicts_with = "chat")]
    tokens: bool,
}

impl PromptForm {
    /// The prompt in this form; standard input where `text` is none.
    pub(crate) fn prompt(&self, text: Option<String>) -> Result<Prompt, CliError> {
        let text = output::argument_or_stdin(text)?;
        if self.tokens {
            return Ok(Prompt::Tokens(TokensPrompt { ids: parse_ids(&text)? }));
        }
        if self.chat {
            return Ok(Prompt::Chat(chat(self.system.as_deref(), text)));
        }
        Ok(Prompt::Text(text))
    }
}

/// How the prefix cache takes part in a completion.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Prefix cache")]
pub(crate) struct CacheArgs {
    /// Share remembered state only with requests of the same salt
    #[arg(long, value_name = "TEXT")]
    salt: Option<String>,
    /// Neither use nor fill the cache
    #[arg(long, conflicts_with_all = ["pin", "restore_point"])]
    no_cache: bool,
    /// Never evict what this prompt leaves in the cache, until it is dropped as a snapshot
    #[arg(long)]
    pin: bool,
    /// Make it cheap to resume after N prompt tokens; may be repeated
    #[arg(long, value_name = "N")]
    restore_point: Vec<u32>,
}

impl CacheArgs {
    /// As a field of the protocol; unset where no flag was given.
    pub(crate) fn options(&self) -> Option<CacheOptions> {
        let options = CacheOptions {
            restore_points: self.restore_point.clone(),
            salt: self.salt.clone(),
            bypass: self.no_cache,
            pin: self.pin,
        };
        (options != CacheOptions::default()).then_some(options)
    }
}

/// Token ids, separated by white space or commas.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, CliError> {
    text.split(|letter: char| letter.is_whitespace() || letter == ',')
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse()
                .map_err(|_| CliError::Usage(format!("expected a token id, found `{word}`")))
        })
        .collect()
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
        #[command(flatten)]
        cache: CacheArgs,
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("test").chain(line.split_whitespace()))
    }

    fn request(line: &str) -> CompleteRequest {
        parse(line).unwrap_or_else(|error| panic!("{error}")).sampling.request("m")
    }

    #[test]
    fn token_ids_may_be_separated_by_spaces_or_commas() {
        assert_eq!(parse_ids("1, 2\n3").unwrap(), [1, 2, 3]);
        assert!(parse_ids("1 two").is_err());
    }

    #[test]
    fn flags_of_the_cache_reach_their_fields_and_unset_ones_send_nothing() {
        let options = |line| parse(line).unwrap_or_else(|error| panic!("{error}")).cache.options();
        assert_eq!(options(""), None);
        let bypass = CacheOptions { bypass: true, ..CacheOptions::default() };
        assert_eq!(options("--no-cache"), Some(bypass));
        let kept = CacheOptions {
            restore_points: vec![64, 9],
            salt: Some("s".into()),
            bypass: false,
            pin: true,
        };
        let line = "--restore-point 64 --restore-point 9 --salt s --pin";
        assert_eq!(options(line), Some(kept));
        assert!(parse("--no-cache --pin").is_err());
        assert!(parse("--no-cache --restore-point 1").is_err());
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
