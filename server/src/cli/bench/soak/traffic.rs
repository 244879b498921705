//! What clients do: most ask and read, some hang up, some have no time, some ask what cannot be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::{CompleteRequest, Sampling, TokensPrompt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;

use super::MODEL;
use crate::cli::bench::server::Arrivals;
use crate::cli::bench::server::client::{Ask, Clients, Outcome, Sample};
use crate::cli::bench::server::percentiles::Percentiles;
use crate::cli::bench::server::workload::Workload;
use crate::cli::error::code_name;

/// Of a hundred requests, so many are hung up on while they are answered, so many are given up after
/// a while, have a deadline that may pass, or cannot be.
const HUNG_UP: usize = 6;
const GIVEN_UP: usize = 6;
const SHORT_OF_TIME: usize = 6;
const WRONG: usize = 4;
/// Longest that those have who give up or are short of time, in milliseconds.
const PATIENCE_MAX: usize = 4000;
/// Violations that are told; one is enough to fail.
const VIOLATIONS_MAX: usize = 20;
/// A segment is counted from this share of its time on, when as much is open as will be.
const LEAD: f64 = 0.25;

/// What a client is like.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Plain,
    /// Gives up after this time, however far the answer is.
    GivesUp(Duration),
    /// Has a deadline.
    ShortOfTime,
    /// Asks what cannot be, of which there are several kinds.
    Wrong(usize),
}

/// What came of one client.
struct Call {
    manner: Manner,
    /// From the beginning of the segment.
    ended: Duration,
    /// `None` of one that gave up.
    sample: Option<Sample>,
}

/// What came of a while.
#[derive(Debug, Clone, Default)]
pub(super) struct Segment {
    /// Seconds that are counted.
    seconds: f64,
    /// Tokens, of prompts and answers, of requests that were done in them.
    tokens: usize,
    /// Requests that ended in them, other than by a refusal of what was too much.
    served: usize,
    /// Requests that were done, in all of the time.
    pub(super) done: usize,
    /// Until a request was refused with RESOURCE_EXHAUSTED.
    pub(super) refusals: Percentiles,
    /// How the others ended, and how many.
    pub(super) others: BTreeMap<String, u64>,
    /// How often another model was loaded meanwhile.
    pub(super) loads: u64,
}

impl Segment {
    #[cfg(test)]
    pub(super) fn of(seconds: f64, tokens: usize, refusals: Percentiles) -> Self {
        Self { seconds, tokens, refusals, ..Self::default() }
    }

    /// Tokens a second.
    pub(super) fn token_rate(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Requests a second.
    pub(super) fn request_rate(&self) -> f64 {
        self.served as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "tokens_per_second": self.token_rate(),
            "requests_per_second": self.request_rate(),
            "done": self.done,
            "refusal_seconds": self.refusals.to_json(),
            "others": self.others,
            "loads": self.loads,
        })
    }
}

/// Makes requests and judges answers.
#[derive(Debug)]
pub(super) struct Traffic {
    clients: Arc<Clients>,
    workload: Workload,
    violations: Vec<String>,
}

impl Traffic {
    /// Requests on `clients`.
    pub(super) fn new(clients: Clients, workload: Workload) -> Self {
        Self { clients: Arc::new(clients), workload, violations: Vec::new() }
    }

    /// Answers that should not have been, the first of them.
    pub(super) fn violations(self) -> Vec<String> {
        self.violations
    }

    /// Remembers what should not have been.
    pub(super) fn found(&mut self, violation: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(violation);
        }
    }

    /// Asks for a while, and waits for every answer.
    pub(super) async fn run(&mut self, arrivals: Arrivals, time: Duration) -> Segment {
        let began = Instant::now();
        let mut open = JoinSet::new();
        let (mut segment, mut refusals) = (Segment::default(), Vec::new());
        let mut planned = Duration::ZERO;
        let window = (time.mul_f64(LEAD), time);
        segment.seconds = (window.1 - window.0).as_secs_f64();
        loop {
            match arrivals {
                Arrivals::Rate(rate) => {
                    planned += Duration::from_secs_f64(self.workload.draw().interval(rate));
                    if planned > time {
                        break;
                    }
                    tokio::time::sleep_until((began + planned).into()).await;
                    if open.len() < self.clients.open_max() {
                        self.send(&mut open, planned, began);
                    }
                }
                Arrivals::Streams(streams) => {
                    planned = began.elapsed();
                    if planned > time {
                        break;
                    }
                    while open.len() < streams {
                        self.send(&mut open, planned, began);
                    }
                    if let Some(Ok(call)) = open.join_next().await {
                        self.take(call, window, &mut segment, &mut refusals);
                    }
                }
            }
            while let Some(Ok(call)) = open.try_join_next() {
                self.take(call, window, &mut segment, &mut refusals);
            }
        }
        while let Some(joined) = open.join_next().await {
            if let Ok(call) = joined {
                self.take(call, window, &mut segment, &mut refusals);
            }
        }
        segment.refusals = Percentiles::of(refusals);
        segment
    }

    fn send(&mut self, open: &mut JoinSet<Call>, planned: Duration, began: Instant) {
        let mut ask = self.workload.next();
        let draw = self.workload.draw();
        let patience = Duration::from_millis(1 + draw.below(PATIENCE_MAX) as u64);
        let tokens = 1 + draw.below(ask.completion as usize);
        let given_up = HUNG_UP + GIVEN_UP;
        let short = given_up + SHORT_OF_TIME;
        let manner = match draw.below(100) {
            drawn if drawn < HUNG_UP => {
                ask.hang_up_after = Some(tokens);
                Manner::Plain
            }
            drawn if drawn < given_up => Manner::GivesUp(patience),
            drawn if drawn < short => {
                ask.deadline = Some(patience);
                Manner::ShortOfTime
            }
            drawn if drawn < short + WRONG => Manner::Wrong(draw.below(WRONGS)),
            _ => Manner::Plain,
        };
        let clients = Arc::clone(&self.clients);
        open.spawn(call(clients, manner, ask, planned, began));
    }

    fn take(
        &mut self,
        call: Call,
        window: (Duration, Duration),
        segment: &mut Segment,
        refusals: &mut Vec<f64>,
    ) {
        let counts = call.ended >= window.0 && call.ended <= window.1;
        let Some(sample) = call.sample else {
            *segment.others.entry("given up".to_owned()).or_default() += 1;
            segment.served += usize::from(counts);
            return;
        };
        let refused = sample.outcome == Outcome::Failed(Code::ResourceExhausted);
        segment.served += usize::from(counts && !refused);
        match sample.outcome {
            Outcome::Done => {
                segment.done += 1;
                if counts {
                    segment.tokens += sample.prompt_tokens + sample.completion_tokens;
                }
                self.workload.take(sample.conversation);
            }
            Outcome::HungUp => *segment.others.entry("hung up".to_owned()).or_default() += 1,
            Outcome::Failed(Code::ResourceExhausted) => {
                if sample.first.is_some() {
                    self.found(format!("{:?} was refused after it had begun", call.manner));
                }
                refusals.push(sample.end.saturating_sub(sample.late).as_secs_f64());
            }
            Outcome::Failed(code) => {
                *segment.others.entry(code_name(code)).or_default() += 1;
                let right = match call.manner {
                    // Whose clock is first: tonic's client says CANCELLED when it gives up itself.
                    Manner::ShortOfTime => {
                        matches!(code, Code::DeadlineExceeded | Code::Cancelled)
                    }
                    Manner::Wrong(kind) => code == wrong(kind).1,
                    Manner::Plain | Manner::GivesUp(_) => false,
                };
                if !right {
                    let (code, message) = (code_name(code), sample.message);
                    self.found(format!("{:?} was answered {code}: {message}", call.manner));
                }
                return;
            }
        }
        if matches!(call.manner, Manner::Wrong(_)) && !refused {
            self.found(format!("{:?} was not refused", call.manner));
        }
    }
}

async fn call(
    clients: Arc<Clients>,
    manner: Manner,
    ask: Ask,
    planned: Duration,
    began: Instant,
) -> Call {
    let sample = match manner {
        Manner::Plain | Manner::ShortOfTime => Some(clients.ask(ask, planned, began).await),
        Manner::GivesUp(after) => {
            tokio::time::timeout(after, clients.ask(ask, planned, began)).await.ok()
        }
        Manner::Wrong(kind) => Some(ask_wrongly(&clients, kind, ask, planned, began).await),
    };
    Call { manner, ended: began.elapsed(), sample }
}

/// Kinds of requests that cannot be.
const WRONGS: usize = 4;

/// What is wrong about the kind, and what it is to be answered with.
fn wrong(kind: usize) -> (fn(&mut CompleteRequest), Code) {
    match kind {
        0 => (|request| "nobody".clone_into(&mut request.model), Code::NotFound),
        1 => (|request| request.prompt = None, Code::InvalidArgument),
        2 => (
            |request| request.sampling = Some(Sampling { top_p: Some(7.0), ..Sampling::default() }),
            Code::InvalidArgument,
        ),
        _ => (
            |request| {
                request.prompt = Some(Prompt::Tokens(TokensPrompt { ids: vec![u32::MAX] }));
            },
            Code::InvalidArgument,
        ),
    }
}

async fn ask_wrongly(
    clients: &Clients,
    kind: usize,
    ask: Ask,
    planned: Duration,
    began: Instant,
) -> Sample {
    let at = began + planned;
    let mut request = CompleteRequest {
        model: MODEL.to_owned(),
        prompt: Some(Prompt::Tokens(TokensPrompt { ids: ask.prompt })),
        max_tokens: Some(1),
        ..CompleteRequest::default()
    };
    wrong(kind).0(&mut request);
    let late = at.elapsed();
    let mut client = InferenceServiceClient::new(clients.channel());
    let (outcome, message) = match client.complete(request).await {
        Ok(_) => (Outcome::Done, String::new()),
        Err(status) => (Outcome::Failed(status.code()), status.message().to_owned()),
    };
    Sample {
        planned,
        late,
        outcome,
        message,
        first: None,
        gaps: Vec::new(),
        end: at.elapsed(),
        queue: None,
        prompt_tokens: 0,
        cached_tokens: 0,
        conversation: Vec::new(),
        completion_tokens: 0,
    }
}
