//! The prefix cache of a model as a drawing: the tree, then the tiers, then why prompts were
//! recomputed.

use sconce_proto::v1::{CacheNode, CacheTier, DescribeCacheResponse, Tier};
use serde_json::{Value, json};

use super::report::{explained, tier_name};
use crate::cli::output;

/// Deepest level that is indented; what lies deeper stands under it.
const INDENT_LEVELS_MAX: usize = 32;

/// Everything a description tells, drawn.
pub(crate) fn draw(cache: &DescribeCacheResponse) -> String {
    let mut text = nodes(cache);
    if cache.nodes_left_out > 0 {
        text += &format!("... and {} nodes more\n", cache.nodes_left_out);
    }
    text.push('\n');
    text += &tiers(&cache.tiers);
    text += &format!("\n{} lookups\n", cache.lookups);
    for count in &cache.reasons {
        text += &format!("{:>8}  {}\n", count.requests, explained(count.reason()));
    }
    text
}

/// One row for each node, indented by its level.
fn nodes(cache: &DescribeCacheResponse) -> String {
    let levels = levels(&cache.nodes);
    let rows: Vec<Vec<String>> = cache
        .nodes
        .iter()
        .zip(levels)
        .map(|(node, level)| row(node, level, cache.lookups))
        .collect();
    if rows.is_empty() {
        return "nothing is remembered\n".to_owned();
    }
    let header = ["tokens", "up to", "span", "point", "tier", "hits", "lookups ago", "marks"];
    output::table(&header, &[1, 2, 3, 5, 6], &rows)
}

/// How many nodes are above each; parents stand before their children.
fn levels(nodes: &[CacheNode]) -> Vec<usize> {
    let mut levels = Vec::with_capacity(nodes.len());
    for node in nodes {
        let above = node.parent.and_then(|parent| levels.get(parent as usize));
        levels.push(above.map_or(0, |level| level + 1));
    }
    levels
}

fn row(node: &CacheNode, level: usize, lookups: u64) -> Vec<String> {
    let indent = "  ".repeat(level.min(INDENT_LEVELS_MAX));
    let marks = [
        (node.restore_point, "restore point"),
        (node.pinned, "pinned"),
        (node.leased, "leased"),
        (node.tier() == Tier::Unspecified, "evicted"),
    ];
    let marks: Vec<&str> = marks.iter().filter(|(is, _)| *is).map(|&(_, mark)| mark).collect();
    let held = |bytes: u64| if bytes == 0 { "-".to_owned() } else { output::bytes(bytes) };
    vec![
        format!("{indent}+{}", node.edge_tokens),
        node.depth_tokens.to_string(),
        held(node.span_bytes),
        held(node.point_bytes),
        tier_name(node.tier()).to_owned(),
        node.hits.to_string(),
        lookups.saturating_sub(node.last_use).to_string(),
        marks.join(", "),
    ]
}

fn tiers(tiers: &[CacheTier]) -> String {
    let rows: Vec<Vec<String>> = tiers
        .iter()
        .map(|tier| {
            let limit = match tier.limit_bytes {
                0 => "off".to_owned(),
                u64::MAX => "none".to_owned(),
                bytes => output::bytes(bytes),
            };
            vec![
                tier_name(tier.tier()).to_owned(),
                output::bytes(tier.used_bytes),
                limit,
                output::bytes(tier.span_bytes),
                output::bytes(tier.point_bytes),
                tier.nodes.to_string(),
                tier.resumed_tokens.to_string(),
            ]
        })
        .collect();
    let header = ["tier", "used", "limit", "spans", "points", "nodes", "tokens resumed"];
    output::table(&header, &[1, 2, 3, 4, 5, 6], &rows)
}

/// A description as JSON, named as in the protocol.
pub(crate) fn json(model: &str, cache: &DescribeCacheResponse) -> Value {
    let reasons = cache
        .reasons
        .iter()
        .map(|count| json!({ "reason": count.reason().as_str_name(), "requests": count.requests }));
    json!({
        "model": model,
        "nodes": cache.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "nodes_left_out": cache.nodes_left_out,
        "tiers": cache.tiers.iter().map(tier_json).collect::<Vec<_>>(),
        "reasons": reasons.collect::<Vec<_>>(),
        "lookups": cache.lookups,
    })
}

fn node_json(node: &CacheNode) -> Value {
    json!({
        "parent": node.parent,
        "edge_tokens": node.edge_tokens,
        "depth_tokens": node.depth_tokens,
        "restore_point": node.restore_point,
        "bytes": node.bytes,
        "span_bytes": node.span_bytes,
        "point_bytes": node.point_bytes,
        "tier": node.tier().as_str_name(),
        "pinned": node.pinned,
        "leased": node.leased,
        "hits": node.hits,
        "last_use": node.last_use,
    })
}

fn tier_json(tier: &CacheTier) -> Value {
    json!({
        "tier": tier.tier().as_str_name(),
        "limit_bytes": tier.limit_bytes,
        "used_bytes": tier.used_bytes,
        "span_bytes": tier.span_bytes,
        "point_bytes": tier.point_bytes,
        "nodes": tier.nodes,
        "resumed_tokens": tier.resumed_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_proto::v1::{CacheReason, CacheReasonCount};

    fn node(parent: Option<u32>, edge_tokens: u32, depth_tokens: u32) -> CacheNode {
        CacheNode {
            parent,
            edge_tokens,
            depth_tokens,
            bytes: 2000,
            span_bytes: 2000,
            tier: Tier::Device.into(),
            ..CacheNode::default()
        }
    }

    #[test]
    fn the_tree_is_indented_and_its_nodes_are_marked() {
        let marked = CacheNode {
            restore_point: true,
            pinned: true,
            leased: true,
            point_bytes: 3000,
            tier: Tier::Disk.into(),
            hits: 3,
            last_use: 5,
            ..node(Some(0), 64, 192)
        };
        let evicted = CacheNode { bytes: 0, span_bytes: 0, tier: 0, ..node(None, 7, 7) };
        let cache = DescribeCacheResponse {
            nodes: vec![node(None, 128, 128), marked, evicted],
            nodes_left_out: 2,
            tiers: vec![CacheTier { tier: Tier::Disk.into(), ..CacheTier::default() }],
            reasons: vec![CacheReasonCount { reason: CacheReason::Full.into(), requests: 12 }],
            lookups: 9,
        };
        let expected = "\
tokens  up to     span    point  tier    hits  lookups ago  marks
+128      128  2.00 kB        -  device     0            9
  +64     192  2.00 kB  3.00 kB  disk       3            4  restore point, pinned, leased
+7          7        -        -  -          0            9  evicted
... and 2 nodes more

tier  used  limit  spans  points  nodes  tokens resumed
disk   0 B    off    0 B     0 B      0               0

9 lookups
      12  all of it is remembered
";
        assert_eq!(draw(&cache), expected);
    }

    #[test]
    fn a_deep_tree_stays_on_the_screen() {
        let nodes = (0..1000).map(|above: u32| node(above.checked_sub(1), 1, above + 1)).collect();
        let cache = DescribeCacheResponse { nodes, ..DescribeCacheResponse::default() };
        let widest = draw(&cache).lines().map(str::len).max().unwrap_or_default();
        assert!(widest < 3 * INDENT_LEVELS_MAX + 60, "{widest} columns");
    }

    #[test]
    fn an_empty_cache_says_so() {
        let cache = DescribeCacheResponse::default();
        assert!(draw(&cache).starts_with("nothing is remembered\n"));
    }
}
