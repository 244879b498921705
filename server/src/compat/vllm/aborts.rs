//! Which requests run, by the name that their caller gave them, so that another call can end them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// All that run; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Aborts {
    running: Arc<Mutex<HashMap<String, Entry>>>,
}

/// Requests of one name: a gateway that tries again may have two.
#[derive(Debug)]
struct Entry {
    token: CancellationToken,
    requests: usize,
}

/// A request's place among those that run, for as long as it lives.
#[derive(Debug)]
pub(super) struct Registered {
    aborts: Aborts,
    name: String,
    token: CancellationToken,
}

impl Aborts {
    /// Enters a request. One without a name cannot be aborted.
    pub(super) fn register(&self, name: &str) -> Registered {
        let token = if name.is_empty() {
            CancellationToken::new()
        } else {
            let mut running = self.running.lock();
            let new = || Entry { token: CancellationToken::new(), requests: 0 };
            let entry = running.entry(name.to_owned()).or_insert_with(new);
            entry.requests += 1;
            entry.token.clone()
        };
        Registered { aborts: self.clone(), name: name.to_owned(), token }
    }

    /// Tells the requests of a name to end, if there are any.
    pub(super) fn abort(&self, name: &str) {
        if let Some(entry) = self.running.lock().get(name) {
            entry.token.cancel();
        }
    }
}

impl Registered {
    /// Cancelled when the request is to end.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut running = self.aborts.running.lock();
        if let Some(entry) = running.get_mut(&self.name) {
            entry.requests -= 1;
            if entry.requests == 0 {
                running.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requests_of_a_name_are_told_and_none_stays_behind() {
        let aborts = Aborts::default();
        let (one, two, other) = (aborts.register("a"), aborts.register("a"), aborts.register("b"));
        drop(one);
        aborts.abort("a");
        aborts.abort("unknown");
        assert!(two.token().is_cancelled() && !other.token().is_cancelled());
        drop((two, other));
        assert!(aborts.running.lock().is_empty());
        let again = aborts.register("a");
        assert!(!again.token().is_cancelled(), "a name can be used again");
    }

    #[test]
    fn requests_without_a_name_share_nothing() {
        let aborts = Aborts::default();
        let (one, two) = (aborts.register(""), aborts.register(""));
        aborts.abort("");
        assert!(!one.token().is_cancelled() && !two.token().is_cancelled());
    }
}
