//! Lookup: how much of a prompt is known, how much can be resumed, and why no more.

use super::Trie;
use super::config::DomainId;
use super::node::NodeId;
use super::symbol::{MEDIA_BIT, common, is_media};
use crate::ledger::Tier;

/// What a prompt finds. All offsets are at most `n - 1` for `n` symbols: one token is always
/// evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Leading symbols whose spans are held.
    pub matched: usize,
    /// Leading symbols that are remembered, with those whose state was evicted.
    pub known: usize,
    /// Where a sequence can be resumed: the deepest offset that spans cover and, in a domain that
    /// needs points, at which there is one.
    pub resumed: usize,
    /// The slowest tier that is needed to resume.
    pub tier: Option<Tier>,
    /// Why no more was resumed.
    pub reason: Reason,
    /// The first index at which the prompt is not what is remembered: it differs there, or what is
    /// remembered ends there.
    pub divergence: Option<usize>,
}

/// Why no more of a prompt was resumed. The first that applies:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Everything was: all symbols but the last, and at least one.
    Full,
    /// More matched than was resumed, and the point that would have served was evicted; or
    /// everything that matched was resumed, and what follows was evicted.
    Evicted,
    /// More matched than was resumed: there is no restore point further on.
    NoRestorePoint,
    /// Nothing matched.
    NotFound,
    /// Everything that matched was resumed, and then another image (or other medium) follows.
    MediaDiffers,
    /// Everything that matched was resumed; from [`Match::divergence`] on the prompt is not what is
    /// remembered.
    Diverged,
    /// The request asked not to use the cache. Said by the owner of the trie, never by the trie.
    Bypassed,
    /// There is no cache. Said by the owner of the trie, never by the trie.
    Disabled,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Full,
        Self::Evicted,
        Self::NoRestorePoint,
        Self::NotFound,
        Self::MediaDiffers,
        Self::Diverged,
        Self::Bypassed,
        Self::Disabled,
    ];
}

impl Match {
    /// What is found where nothing is remembered.
    pub fn nothing(reason: Reason) -> Self {
        Self { matched: 0, known: 0, resumed: 0, tier: None, reason, divergence: None }
    }
}

/// A match, and the node in which it resumes.
pub(super) struct Found {
    pub(super) matching: Match,
    pub(super) node: NodeId,
}

impl<A, B> Trie<A, B> {
    /// What a prompt would find now; changes nothing, not even what counts as used.
    pub fn lookup(&self, domain: DomainId, salt: Option<&str>, symbols: &[u32]) -> Match {
        match self.root(domain, salt) {
            Some(root) => self.find(root, symbols).matching,
            None => Match {
                divergence: (symbols.len() > 1).then_some(0),
                ..Match::nothing(Reason::NotFound)
            },
        }
    }

    /// Walks down from `root` along all symbols but the last.
    pub(super) fn find(&self, root: NodeId, symbols: &[u32]) -> Found {
        let key = &symbols[..symbols.len().saturating_sub(1)];
        let needs_points = self.domain_of(root).shape.needs_points;
        let mut found = Match::nothing(Reason::NotFound);
        let (mut node, mut at) = (root, root);
        // Deepest point on the way that was evicted.
        let mut lost = 0;
        while let Some(&child) =
            key.get(found.known).and_then(|next| self.nodes[at].children.get(next))
        {
            let here = &self.nodes[child];
            at = child;
            found.known += common(&here.edge, &key[found.known..]);
            if !here.is_hollow() {
                found.matched = found.known;
                let whole = found.known == here.end();
                if !needs_points || (whole && here.point.is_some()) {
                    (node, found.resumed) = (child, found.matched);
                    found.tier = here.tier();
                    if needs_points {
                        found.tier = found.tier.max(here.point.as_ref().map(|held| held.tier));
                    }
                }
            }
            lost = lost.max(here.lost_point.filter(|&offset| offset <= found.known).unwrap_or(0));
            if found.known < here.end() {
                break;
            }
        }
        if found.known < key.len() {
            found.divergence = Some(found.known);
        }
        found.reason = self.reason(&found, at, key, lost);
        Found { matching: found, node }
    }

    fn reason(&self, found: &Match, at: NodeId, key: &[u32], lost: usize) -> Reason {
        if found.resumed == key.len() && found.resumed > 0 {
            return Reason::Full;
        }
        if found.resumed < found.matched {
            return if lost > found.resumed { Reason::Evicted } else { Reason::NoRestorePoint };
        }
        if found.known > found.matched {
            return Reason::Evicted;
        }
        if found.matched == 0 {
            return Reason::NotFound;
        }
        let here = &self.nodes[at];
        let other = match here.edge.get(found.known - here.start) {
            Some(&symbol) => is_media(symbol),
            None => here.children.range(MEDIA_BIT..).next().is_some(),
        };
        if other && key.get(found.known).is_some_and(|&symbol| is_media(symbol)) {
            Reason::MediaDiffers
        } else {
            Reason::Diverged
        }
    }
}
