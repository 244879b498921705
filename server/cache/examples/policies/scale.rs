//! What a lookup and an insertion cost in a trie of a million nodes.

use std::time::Instant;

use sconce_cache::{
    Budgets, Class, CostModel, DomainId, DomainKey, DomainShape, Ledger, Tier, Trie, TrieConfig,
};

use crate::replay::{PAGE, Sizes, TRANSFORMER};
use crate::traces::Random;

/// Tokens of the long conversations.
const LONG: usize = 32_768;
/// How many of them there are.
const CONVERSATIONS: usize = 200;
/// Tokens of a turn of them; each ends in a fork.
const TURN: usize = 256;

struct Scale {
    trie: Trie<std::ops::Range<usize>, ()>,
    store: Sizes,
    domain: DomainId,
    random: Random,
}

impl Scale {
    fn insert(&mut self, tokens: &[u32]) {
        let (lease, _) = self.trie.lease(self.domain, None, tokens);
        let all = tokens.len();
        self.trie.extend(&mut self.store, lease, tokens, all, &mut |_, range| Some(range));
        self.trie.release(lease);
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.random.next() as u32 >> 1).collect()
    }

    /// Microseconds at the median and at the worst of a hundred.
    fn time(&mut self, mut act: impl FnMut(&mut Self, usize)) -> (f64, f64) {
        let mut took: Vec<f64> = (0..CONVERSATIONS)
            .map(|number| {
                let start = Instant::now();
                act(self, number);
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        took.sort_by(f64::total_cmp);
        (took[took.len() / 2], took[took.len() * 99 / 100])
    }
}

/// Prints the costs for tries of growing size.
pub(crate) fn measure(nodes: &[usize]) {
    let limits = Budgets { device: u64::MAX >> 1, host: 0, disk: 0 };
    let ledger = Ledger::new(limits);
    let Ok(_pools) = ledger.reserve(Tier::Device, Class::LiveState, limits.device) else { return };
    let config = TrieConfig { events_max: 0, ..TrieConfig::new(limits) };
    let mut trie = Trie::new(config, &ledger);
    let shape = DomainShape { needs_points: false, page_tokens: PAGE, cost: CostModel::default() };
    let domain = trie.open_domain(DomainKey { fingerprint: 1, instance: 0 }, shape);
    let mut scale = Scale { trie, store: Sizes(TRANSFORMER), domain, random: Random(7) };
    let long: Vec<_> = (0..CONVERSATIONS)
        .map(|_| {
            let tokens = scale.tokens(LONG);
            scale.insert(&tokens);
            for end in (TURN..LONG).step_by(TURN) {
                let mut fork = tokens[..end].to_vec();
                fork.extend(scale.tokens(8));
                scale.insert(&fork);
            }
            tokens
        })
        .collect();
    println!(
        "\n{:>9} | {:>17} | {:>17} | {:>17} | {:>17}",
        "nodes", "lookup 32k", "lease 32k", "insert 32k", "insert 64 tokens"
    );
    for &wanted in nodes {
        while scale.trie.counters().nodes < wanted {
            let tokens = scale.tokens(20);
            scale.insert(&tokens);
        }
        let domain = scale.domain;
        let lookup = scale.time(|scale, number| {
            let found = scale.trie.lookup(domain, None, &long[number]);
            assert_eq!(found.resumed, LONG - 1);
        });
        let lease = scale.time(|scale, number| {
            let (lease, _) = scale.trie.lease(domain, None, &long[number]);
            scale.trie.release(lease);
        });
        let fresh: Vec<_> = (0..CONVERSATIONS).map(|_| scale.tokens(LONG)).collect();
        let insert = scale.time(|scale, number| scale.insert(&fresh[number]));
        let grown: Vec<Vec<u32>> = long
            .iter()
            .map(|tokens| tokens.iter().copied().chain(scale.random_page()).collect())
            .collect();
        let grow = scale.time(|scale, number| scale.insert(&grown[number]));
        let show = |(median, worst): (f64, f64)| format!("{median:7.1} {worst:6.1} us");
        println!(
            "{:>9} | {:>17} | {:>17} | {:>17} | {:>17}",
            scale.trie.counters().nodes,
            show(lookup),
            show(lease),
            show(insert),
            show(grow)
        );
    }
}

impl Scale {
    fn random_page(&mut self) -> Vec<u32> {
        self.tokens(PAGE)
    }
}
