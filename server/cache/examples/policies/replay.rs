//! Replay: a trace on the bare trie, with payloads that are nothing but sizes.

use std::ops::Range;

use sconce_cache::{
    Budgets, Class, CostModel, DomainKey, DomainShape, Ledger, Place, Policy, Refused, Storage,
    Tier, Trie, TrieConfig,
};

use crate::traces::Trace;

/// Tokens of a page.
pub(crate) const PAGE: usize = 64;

/// What the state of a model takes, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    /// For each token.
    pub(crate) token: u64,
    /// For each point; 0 if the model needs none.
    pub(crate) point: u64,
}

/// A transformer: 32 layers with 8 heads of 128, 16 bits.
pub(crate) const TRANSFORMER: Model = Model { name: "transformer", token: 131_072, point: 0 };
/// A hybrid: 10 such layers, and 30 with a recurrent state of 32 heads of 128 by 128, 32 bits.
pub(crate) const HYBRID: Model = Model { name: "hybrid", token: 20_480, point: 62_914_560 };

/// A range of tokens, and where it lies.
pub(crate) struct Sizes(pub(crate) Model);

impl Sizes {
    fn pages(&self, range: &Range<usize>) -> u64 {
        let pages = range.end.div_ceil(PAGE) - range.start.div_ceil(PAGE);
        pages as u64 * PAGE as u64 * self.0.token
    }
}

impl Storage for Sizes {
    type Span = Range<usize>;
    type Point = ();

    fn span_bytes(&self, span: &Range<usize>) -> u64 {
        self.pages(span)
    }

    fn point_bytes(&self, (): &()) -> u64 {
        self.0.point
    }

    fn span_bytes_in(&self, span: &Range<usize>, _: Tier) -> u64 {
        self.pages(&(span.start / PAGE * PAGE..span.end))
    }

    fn point_bytes_in(&self, (): &(), _: Tier) -> u64 {
        self.0.point
    }

    fn split(&mut self, span: Range<usize>, at: usize) -> (Range<usize>, Range<usize>) {
        (span.start..at, at..span.end)
    }

    fn join(&mut self, head: Range<usize>, tail: Range<usize>) -> Range<usize> {
        head.start..tail.end
    }

    fn settle(&mut self, _: &mut Range<usize>) {}

    fn move_span(
        &mut self,
        span: Range<usize>,
        _: Tier,
        _: &Place<'_>,
    ) -> Result<Range<usize>, Refused<Range<usize>>> {
        Ok(span)
    }

    fn move_point(&mut self, (): (), _: Tier, _: &Place<'_>) -> Result<(), Refused<()>> {
        Ok(())
    }

    fn free_span(&mut self, _: Range<usize>) {}

    fn free_point(&mut self, (): ()) {}
}

/// What came of a replay.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) prompt_tokens: u64,
    pub(crate) resumed_tokens: u64,
    /// Cost of prefilling the prompts without a cache, and what of it was saved.
    pub(crate) cost: f64,
    pub(crate) saved: f64,
    /// Bytes held in the end.
    pub(crate) bytes: u64,
}

impl Outcome {
    /// Share of the tokens of all prompts that was resumed, in percent.
    pub(crate) fn hit_rate(&self) -> f64 {
        100.0 * self.resumed_tokens as f64 / self.prompt_tokens as f64
    }

    /// Share of the cost that was saved, in percent.
    pub(crate) fn saved_rate(&self) -> f64 {
        100.0 * self.saved / self.cost
    }
}

/// Offsets at which a server sets points for a prompt of `prompt` tokens of which `resumed` are
/// not computed again, and an answer that ends at `end`.
fn points(ends: &[usize], matched: usize, resumed: usize, prompt: usize, end: usize) -> Vec<usize> {
    /// Tokens between points of a long prompt.
    const SPACING: usize = 8192;
    let tail = [4, 64, 256, 1024, 4096].into_iter().map(|back| prompt.saturating_sub(back));
    let mut offsets: Vec<usize> = tail
        .chain(ends.last().copied())
        .chain(ends.first().copied())
        .chain((1..).map(|number| number * SPACING).take_while(|&offset| offset < prompt))
        .chain([matched, end])
        .map(|offset| offset / PAGE * PAGE)
        .filter(|&offset| offset > resumed)
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

/// Replays a trace in `budget` bytes on the device.
pub(crate) fn replay(
    trace: &Trace,
    model: Model,
    policy: Policy,
    half_life: f64,
    budget: u64,
) -> Outcome {
    let limits = Budgets { device: budget, host: 0, disk: 0 };
    let ledger = Ledger::new(limits);
    let Ok(_pools) = ledger.reserve(Tier::Device, Class::LiveState, budget) else {
        return Outcome::default();
    };
    let config = TrieConfig { policy, half_life, events_max: 0, ..TrieConfig::new(limits) };
    let mut trie = Trie::new(config, &ledger);
    let mut store = Sizes(model);
    let cost = CostModel::default();
    let shape = DomainShape { needs_points: model.point > 0, page_tokens: PAGE, cost };
    let domain = trie.open_domain(DomainKey { fingerprint: 1, instance: 0 }, shape);
    let (mut outcome, mut tokens) = (Outcome::default(), Vec::new());
    for request in &trace.requests {
        let ends = request.write(&mut tokens);
        let prompt = request.prompt_tokens();
        let (lease, found) = trie.lease(domain, None, &tokens[..prompt]);
        outcome.prompt_tokens += prompt as u64;
        outcome.resumed_tokens += found.resumed as u64;
        outcome.cost += cost.of(0, prompt);
        outcome.saved += cost.of(0, found.resumed);
        let end = tokens.len();
        let reached = trie.extend(&mut store, lease, &tokens, end, &mut |_, range| Some(range));
        if model.point > 0 {
            for offset in points(&ends, found.matched, found.resumed, prompt, end) {
                if offset <= reached && !trie.has_point(lease, offset) {
                    trie.attach(&mut store, lease, offset, ());
                }
            }
        }
        trie.release(lease);
    }
    outcome.bytes = trie.used(domain, Tier::Device);
    outcome
}
