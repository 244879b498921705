//! What a handle asks of the cache: snapshots, what a prompt would resume, the trie as data.

use std::time::Duration;

use sconce_cache::{NodeView, SnapshotSpec};
use tokio::sync::oneshot;

use crate::cache::{CacheEvents, CachePicture, Import};
use crate::error::EngineError;
use crate::event::{CacheReport, Event};
use crate::handle::EngineHandle;
use crate::request::CacheUse;
use crate::sequence::Keep;
use crate::shared::{Command, Question};
use crate::snapshot::{SnapshotFile, SnapshotInfo, SnapshotRequest};

/// Longest name of a snapshot, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Longest life that is counted; more is no end.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl EngineHandle {
    /// Computes what of a prompt is not remembered yet, and keeps its state under a name.
    ///
    /// # Errors
    /// As [`generate`](Self::generate) and the events of a generation;
    /// [`EngineError::SnapshotTooLarge`], [`EngineError::CacheOff`], [`EngineError::OutOfMemory`] if
    /// too much is pinned.
    pub async fn snapshot(&self, request: SnapshotRequest) -> Result<SnapshotInfo, EngineError> {
        let SnapshotRequest { request, name, pinned, ttl } = request;
        check_name(&name)?;
        if request.cache.bypass {
            let expected = "false, for a snapshot is kept in the cache".to_owned();
            return Err(EngineError::InvalidOption {
                option: "bypass",
                expected,
                found: "true".into(),
            });
        }
        let (reply, answer) = oneshot::channel();
        let expires = self.expiry(ttl);
        let keep = Keep { spec: SnapshotSpec { name, pinned, expires }, reply };
        let mut generation = self.submit(request, Some(keep))?;
        while let Some(event) = generation.next().await {
            match event {
                Event::Failed(error) => return Err(error),
                Event::Finished(finished) => {
                    let waited = finished.timings.queue + finished.timings.prefill;
                    return answer.await.unwrap_or(Err(EngineError::DeadlineExceeded { waited }));
                }
                Event::Started(_) | Event::Token(_) => {}
            }
        }
        Err(EngineError::Stopped)
    }

    /// Every snapshot, sorted by model and name.
    ///
    /// # Errors
    /// [`EngineError::Stopped`], [`EngineError::Busy`].
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, EngineError> {
        self.ask(|reply| Box::new(move |_, cache| drop(reply.send(Ok(cache.snapshots()))))).await
    }

    /// Takes a snapshot's name away; what it covers can be evicted then.
    ///
    /// # Errors
    /// [`EngineError::SnapshotNotFound`].
    pub async fn drop_snapshot(&self, id: &str) -> Result<(), EngineError> {
        let id = id.to_owned();
        self.ask(|reply| {
            Box::new(move |residency, cache| {
                let dropped = cache.find(&id).map(|(id, domain)| {
                    let mut residents = residency.loaded();
                    let resident = residents.find(|resident| resident.domain == Some(domain));
                    let pool = resident.map(|resident| resident.holding.model.state_mut());
                    cache.drop_snapshot(id, pool);
                });
                drop(reply.send(dropped));
            })
        })
        .await
    }

    /// A snapshot as bytes for another server.
    ///
    /// # Errors
    /// [`EngineError::SnapshotNotFound`], [`EngineError::SnapshotDamaged`] if a file of it is.
    pub async fn export_snapshot(&self, id: &str) -> Result<SnapshotFile, EngineError> {
        self.export_snapshot_as(id, |salt| salt).await
    }

    /// As [`export_snapshot`](Self::export_snapshot), told as one of the salt that `salted` makes of
    /// that which it is kept under.
    ///
    /// # Errors
    /// As [`export_snapshot`](Self::export_snapshot).
    pub async fn export_snapshot_as(
        &self,
        id: &str,
        salted: impl FnOnce(Option<String>) -> Option<String> + Send + 'static,
    ) -> Result<SnapshotFile, EngineError> {
        let id = id.to_owned();
        self.ask(|reply| Box::new(move |_, cache| cache.export(&id, salted, reply))).await
    }

    /// Takes in a snapshot that another server has exported, under its name and its salt there. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// [`EngineError::SnapshotDamaged`], [`EngineError::SnapshotForeign`],
    /// [`EngineError::SnapshotTooLarge`].
    pub async fn import_snapshot(
        &self,
        model: &str,
        file: SnapshotFile,
    ) -> Result<SnapshotInfo, EngineError> {
        self.import_snapshot_as(model, file, |salt| salt).await
    }

    /// As [`import_snapshot`](Self::import_snapshot), under the salt that `salted` makes of the
    /// file's.
    ///
    /// # Errors
    /// [`EngineError::SnapshotDamaged`], [`EngineError::SnapshotForeign`],
    /// [`EngineError::SnapshotTooLarge`].
    pub async fn import_snapshot_as(
        &self,
        model: &str,
        file: SnapshotFile,
        salted: impl FnOnce(Option<String>) -> Option<String> + Send,
    ) -> Result<SnapshotInfo, EngineError> {
        check_name(&file.name)?;
        let about = self.model(model)?;
        let fingerprint = about.info.fingerprint;
        if file.fingerprint != fingerprint {
            let found = file.fingerprint;
            return Err(EngineError::SnapshotForeign { expected: fingerprint, found });
        }
        let ttl = file.ttl;
        let reading = tokio::task::spawn_blocking(move || Import::read(&file, fingerprint)).await;
        let mut import = reading.map_err(|panic| EngineError::SnapshotDamaged {
            problem: format!("it could not be read: {panic}"),
        })??;
        import.check(&about)?;
        import.resalt(salted);
        let expires = self.expiry(ttl);
        let model = model.to_owned();
        self.ask(|reply| {
            Box::new(move |residency, cache| {
                let imported = match residency.get(&model) {
                    Some(resident) => {
                        let pool = resident.holding.model.state_mut();
                        cache.memory(pool, resident.domain).import(import, expires, &model)
                    }
                    None => Err(EngineError::ModelNotFound { model }),
                };
                drop(reply.send(imported));
            })
        })
        .await
    }

    /// What a generation would resume of a prompt, without running it.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`], [`EngineError::EmptyPrompt`].
    pub async fn match_prefix(
        &self,
        model: &str,
        cache: &CacheUse,
        prompt: Vec<u32>,
    ) -> Result<CacheReport, EngineError> {
        self.model(model)?;
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let (model, used) = (model.to_owned(), cache.clone());
        self.ask(|reply| {
            Box::new(move |residency, cache| {
                let found = match residency.get(&model) {
                    Some(resident) => Ok(cache.look(resident.domain, &used, &prompt)),
                    None => Err(EngineError::ModelNotFound { model }),
                };
                drop(reply.send(found));
            })
        })
        .await
    }

    /// What is remembered for a model, as a tree: nodes depth first, the root first.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`].
    pub async fn describe_cache(&self, model: &str) -> Result<Vec<NodeView>, EngineError> {
        self.describe_cache_where(model, |_| true).await
    }

    /// As [`describe_cache`](Self::describe_cache), of the salts that are `told`.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`].
    pub async fn describe_cache_where(
        &self,
        model: &str,
        told: impl Fn(Option<&str>) -> bool + Send + 'static,
    ) -> Result<Vec<NodeView>, EngineError> {
        self.model(model)?;
        let model = model.to_owned();
        self.ask(|reply| {
            Box::new(move |residency, cache| {
                let described = match residency.get(&model) {
                    Some(resident) => Ok(cache.describe(resident.domain, told)),
                    None => Err(EngineError::ModelNotFound { model }),
                };
                drop(reply.send(described));
            })
        })
        .await
    }

    /// What happened to what is remembered, from event number `since` on (0: since the start), for
    /// those who keep a picture of it, as a gateway that routes by prefix does.
    ///
    /// # Errors
    /// [`EngineError::Stopped`], [`EngineError::Busy`].
    pub async fn cache_events(&self, since: u64) -> Result<CacheEvents, EngineError> {
        self.ask(|reply| Box::new(move |_, cache| drop(reply.send(Ok(cache.events(since)))))).await
    }

    /// All that is remembered for a model without a salt, where a picture made from
    /// [`cache_events`](Self::cache_events) begins.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`].
    pub async fn cache_picture(&self, model: &str) -> Result<CachePicture, EngineError> {
        self.model(model)?;
        let model = model.to_owned();
        self.ask(|reply| {
            Box::new(move |residency, cache| {
                let picture = match residency.get(&model) {
                    Some(resident) => Ok(cache.picture(resident.domain)),
                    None => Err(EngineError::ModelNotFound { model }),
                };
                drop(reply.send(picture));
            })
        })
        .await
    }

    /// Forgets what is remembered for a model, but for what running requests and snapshots need.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`].
    pub async fn flush_cache(&self, model: &str) -> Result<(), EngineError> {
        self.model(model)?;
        let model = model.to_owned();
        self.ask(|reply| {
            Box::new(move |residency, cache| {
                let flushed = match residency.get(&model) {
                    Some(resident) => {
                        cache.flush(resident.domain, resident.holding.model.state_mut());
                        Ok(())
                    }
                    None => Err(EngineError::ModelNotFound { model }),
                };
                drop(reply.send(flushed));
            })
        })
        .await
    }

    /// The end of a life that begins now, as the cache counts time.
    fn expiry(&self, ttl: Option<Duration>) -> Option<Duration> {
        let shared = self.shared();
        let now = shared.clock.now().saturating_duration_since(shared.began);
        ttl.filter(|ttl| *ttl < TTL_MAX).map(|ttl| now + ttl)
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) -> Question,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.push(Command::Ask(question(reply)))?;
        answer.await.map_err(|_| self.unanswered())?
    }
}

fn check_name(name: &str) -> Result<(), EngineError> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(EngineError::InvalidOption {
        option: "name",
        expected: format!("1 to {NAME_BYTES_MAX} bytes"),
        found: format!("{} bytes", name.len()),
    })
}
