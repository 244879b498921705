//! The server at one moment, as JSON. Times are in seconds; totals only grow, so that speeds are
//! their differences.

use std::time::Duration;

use sconce_cache::NodeView;
use sconce_engine::CacheStatus;
use sconce_proto::v1::{
    CacheNode, CacheReason, LoadProgress, LoadStage, MemoryLedger, ModelState, ModelStatus, Tier,
    Totals,
};
use serde_json::{Value, json};

use crate::build;
use crate::grpc::convert;
use crate::layer::recent::{RecentRequest, RecentRequests};
use crate::models::Models;

/// What `GetStatus` tells, and the requests that ended last, newest first.
pub(super) fn of(models: &Models, recent: &RecentRequests) -> Value {
    let engine = models.status();
    // Of secrets nothing is told where there are no credentials.
    let secrets = Vec::new();
    let status = convert::status(&engine, models.is_draining(), models.uptime(), secrets);
    let totals = status.totals.unwrap_or_default();
    let counts = status.sequences.unwrap_or_default();
    json!({
        "version": build::VERSION,
        "commit": build::commit(),
        "draining": status.draining,
        "uptime_seconds": models.uptime().as_secs_f64(),
        "sequences": {
            "running": counts.running,
            "waiting": counts.waiting,
            "waiting_max": engine.waiting_max,
        },
        "memory": status.memory.iter().map(tier).collect::<Vec<_>>(),
        "models": status.models.iter().map(model).collect::<Vec<_>>(),
        "totals": self::totals(&totals),
        "cache_reasons": totals.cache_reasons.iter().map(|count| json!({
            "reason": reason(count.reason()),
            "requests": count.requests,
        })).collect::<Vec<_>>(),
        "recent": recent.newest_first().iter().map(request).collect::<Vec<_>>(),
    })
}

/// The first nodes of a tree: parents before their children, by their place in the list.
pub(super) fn tree(nodes: &[NodeView], nodes_max: usize, status: &CacheStatus) -> Value {
    let told = convert::described(nodes, nodes_max, status);
    json!({
        "nodes": told.nodes.iter().map(node).collect::<Vec<_>>(),
        "nodes_left_out": told.nodes_left_out,
    })
}

fn node(node: &CacheNode) -> Value {
    json!({
        "parent": node.parent,
        "edge_tokens": node.edge_tokens,
        "depth_tokens": node.depth_tokens,
        "restore_point": node.restore_point,
        "bytes": node.bytes,
        "tier": tier_name(node.tier()),
        "hits": node.hits,
        "pinned": node.pinned,
        "leased": node.leased,
    })
}

fn tier(ledger: &MemoryLedger) -> Value {
    json!({
        "tier": tier_name(ledger.tier()),
        "budget_bytes": ledger.budget_bytes,
        "weights_bytes": ledger.weights_bytes,
        "workspace_bytes": ledger.workspace_bytes,
        "live_state_bytes": ledger.live_state_bytes,
        "cached_state_bytes": ledger.cached_state_bytes,
    })
}

fn model(model: &ModelStatus) -> Value {
    let counts = model.sequences.unwrap_or_default();
    json!({
        "model": model.model,
        "state": match model.state() {
            ModelState::Unspecified => "unknown",
            ModelState::Loading => "loading",
            ModelState::Ready => "ready",
            ModelState::Unloading => "unloading",
            ModelState::Failed => "failed",
        },
        "progress": model.progress.as_ref().map(progress),
        "running": counts.running,
        "waiting": counts.waiting,
        "state_bytes_used": model.state_bytes_used,
        "idle_seconds": model.idle.map(|idle| seconds(Some(idle))),
    })
}

fn progress(progress: &LoadProgress) -> Value {
    json!({
        "stage": match progress.stage() {
            LoadStage::Unspecified => "unknown",
            LoadStage::Open => "open",
            LoadStage::Tokenizer => "tokenizer",
            LoadStage::Weights => "weights",
        },
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
    })
}

fn totals(totals: &Totals) -> Value {
    json!({
        "requests_accepted": totals.requests_accepted,
        "requests_finished": totals.requests_finished,
        "requests_failed": totals.requests_failed,
        "requests_cancelled": totals.requests_cancelled,
        "preemptions": totals.preemptions,
        "steps": totals.steps,
        "step_seconds": seconds(totals.step_time),
        "step_tokens": totals.step_tokens,
        "prompt_tokens": totals.prompt_tokens,
        "resumed_tokens": totals.resumed_tokens,
        "completion_tokens": totals.completion_tokens,
        "first_tokens": totals.first_tokens,
        "first_token_seconds": seconds(totals.first_token_time),
        "token_gap_seconds": seconds(totals.token_gap_time),
    })
}

fn request(request: &RecentRequest) -> Value {
    json!({
        "rpc": request.rpc,
        "code": request.code,
        "request_id": request.request_id,
        "model": request.facts.model,
        "prompt_tokens": request.facts.prompt_tokens,
        "cached_tokens": request.facts.cached_tokens,
        "completion_tokens": request.facts.completion_tokens,
        "first_token_seconds": request.facts.first_token.map(|time| time.as_secs_f64()),
        "seconds": request.took.as_secs_f64(),
        "ended_seconds_ago": request.ended.elapsed().as_secs_f64(),
    })
}

fn seconds(wire: Option<prost_types::Duration>) -> f64 {
    wire.and_then(|wire| Duration::try_from(wire).ok()).unwrap_or_default().as_secs_f64()
}

/// A tier as people call it; none for nowhere.
fn tier_name(tier: Tier) -> Option<&'static str> {
    match tier {
        Tier::Unspecified => None,
        Tier::Device => Some("device"),
        Tier::Host => Some("host"),
        Tier::Disk => Some("disk"),
    }
}

/// A reason as the protocol spells it, without the prefix that all have.
fn reason(reason: CacheReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("CACHE_REASON_").unwrap_or(name)
}
