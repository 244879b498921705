//! What a scenario is: requests in an order, and what each may cost. Plain data, so that another
//! server can be asked the same. Which scenarios there are is `scenarios.rs`.

use serde_json::{Value, json};

/// Most tokens that an exact repeat, or going on after a swap, may compute: two pages and the last
/// few tokens.
const REPEAT_MAX: usize = 131;
/// A prompt outlives pressure if no more than one in so many of its tokens has to be computed again.
const SURVIVAL_DIVISOR: usize = 10;
/// Share of a cold prompt's time to the first token that an exact repeat may take.
const REPEAT_SHARE_MAX: f64 = 0.05;
/// Tokens of the shortest prompt for which that is promised.
const REPEAT_SHARE_TOKENS_MIN: usize = 4096;

/// What is run in an engine of its own.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// Its name, for `--only`.
    pub(super) name: String,
    /// What the cache may use.
    pub(super) tiers: Tiers,
    /// What is done, in order.
    pub(super) steps: Vec<Step>,
}

/// What the cache of a scenario may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiers {
    /// The device and the host, as the options say.
    Ample,
    /// As much of the device as holds half more than the first measured prompt leaves behind.
    Pressed,
    /// The device and files.
    Disk,
}

/// One thing that is done.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A request.
    Ask(Ask),
    /// The model is unloaded, another is loaded, used and unloaded, and it is loaded again.
    Swap,
    /// The engine is shut down and another is started.
    Restart,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// What it is called in a report.
    pub(super) label: String,
    /// The request, counted from 0 among requests, whose prompt and completion come first.
    pub(super) after: Option<usize>,
    /// The prompt, or what follows `after`.
    pub(super) tokens: Vec<u32>,
    /// Ends of messages inside `tokens`, as a chat would have them.
    pub(super) boundaries: Vec<usize>,
    /// Completion tokens.
    pub(super) completion: usize,
    /// What it is asked for.
    pub(super) kind: Kind,
}

/// What a request is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To bring about something else; it is not reported.
    Unmeasured,
    /// To know what it costs when nothing is remembered.
    Cold,
    /// To see how little a prompt costs that is known up to `distance` tokens before its end.
    Near {
        /// See above.
        distance: usize,
    },
    /// To see whether a prompt that several share outlives pressure, all but the last
    /// `distance` tokens.
    Survive {
        /// See above.
        distance: usize,
    },
    /// To see how little the same prompt costs.
    Repeat,
    /// To see how little a conversation costs that goes on with a few tokens.
    Onward,
}

impl Kind {
    /// Most tokens that may be computed.
    pub(super) fn recomputed_max(self, prompt_tokens: usize) -> Option<usize> {
        match self {
            Self::Unmeasured | Self::Cold => None,
            Self::Near { distance } => Some(4 * distance + 128),
            Self::Survive { distance } => Some(distance + prompt_tokens / SURVIVAL_DIVISOR),
            Self::Repeat | Self::Onward => Some(REPEAT_MAX),
        }
    }

    /// Largest share of a cold prompt's time to the first token, where there is a promise.
    pub(super) fn ttft_share_max(self, prompt_tokens: usize) -> Option<f64> {
        let promised = self == Self::Repeat && prompt_tokens >= REPEAT_SHARE_TOKENS_MIN;
        promised.then_some(REPEAT_SHARE_MAX)
    }

    /// How many of its last tokens nothing before had; `None` where that is not the question.
    pub(super) fn distance(self) -> Option<usize> {
        match self {
            Self::Near { distance } | Self::Survive { distance } => Some(distance),
            Self::Unmeasured | Self::Cold | Self::Repeat | Self::Onward => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unmeasured => "unmeasured",
            Self::Cold => "cold",
            Self::Near { .. } => "near",
            Self::Survive { .. } => "survive",
            Self::Repeat => "repeat",
            Self::Onward => "onward",
        }
    }
}

impl Scenario {
    /// For another server: every step, with the tokens of every request.
    pub(super) fn to_json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| match step {
                Step::Swap => json!({ "do": "swap" }),
                Step::Restart => json!({ "do": "restart" }),
                Step::Ask(ask) => json!({
                    "do": "ask",
                    "label": ask.label,
                    "after": ask.after,
                    "tokens": ask.tokens,
                    "completion": ask.completion,
                    "kind": ask.kind.name(),
                }),
            })
            .collect();
        json!({ "name": self.name, "steps": steps })
    }
}
