//! What is asked of a server under load: prose of drawn lengths, some of it after a prefix that
//! requests share, some of it as the next turn of a conversation.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::client::{Ask, Clients};
use crate::cli::bench::prose::{Draw, Sentences};
use crate::cli::error::CliError;

/// Tokens of prose that prompts are cut from.
const POOL_TOKENS: usize = 1 << 15;
/// Bytes of text that are enough for as many tokens; few tokenizers need 8 bytes for one.
const POOL_BYTES: usize = 8 * POOL_TOKENS;
/// Drawn tokens that a prompt begins with, so that no two share more than they are to share.
const UNIQUE_TOKENS: usize = 8;
/// Conversations that wait for their next turn; the oldest is forgotten.
const CONVERSATIONS_MAX: usize = 64;

/// How long prompts and completions are, and what they share.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Prompts")]
pub(crate) struct Lengths {
    /// Tokens that a request adds of its own: a number, or LEAST-MOST to draw from
    #[arg(long, value_name = "N", default_value = "64-512", value_parser = parse_range)]
    pub(crate) prompt_tokens: (usize, usize),
    /// Tokens of the completion: a number, or LEAST-MOST to draw from
    #[arg(long, value_name = "N", default_value = "16-128", value_parser = parse_range)]
    pub(crate) output_tokens: (usize, usize),
    /// Tokens of a prefix that several requests share, such as a system prompt
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) prefix_tokens: usize,
    /// How many such prefixes there are
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) prefixes: usize,
    /// Share of new prompts that begin with one of them
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub(crate) prefix_share: f64,
    /// Share of requests that go on with a conversation, if one waits
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    pub(crate) turn_share: f64,
}

impl Lengths {
    /// Most prefixes.
    const PREFIXES_MAX: usize = 1024;

    /// Whether the values are in range.
    ///
    /// # Errors
    /// The first that is not, by its flag.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        for (flag, share) in
            [("--prefix-share", self.prefix_share), ("--turn-share", self.turn_share)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(CliError::Usage(format!("{flag}: expected 0 to 1, found {share}")));
            }
        }
        if !(1..=Self::PREFIXES_MAX).contains(&self.prefixes) {
            let (most, found) = (Self::PREFIXES_MAX, self.prefixes);
            return Err(CliError::Usage(format!(
                "--prefixes: expected 1 to {most}, found {found}"
            )));
        }
        Ok(())
    }

    /// Tokens of the longest request that begins a conversation, with its completion.
    fn longest(&self) -> usize {
        self.prefix_tokens + self.prompt_tokens.1 + self.output_tokens.1
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "prompt_tokens": [self.prompt_tokens.0, self.prompt_tokens.1],
            "output_tokens": [self.output_tokens.0, self.output_tokens.1],
            "prefix_tokens": self.prefix_tokens,
            "prefixes": self.prefixes,
            "prefix_share": self.prefix_share,
            "turn_share": self.turn_share,
        })
    }
}

/// Makes requests, the same for the same seed and the same answers.
#[derive(Debug)]
pub(crate) struct Workload {
    lengths: Lengths,
    context: usize,
    pool: Vec<u32>,
    prefixes: Vec<Vec<u32>>,
    waiting: VecDeque<Vec<u32>>,
    draw: Draw,
}

impl Workload {
    /// Requests for the model of `clients`, whose server cuts the prose into tokens.
    ///
    /// # Errors
    /// A server that cannot, or a context with no room for the longest request.
    pub(crate) async fn new(
        clients: &Clients,
        lengths: Lengths,
        seed: u64,
    ) -> Result<Self, CliError> {
        let context = clients.model().await?.context_length as usize;
        if lengths.longest() > context {
            return Err(CliError::Usage(format!(
                "--prompt-tokens: expected a prefix, a prompt and a completion of at most \
                 {context} tokens together, which the context has room for, found {}",
                lengths.longest()
            )));
        }
        let mut sentences = Sentences::new(seed);
        let mut text = sentences.opening();
        sentences.extend(&mut text, POOL_BYTES);
        let mut pool = clients.tokenize(text).await?;
        pool.truncate(POOL_TOKENS);
        if pool.is_empty() {
            return Err(CliError::Internal("the server has no tokens for a text".to_owned()));
        }
        let mut workload = Self {
            context,
            pool,
            prefixes: Vec::new(),
            waiting: VecDeque::new(),
            draw: Draw::new(seed),
            lengths,
        };
        for _ in 0..workload.lengths.prefixes {
            let prefix = workload.prose(workload.lengths.prefix_tokens);
            workload.prefixes.push(prefix);
        }
        Ok(workload)
    }

    /// Where the numbers come from, for a caller that draws too.
    pub(crate) fn draw(&mut self) -> &mut Draw {
        &mut self.draw
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Ask {
        let completion = self.draw.within(self.lengths.output_tokens);
        let own = self.draw.within(self.lengths.prompt_tokens);
        let goes_on = self.draw.share() < self.lengths.turn_share;
        let shares = self.draw.share() < self.lengths.prefix_share;
        let room = |before: &Vec<u32>| before.len() + own + completion <= self.context;
        let before = goes_on.then(|| self.waiting.pop_front()).flatten().filter(room);
        let mut prompt = match before {
            Some(conversation) => conversation,
            None if shares => self.prefixes[self.draw.below(self.prefixes.len())].clone(),
            None => Vec::new(),
        };
        prompt.extend(self.prose(own));
        Ask { prompt, completion: completion as u32, hang_up_after: None, deadline: None }
    }

    /// Takes the conversation of a request that is done, for a later turn.
    pub(crate) fn take(&mut self, conversation: Vec<u32>) {
        if conversation.is_empty() {
            return;
        }
        if self.waiting.len() == CONVERSATIONS_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(conversation);
    }

    /// `count` tokens that begin as no others do.
    fn prose(&mut self, count: usize) -> Vec<u32> {
        let size = self.pool.len();
        let unique = count.min(UNIQUE_TOKENS);
        let mut tokens: Vec<u32> = (0..unique).map(|_| self.pool[self.draw.below(size)]).collect();
        let from = self.draw.below(size);
        tokens.extend(self.pool.iter().cycle().skip(from).take(count - unique));
        tokens
    }
}

fn parse_range(text: &str) -> Result<(usize, usize), String> {
    const MOST: usize = 1 << 20;
    let expected = || format!("expected a number from 1 to {MOST}, or LEAST-MOST, found `{text}`");
    let number = |text: &str| text.parse::<usize>().map_err(|_| expected());
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let range = (number(least)?, number(most)?);
    if range.0 == 0 || range.0 > range.1 || range.1 > MOST { Err(expected()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(seed: u64, turn_share: f64) -> Workload {
        let lengths = Lengths {
            prompt_tokens: (20, 40),
            output_tokens: (4, 9),
            prefix_tokens: 50,
            prefixes: 2,
            prefix_share: 0.5,
            turn_share,
        };
        let mut workload = Workload {
            context: 200,
            pool: (0..5000).collect(),
            prefixes: Vec::new(),
            waiting: VecDeque::new(),
            draw: Draw::new(seed),
            lengths,
        };
        workload.prefixes = (0..2).map(|_| workload.prose(50)).collect();
        workload
    }

    #[test]
    fn a_seed_decides_what_is_asked_and_lengths_are_kept() {
        let asks = |seed| {
            let mut workload = workload(seed, 0.0);
            (0..50).map(|_| workload.next().prompt).collect::<Vec<_>>()
        };
        assert_eq!(asks(1), asks(1));
        assert_ne!(asks(1), asks(2));
        let shared = asks(1).iter().filter(|prompt| prompt.len() > 50).count();
        assert!((10..40).contains(&shared), "{shared} of 50 have a prefix");
        assert!(asks(1).iter().all(|prompt| (20..=90).contains(&prompt.len())));
    }

    #[test]
    fn a_conversation_goes_on_while_the_context_has_room() {
        let mut workload = workload(1, 1.0);
        workload.take(vec![7; 60]);
        let ask = workload.next();
        assert_eq!(&ask.prompt[..60], &[7; 60]);
        workload.take(vec![7; 190]);
        assert_ne!(workload.next().prompt.first(), Some(&7));
        for index in 0..2 * CONVERSATIONS_MAX as u32 {
            workload.take(vec![index]);
        }
        assert_eq!(workload.waiting.len(), CONVERSATIONS_MAX);
    }

    #[test]
    fn a_range_is_a_number_or_two() {
        assert_eq!(parse_range("5"), Ok((5, 5)));
        assert_eq!(parse_range("5-9"), Ok((5, 9)));
        for text in ["", "0", "9-5", "a", "5-", "-5", "1-99999999"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }
}
