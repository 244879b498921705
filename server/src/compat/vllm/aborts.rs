//! Which requests run, by the name that their caller gave them, so that another call can end them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;

/// All that run; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Aborts {
    running: Arc<Mutex<HashMap<Name, Entry>>>,
}

/// Whose request it is, and what they called it: nobody ends the requests of others.
type Name = (Option<Arc<str>>, String);

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
    name: Name,
    token: CancellationToken,
}

impl Aborts {
    /// Enters a request. One without a name cannot be aborted.
    pub(super) fn register(&self, caller: &Caller, name: &str) -> Registered {
        let name = (caller.name().cloned(), name.to_owned());
        let token = if name.1.is_empty() {
            CancellationToken::new()
        } else {
            let mut running = self.running.lock();
            let new = || Entry { token: CancellationToken::new(), requests: 0 };
            let entry = running.entry(name.clone()).or_insert_with(new);
            entry.requests += 1;
            entry.token.clone()
        };
        Registered { aborts: self.clone(), name, token }
    }

    /// Tells the requests of a name that are the caller's to end, if there are any.
    pub(super) fn abort(&self, caller: &Caller, name: &str) {
        let name = (caller.name().cloned(), name.to_owned());
        if let Some(entry) = self.running.lock().get(&name) {
            entry.token.cancel();
        }
    }

    /// How many names there are.
    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        self.running.lock().len()
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
        let (aborts, me) = (Aborts::default(), Caller::anonymous());
        let (one, two, other) =
            (aborts.register(&me, "a"), aborts.register(&me, "a"), aborts.register(&me, "b"));
        let theirs = aborts.register(&Caller::known("them".into(), true), "a");
        drop(one);
        aborts.abort(&me, "a");
        aborts.abort(&me, "unknown");
        assert!(two.token().is_cancelled() && !other.token().is_cancelled());
        assert!(!theirs.token().is_cancelled(), "it is another's");
        drop((two, other, theirs));
        assert!(aborts.running.lock().is_empty());
        let again = aborts.register(&me, "a");
        assert!(!again.token().is_cancelled(), "a name can be used again");
    }

    #[test]
    fn requests_without_a_name_share_nothing() {
        let (aborts, me) = (Aborts::default(), Caller::anonymous());
        let (one, two) = (aborts.register(&me, ""), aborts.register(&me, ""));
        aborts.abort(&me, "");
        assert!(!one.token().is_cancelled() && !two.token().is_cancelled());
    }
}
