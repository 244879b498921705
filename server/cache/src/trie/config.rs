//! What a trie is told when it is made and when a model comes: limits, policy, cost, identity.

use crate::ledger::Budgets;

/// The half-life that loses to least recently used in none of the traces of `examples/policies`,
/// at any budget; a longer one keeps more in a scan and less of conversations, a shorter one is
/// nearer to least recently used.
const HALF_LIFE: f64 = 64.0;

/// Fewest and most tokens of ghosts by default; the most are some 14 MB of nodes and edges.
const GHOST_TOKENS: (usize, usize) = (1 << 16, 1 << 20);
/// Bytes of the limits for each token of the ghosts: about what a token's state takes at least, so that
/// no more is remembered as lost than could be held.
const BYTES_FOR_GHOST_TOKEN: u64 = 1 << 10;

/// How a trie behaves, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrieConfig {
    /// Most bytes of cached state in each tier, over all domains; 0 turns a tier off.
    pub limits: Budgets,
    /// What is lost first.
    pub policy: Policy,
    /// After how many leases a use counts half ([`Policy::CostToLose`]).
    pub half_life: f64,
    /// Most tokens that are remembered without state, to tell that something was evicted; each
    /// node of them counts 64 tokens more.
    pub ghost_tokens_max: usize,
    /// Share that pinned snapshots may hold of the sum of all limits, 0 to 1; the device's counts
    /// with no more than the pools there are.
    pub pinned_share: f64,
    /// Most named snapshots at a time.
    pub snapshots_max: usize,
    /// Most events kept for subscribers; 0 turns events off.
    pub events_max: usize,
    /// Most tokens in the events kept.
    pub event_tokens_max: usize,
}

impl TrieConfig {
    /// The defaults around the given limits.
    pub fn new(limits: Budgets) -> Self {
        Self {
            limits,
            policy: Policy::CostToLose,
            half_life: HALF_LIFE,
            ghost_tokens_max: ghost_tokens_for(limits),
            pinned_share: 0.5,
            snapshots_max: 1024,
            events_max: 4096,
            event_tokens_max: 1 << 20,
        }
    }
}

fn ghost_tokens_for(limits: Budgets) -> usize {
    let bytes = limits.device.saturating_add(limits.host).saturating_add(limits.disk);
    let (least, most) = GHOST_TOKENS;
    usize::try_from(bytes / BYTES_FOR_GHOST_TOKEN).unwrap_or(most).clamp(least, most)
}

/// What is lost first when room is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// What is cheapest to compute again, for its bytes and for how likely it is wanted.
    #[default]
    CostToLose,
    /// What was used longest ago; every node of a path that is used counts as used.
    Lru,
    /// What was used longest ago, then deepest, then largest; only the last node of a path that is
    /// used counts as used.
    OldestDeepestLargest,
}

/// Whose state a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainKey {
    /// Of weights, tokenizer and everything else that decides what a state means.
    pub fingerprint: u64,
    /// Tells apart the same weights loaded more than once; 0 for the first.
    pub instance: u32,
}

/// What the trie must know of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DomainShape {
    /// Whether a sequence can be resumed only where there is a point (recurrent state).
    pub needs_points: bool,
    /// Tokens of a page: spans are trimmed to this grid.
    pub page_tokens: usize,
    /// What it costs to compute tokens again.
    pub cost: CostModel,
}

/// Cost of prefilling, in any unit: `token` for each token, `pair` for each pair of a token and
/// one before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Cost of a token whatever its position (products with weights).
    pub token: f64,
    /// Cost of attending from one token to one before it.
    pub pair: f64,
}

impl Default for CostModel {
    /// A token costs as much as 32768 pairs: about right for dense models of 1 to 10 billion
    /// weights.
    fn default() -> Self {
        Self { token: 1.0, pair: 1.0 / 32_768.0 }
    }
}

impl CostModel {
    /// Cost of the tokens `[from, to)` of a sequence.
    pub fn of(&self, from: usize, to: usize) -> f64 {
        let (from, to) = (from as f64, to as f64);
        self.token * (to - from) + self.pair * (to * to - from * from) / 2.0
    }
}

/// A domain of one trie; valid as long as the trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub(super) u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_ghosts_are_kept_than_the_limits_could_hold_state_for() {
        let ghosts =
            |device, host, disk| TrieConfig::new(Budgets { device, host, disk }).ghost_tokens_max;
        assert_eq!(ghosts(0, 0, 0), 1 << 16);
        assert_eq!(ghosts(64 << 20, 64 << 20, 0), 1 << 17);
        assert_eq!(ghosts(0, 1 << 30, 0), 1 << 20);
        assert_eq!(ghosts(u64::MAX, u64::MAX, 1), 1 << 20);
    }
}
