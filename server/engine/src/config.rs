//! What an engine is built with: bounds, budgets and a clock.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_cache::{Budgets, Policy};

use crate::cache::Spacing;

/// Bounds and budgets of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most requests that wait for admission, over all models; one more is refused.
    pub waiting_max: usize,
    /// Most requests of one model that are admitted and not finished, paused and preempted ones
    /// included.
    pub running_max: usize,
    /// Most tokens of one step; a model may allow fewer.
    pub step_tokens_max: usize,
    /// Bytes each tier may hold.
    pub budgets: Budgets,
    /// What is remembered.
    pub cache: CacheConfig,
}

/// What is remembered, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Most bytes of the models' pools that hold state for requests to come; 0 turns the tier off.
    pub device: u64,
    /// Most bytes of main memory beside the pools; 0 turns the tier off.
    pub host: u64,
    /// Most bytes of files; 0 turns the tier off.
    pub disk: u64,
    /// Where the files lie; `None` turns the tier off.
    pub directory: Option<PathBuf>,
    /// What goes first when there is no room.
    pub policy: Policy,
    /// Where the state of recurrent models is kept.
    pub spacing: Spacing,
    /// Longest that an engine waits at its end for the disk.
    pub save_time_max: Duration,
}

impl CacheConfig {
    /// Nothing is remembered.
    pub fn off() -> Self {
        Self { device: 0, ..Self::default() }
    }

    /// Bytes of cached state in each tier.
    pub(crate) fn limits(&self, has_disk: bool) -> Budgets {
        Budgets { device: self.device, host: self.host, disk: if has_disk { self.disk } else { 0 } }
    }
}

impl Default for CacheConfig {
    /// All of the pools, and nothing beside them.
    fn default() -> Self {
        Self {
            device: u64::MAX,
            host: 0,
            disk: 0,
            directory: None,
            policy: Policy::default(),
            spacing: Spacing::default(),
            save_time_max: Duration::from_secs(60),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            waiting_max: 512,
            running_max: 64,
            step_tokens_max: 2048,
            budgets: Budgets { device: u64::MAX, host: u64::MAX, disk: u64::MAX },
            cache: CacheConfig::default(),
        }
    }
}

/// Where the engine takes the time from; another than the system's lets a test pass a deadline
/// without waiting for it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// A clock that reads `now`. Whoever turns it forward by more than time itself calls
    /// [`EngineHandle::wake`](crate::EngineHandle::wake), for the engine sleeps until the next
    /// deadline that it knows.
    pub fn new(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The current time.
    pub fn now(&self) -> Instant {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Instant::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
