//! What an identity with a namespace of its own may see of the cache: its own state, and nothing that
//! changes when others ask.

use std::collections::BTreeSet;

use sconce_cache::NodeView;
use sconce_engine::CacheStatus;

/// Describes `nodes`, which are of one namespace, as if there were no others: what all tiers hold
/// becomes what they hold of these, the times of their uses their order, and what was counted over
/// all requests is left out. The limits of the tiers stay.
pub(super) fn described(
    mut nodes: Vec<NodeView>,
    status: CacheStatus,
) -> (Vec<NodeView>, CacheStatus) {
    let uses: BTreeSet<u64> = nodes.iter().map(|node| node.last_used).collect();
    let order: Vec<u64> = uses.into_iter().collect();
    for node in &mut nodes {
        node.last_used = order.partition_point(|&used| used <= node.last_used) as u64;
    }
    let mut own = CacheStatus { tiers: status.tiers, ..CacheStatus::default() };
    for tier in &mut own.tiers {
        (tier.used_bytes, tier.resumed_tokens) = (0, 0);
    }
    for node in &nodes {
        if let Some(tier) = node.tier {
            own.tiers[tier as usize].used_bytes += node.span_bytes + node.point_bytes;
        }
    }
    // The clock that the uses are told by.
    own.trie.leases[0] = order.len() as u64;
    (nodes, own)
}

#[cfg(test)]
mod tests {
    use sconce_cache::Tier;

    use super::*;

    fn node(last_used: u64, span_bytes: u64) -> NodeView {
        NodeView {
            parent: None,
            edge_tokens: 64,
            depth: 64,
            restore_point: true,
            span_bytes,
            point_bytes: 1,
            tier: Some(Tier::Host),
            pinned: false,
            leased: false,
            hits: 3,
            last_used,
        }
    }

    #[test]
    fn what_others_do_does_not_show() {
        let seen = |moment: u64, others: u64| {
            let mut status = CacheStatus::default();
            status.reasons[0] = others;
            status.trie.leases[3] = others;
            status.tiers[Tier::Host as usize].limit_bytes = 1000;
            status.tiers[Tier::Host as usize].used_bytes = 30 + others;
            status.tiers[Tier::Device as usize].resumed_tokens = others;
            described(vec![node(moment + others, 10), node(moment, 20)], status)
        };
        let (quiet, busy) = (seen(5, 1), seen(700, 90));
        assert_eq!(quiet, busy);
        let (nodes, status) = quiet;
        assert_eq!(nodes.iter().map(|node| node.last_used).collect::<Vec<_>>(), [2, 1]);
        let host = status.tiers[Tier::Host as usize];
        assert_eq!((host.limit_bytes, host.used_bytes), (1000, 32));
        assert_eq!(status.trie.leases.iter().sum::<u64>(), 2);
    }
}
