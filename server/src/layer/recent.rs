//! The requests that ended last, for whoever looks at a server: what the access log says of each,
//! kept for a while. Prompts and completions are not in it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::access_log::Facts;

/// Requests that are kept; the oldest goes when another ends.
pub const RECENT_MAX: usize = 50;

/// A request that ended.
#[derive(Debug, Clone)]
pub struct RecentRequest {
    /// The RPC's full name.
    pub rpc: String,
    /// How it ended, as gRPC spells it.
    pub code: &'static str,
    /// Its identity, the caller's or ours.
    pub request_id: String,
    /// What its handler told of it.
    pub facts: Facts,
    /// How long it took.
    pub took: Duration,
    /// When it ended.
    pub ended: Instant,
}

/// The last [`RECENT_MAX`] requests; clones share them.
#[derive(Debug, Clone, Default)]
pub struct RecentRequests(Arc<Mutex<VecDeque<RecentRequest>>>);

impl RecentRequests {
    /// Keeps one.
    pub fn push(&self, request: RecentRequest) {
        let mut requests = self.0.lock();
        if requests.len() == RECENT_MAX {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    /// Those that are kept, the last first.
    pub fn newest_first(&self) -> Vec<RecentRequest> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_are_enough() {
        let recent = RecentRequests::default();
        for number in 0..RECENT_MAX + 3 {
            recent.push(RecentRequest {
                rpc: "x".into(),
                code: "OK",
                request_id: number.to_string(),
                facts: Facts::default(),
                took: Duration::ZERO,
                ended: Instant::now(),
            });
        }
        let kept = recent.newest_first();
        assert_eq!(kept.len(), RECENT_MAX);
        assert_eq!(kept[0].request_id, (RECENT_MAX + 2).to_string());
    }
}
