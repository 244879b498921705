//! `sconce complete`: one prompt, its completion streamed to standard output. What the stream of a
//! completion looks like to a person or to a program is here too, for `chat.rs`.

use std::time::Duration;

use sconce_proto::v1::complete_response::Event;
use sconce_proto::v1::{
    CompleteRequest, CompleteResponse, Delta, FinishReason, Finished, Started, TokenLogprob,
};
use serde_json::{Value, json};
use tonic::Streaming;

use super::cache::report;
use super::error::CliError;
use super::output;
use super::prompt::{CacheArgs, PromptForm, SamplingArgs};
use super::target::{Session, TargetArgs};

/// Arguments of `sconce complete`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The prompt; standard input if there is none
    prompt: Option<String>,
    #[command(flatten)]
    form: PromptForm,
    /// Print each message of the stream as a line of JSON
    #[arg(long)]
    json: bool,
    /// Report the logprob of each token and of N alternatives
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<u32>,
    /// Say what of the prompt was remembered, and why no more
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs `sconce complete`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    let prompt = args.form.prompt(args.prompt.clone())?;
    let session = Session::open(&args.target).await?;
    let request = CompleteRequest {
        prompt: Some(prompt),
        logprobs: args.logprobs,
        cache: args.cache.options(),
        ..args.sampling.request(&session.model)
    };
    let outcome = complete(&session, &args, request).await;
    session.close().await?;
    outcome
}

async fn complete(
    session: &Session,
    args: &Args,
    request: CompleteRequest,
) -> Result<(), CliError> {
    let request = args.sampling.timed(request);
    let mut stream = session.inference().complete(request).await?.into_inner();
    if args.json {
        while let Some(message) = stream.message().await? {
            if let Some(event) = message.event {
                output::line(event_json(&event))?;
            }
        }
        return Ok(());
    }
    let mut transcript = Transcript::default();
    let outcome = transcript.print(&mut stream).await;
    transcript.close()?;
    if args.verbose {
        transcript.remark_cache();
    }
    outcome
}

/// What came of a stream so far.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    started: Option<Started>,
    /// All of its text.
    pub(crate) text: String,
    finished: Option<Finished>,
}

impl Transcript {
    /// Prints the text of a stream as it comes. The account may have come before an error: it does
    /// when a deadline passes.
    pub(crate) async fn print(
        &mut self,
        stream: &mut Streaming<CompleteResponse>,
    ) -> Result<(), CliError> {
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Started(started)) => self.started = Some(started),
                Some(Event::Delta(delta)) => {
                    output::write(&delta.text)?;
                    self.text += &delta.text;
                }
                Some(Event::Finished(finished)) => self.finished = Some(finished),
                None => {}
            }
        }
        Ok(())
    }

    /// Ends the line of the text and remarks the account.
    pub(crate) fn close(&self) -> Result<(), CliError> {
        output::write("\n")?;
        if let Some(finished) = &self.finished {
            output::note(&account(self.started.as_ref(), finished));
        }
        Ok(())
    }

    /// Remarks what was remembered of the prompt.
    fn remark_cache(&self) {
        if let Some(report) = self.started.as_ref().and_then(|started| started.cache.as_ref()) {
            output::note(&format!("[cache: {}]", report::line(report)));
        }
    }
}

/// The account of a completion in one line.
fn account(started: Option<&Started>, finished: &Finished) -> String {
    let usage = finished.usage.unwrap_or_default();
    let timings = finished.timings.unwrap_or_default();
    let (prefill, decode) = (duration(timings.prefill), duration(timings.decode));
    let computed = started
        .and_then(|started| started.cache)
        .map_or(usage.prompt_tokens.saturating_sub(usage.cached_tokens), |cache| {
            cache.recomputed_tokens
        });
    // The first token comes out of the prefill, so decode made one less.
    let decoded = usage.completion_tokens.saturating_sub(1);
    format!(
        "[{} prompt tokens, {} cached; prefill {:.0} ms ({}); {} tokens, decode {:.0} ms ({}); \
         first token after {:.0} ms; {}]",
        usage.prompt_tokens,
        usage.cached_tokens,
        prefill.as_secs_f64() * 1e3,
        rate(computed, prefill),
        usage.completion_tokens,
        decode.as_secs_f64() * 1e3,
        rate(decoded, decode),
        duration(timings.first_token).as_secs_f64() * 1e3,
        reason(finished),
    )
}

fn reason(finished: &Finished) -> String {
    let name = match finished.reason() {
        FinishReason::Unspecified => "ended",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
        FinishReason::Shutdown => "shutdown",
    };
    match (&finished.matched_stop, finished.stop_token_id) {
        (Some(text), _) => format!("{name} at {text:?}"),
        (None, Some(id)) => format!("{name} at token {id}"),
        (None, None) => name.to_owned(),
    }
}

fn rate(tokens: u32, time: Duration) -> String {
    if tokens == 0 || time.is_zero() {
        return "- tok/s".to_owned();
    }
    format!("{:.1} tok/s", f64::from(tokens) / time.as_secs_f64())
}

fn duration(time: Option<prost_types::Duration>) -> Duration {
    time.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default()
}

/// A message of the stream as JSON, named as in the protocol; durations in seconds.
fn event_json(event: &Event) -> Value {
    match event {
        Event::Started(started) => {
            let cache = started.cache.as_ref().map(report::json);
            json!({ "started": { "prompt_tokens": started.prompt_tokens, "cache": cache } })
        }
        Event::Delta(delta) => json!({ "delta": delta_json(delta) }),
        Event::Finished(finished) => json!({ "finished": finished_json(finished) }),
    }
}

fn delta_json(delta: &Delta) -> Value {
    let mut value = json!({ "text": delta.text, "token_ids": delta.token_ids });
    if !delta.logprobs.is_empty() {
        value["logprobs"] = delta.logprobs.iter().map(logprob_json).collect();
    }
    value
}

fn logprob_json(token: &TokenLogprob) -> Value {
    let top = token.top.iter();
    json!({
        "token_id": token.token_id,
        "logprob": token.logprob,
        "top": top
            .map(|top| json!({ "token_id": top.token_id, "logprob": top.logprob }))
            .collect::<Vec<_>>(),
    })
}

fn finished_json(finished: &Finished) -> Value {
    let usage = finished.usage.unwrap_or_default();
    let timings = finished.timings.unwrap_or_default();
    json!({
        "reason": finished.reason().as_str_name(),
        "matched_stop": finished.matched_stop,
        "stop_token_id": finished.stop_token_id,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "timings": {
            "queue": duration(timings.queue).as_secs_f64(),
            "prefill": duration(timings.prefill).as_secs_f64(),
            "decode": duration(timings.decode).as_secs_f64(),
            "first_token": timings.first_token.map(|time| duration(Some(time)).as_secs_f64()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_proto::v1::{Timings, Usage};

    #[test]
    fn the_account_counts_decode_without_the_first_token() {
        let time = |milliseconds| {
            Some(prost_types::Duration { seconds: 0, nanos: milliseconds * 1_000_000 })
        };
        let finished = Finished {
            reason: FinishReason::Stop.into(),
            matched_stop: Some("\n".into()),
            usage: Some(Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 11 }),
            timings: Some(Timings {
                queue: time(1),
                prefill: time(60),
                decode: time(100),
                first_token: time(61),
            }),
            ..Finished::default()
        };
        assert_eq!(
            account(None, &finished),
            "[10 prompt tokens, 4 cached; prefill 60 ms (100.0 tok/s); 11 tokens, decode 100 ms \
             (100.0 tok/s); first token after 61 ms; stop at \"\\n\"]"
        );
    }
}
