//! The prefix cache: options of a request checked, reports and descriptions for the wire.

use sconce_cache::{NodeView, Reason, Tier};
use sconce_engine::{CacheReport, CacheStatus, CacheUse};
use sconce_proto::v1::{
    CacheNode, CacheOptions, CacheReason, CacheReasonCount, CacheReport as WireReport, CacheTier,
    DescribeCacheResponse, Tier as WireTier,
};

use super::count;
use crate::error::CallError;

/// Most restore points that a request may ask for.
const RESTORE_POINTS_MAX: usize = 64;

/// Longest salt, in bytes.
const SALT_BYTES_MAX: usize = 256;

/// Nodes that a description tells unless asked for more or less.
const NODES_DEFAULT: usize = 10_000;

/// Most nodes that a description tells. A node takes at most 100 bytes, and clients take 4 MiB
/// unless told otherwise.
const NODES_MAX: usize = 20_000;

/// Checks how the cache takes part in a request, but for what depends on the prompt.
pub(super) fn cache_use(options: CacheOptions) -> Result<CacheUse, CallError> {
    let points = options.restore_points;
    if points.len() > RESTORE_POINTS_MAX {
        let problem =
            format!("expected at most {RESTORE_POINTS_MAX} entries, found {}", points.len());
        return Err(CallError::field("cache.restore_points", problem));
    }
    if let Some(i) = points.iter().position(|&point| point == 0) {
        let problem = "expected 1 to the length of the prompt, found 0";
        return Err(CallError::field(format!("cache.restore_points[{i}]"), problem));
    }
    if options.bypass {
        let contradiction = |field: &str| {
            let problem = "expected none with `cache.bypass`, which leaves nothing in the cache";
            Err(CallError::field(field, problem))
        };
        if !points.is_empty() {
            return contradiction("cache.restore_points");
        }
        if options.pin {
            return contradiction("cache.pin");
        }
    }
    Ok(CacheUse {
        salt: salt(options.salt, "cache.salt")?,
        bypass: options.bypass,
        restore_points: points.into_iter().map(|point| point as usize).collect(),
        pin: options.pin,
        ..CacheUse::default()
    })
}

/// Checks a salt; `field` is its path in the request.
pub(super) fn salt(salt: Option<String>, field: &str) -> Result<Option<String>, CallError> {
    match &salt {
        Some(text) if !(1..=SALT_BYTES_MAX).contains(&text.len()) => {
            let problem = format!("expected 1 to {SALT_BYTES_MAX} bytes, found {}", text.len());
            Err(CallError::field(field, problem))
        }
        _ => Ok(salt),
    }
}

/// What was remembered of a prompt.
pub fn cache_report(report: &CacheReport) -> WireReport {
    WireReport {
        matched_tokens: count(report.matched),
        resumed_tokens: count(report.resumed),
        recomputed_tokens: count(report.recomputed),
        tier: report.tier.map_or(WireTier::Unspecified, tier).into(),
        reason: reason(report.reason).into(),
        divergence_index: report.divergence.map(count),
    }
}

/// Where state lies.
pub fn tier(tier: Tier) -> WireTier {
    match tier {
        Tier::Device => WireTier::Device,
        Tier::Host => WireTier::Host,
        Tier::Disk => WireTier::Disk,
    }
}

fn reason(reason: Reason) -> CacheReason {
    match reason {
        Reason::Full => CacheReason::Full,
        Reason::NotFound => CacheReason::NotFound,
        Reason::Diverged => CacheReason::Diverged,
        Reason::NoRestorePoint => CacheReason::NoRestorePoint,
        Reason::Evicted => CacheReason::Evicted,
        Reason::MediaDiffers => CacheReason::MediaDiffers,
        Reason::Bypassed => CacheReason::Bypassed,
        Reason::Disabled => CacheReason::Disabled,
    }
}

/// A reason as logs spell it: that of the protocol, such as `NO_RESTORE_POINT`.
pub fn reason_name(reason: Reason) -> &'static str {
    let name = self::reason(reason).as_str_name();
    name.strip_prefix("CACHE_REASON_").unwrap_or(name)
}

/// Checks how many nodes a description may have.
pub fn nodes_max(asked: Option<u32>) -> Result<usize, CallError> {
    match asked.map(|n| n as usize) {
        None => Ok(NODES_DEFAULT),
        Some(n @ 1..=NODES_MAX) => Ok(n),
        Some(found) => {
            let problem = format!("expected 1 to {NODES_MAX}, found {found}");
            Err(CallError::field("nodes_max", problem))
        }
    }
}

/// The tree of a model, cut after `nodes_max` nodes, and the tiers that it shares with others.
pub fn described(
    nodes: &[NodeView],
    nodes_max: usize,
    status: &CacheStatus,
) -> DescribeCacheResponse {
    let told = &nodes[..nodes.len().min(nodes_max)];
    DescribeCacheResponse {
        nodes: told.iter().map(node).collect(),
        nodes_left_out: (nodes.len() - told.len()) as u64,
        tiers: Tier::ALL.into_iter().map(|tier| tier_account(tier, nodes, status)).collect(),
        reasons: reasons(status),
        // The clock that `NodeView::last_used` reads.
        lookups: status.trie.leases.iter().sum(),
    }
}

/// How many prompts had each reason, without those that none had.
pub(super) fn reasons(status: &CacheStatus) -> Vec<CacheReasonCount> {
    let counts = Reason::ALL.into_iter().zip(status.reasons).filter(|&(_, requests)| requests > 0);
    counts
        .map(|(reason, requests)| CacheReasonCount {
            reason: self::reason(reason).into(),
            requests,
        })
        .collect()
}

fn node(node: &NodeView) -> CacheNode {
    CacheNode {
        parent: node.parent.map(count),
        edge_tokens: count(node.edge_tokens),
        depth_tokens: count(node.depth),
        restore_point: node.restore_point,
        bytes: node.span_bytes + node.point_bytes,
        tier: node.tier.map_or(WireTier::Unspecified, tier).into(),
        pinned: node.pinned,
        hits: node.hits.into(),
        span_bytes: node.span_bytes,
        point_bytes: node.point_bytes,
        leased: node.leased,
        last_use: node.last_used,
    }
}

fn tier_account(tier: Tier, nodes: &[NodeView], status: &CacheStatus) -> CacheTier {
    let of_all = status.tiers[tier as usize];
    let mut account = CacheTier {
        tier: self::tier(tier).into(),
        limit_bytes: of_all.limit_bytes,
        used_bytes: of_all.used_bytes,
        resumed_tokens: of_all.resumed_tokens,
        ..CacheTier::default()
    };
    for node in nodes.iter().filter(|node| node.tier == Some(tier)) {
        account.span_bytes += node.span_bytes;
        account.point_bytes += node.point_bytes;
        account.nodes += 1;
    }
    account
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(options: CacheOptions) -> String {
        match cache_use(options) {
            Err(CallError::InvalidField { field, .. }) => field,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    #[test]
    fn options_keep_the_order_that_refusals_will_name() {
        let options = CacheOptions {
            restore_points: vec![9, 3, 9],
            salt: Some("tenant".into()),
            pin: true,
            ..CacheOptions::default()
        };
        let taken = cache_use(options).expect("is right");
        assert_eq!(taken.restore_points, [9, 3, 9]);
        assert_eq!((taken.salt.as_deref(), taken.pin, taken.bypass), (Some("tenant"), true, false));
    }

    #[test]
    fn each_option_has_its_range() {
        let none = CacheOptions::default;
        let points = |restore_points| CacheOptions { restore_points, ..none() };
        let salt = |text: &str| CacheOptions { salt: Some(text.to_owned()), ..none() };
        assert_eq!(field_of(points(vec![4, 0])), "cache.restore_points[1]");
        assert_eq!(field_of(points(vec![1; RESTORE_POINTS_MAX + 1])), "cache.restore_points");
        assert_eq!(field_of(salt("")), "cache.salt");
        assert_eq!(field_of(salt(&"x".repeat(SALT_BYTES_MAX + 1))), "cache.salt");
        let bypassed = CacheOptions { bypass: true, restore_points: vec![1], ..none() };
        assert_eq!(field_of(bypassed), "cache.restore_points");
        assert_eq!(field_of(CacheOptions { bypass: true, pin: true, ..none() }), "cache.pin");
    }

    #[test]
    fn a_description_is_cut_and_its_tiers_are_not() {
        let leaf = |parent, tier, bytes| NodeView {
            parent,
            edge_tokens: 64,
            depth: 64,
            restore_point: true,
            span_bytes: bytes,
            point_bytes: 1,
            tier,
            pinned: false,
            leased: false,
            hits: 0,
            last_used: 0,
        };
        let evicted = |parent| NodeView { point_bytes: 0, ..leaf(parent, None, 0) };
        let nodes = [
            evicted(None),
            leaf(Some(0), Some(Tier::Device), 10),
            leaf(Some(0), Some(Tier::Disk), 20),
            evicted(Some(0)),
        ];
        let told = described(&nodes, 2, &CacheStatus::default());
        assert_eq!((told.nodes.len(), told.nodes_left_out), (2, 2));
        assert_eq!((told.nodes[0].parent, told.nodes[0].tier()), (None, WireTier::Unspecified));
        assert_eq!((told.nodes[1].parent, told.nodes[1].bytes), (Some(0), 11));
        let tiers: Vec<_> =
            told.tiers.iter().map(|t| (t.tier(), t.span_bytes, t.point_bytes, t.nodes)).collect();
        let expected =
            [(WireTier::Device, 10, 1, 1), (WireTier::Host, 0, 0, 0), (WireTier::Disk, 20, 1, 1)];
        assert_eq!(tiers, expected);
    }

    #[test]
    fn reasons_that_no_request_had_are_left_out() {
        let mut status = CacheStatus::default();
        status.reasons[Reason::Evicted as usize] = 3;
        status.trie.leases[Reason::Evicted as usize] = 2;
        let told = described(&[], 1, &status);
        assert_eq!(told.reasons.len(), 1);
        assert_eq!((told.reasons[0].reason(), told.reasons[0].requests), (CacheReason::Evicted, 3));
        assert_eq!(told.lookups, 2);
    }

    #[test]
    fn a_reason_is_logged_as_the_protocol_spells_it() {
        assert_eq!(reason_name(Reason::NoRestorePoint), "NO_RESTORE_POINT");
        assert_eq!(reason_name(Reason::Full), "FULL");
    }
}
