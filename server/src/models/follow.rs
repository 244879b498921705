//! What an outsider keeps a picture of: which models are ready, the engine's status as it changes, and
//! what is remembered.

use std::sync::Arc;

use sconce_engine::{CacheEvents, CachePicture, LoadedModel, Status};
use tokio::sync::watch;

use super::Models;
use crate::error::CallError;

impl Models {
    /// Every model that is loaded, by name.
    pub fn loaded(&self) -> Vec<Arc<LoadedModel>> {
        self.inner.engine.models()
    }

    /// The model of that name, if it takes requests.
    pub fn loaded_as(&self, name: &str) -> Option<Arc<LoadedModel>> {
        self.inner.engine.model(name).ok()
    }

    /// Names of the models that take requests, in order.
    pub fn ready_names(&self) -> Vec<String> {
        let loaded = self.inner.engine.models().into_iter();
        loaded.filter_map(|model| Some(self.loaded_as(&model.name)?.name.clone())).collect()
    }

    /// A channel that holds the newest status and wakes when there is another.
    pub fn watch_status(&self) -> watch::Receiver<Arc<Status>> {
        self.inner.engine.watch_status()
    }

    /// What happened to what is remembered, from event number `since` on.
    ///
    /// # Errors
    /// The engine has stopped or is busy.
    pub async fn cache_events(&self, since: u64) -> Result<CacheEvents, CallError> {
        Ok(self.inner.engine.cache_events(since).await?)
    }

    /// All that is remembered for a model without a salt.
    ///
    /// # Errors
    /// There is no such model; the engine has stopped or is busy.
    pub async fn cache_picture(&self, name: &str) -> Result<CachePicture, CallError> {
        Ok(self.inner.engine.cache_picture(name).await?)
    }

    /// Forgets what is remembered for a model, but for what running requests and snapshots need.
    ///
    /// # Errors
    /// There is no such model; the engine has stopped or is busy.
    pub async fn flush_cache(&self, name: &str) -> Result<(), CallError> {
        Ok(self.inner.engine.flush_cache(name).await?)
    }
}
