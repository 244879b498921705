//! Counts of what somebody has of something, with a bound for each.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Places by holder, at most so many each; clones share them. Holders without a place take no memory.
#[derive(Debug)]
pub(crate) struct Quota<K> {
    max: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Clone for Quota<K> {
    fn clone(&self) -> Self {
        Self { max: self.max, taken: self.taken.clone() }
    }
}

impl<K: Clone + Eq + Hash> Quota<K> {
    /// At most `max` places for each holder.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: Arc::default() }
    }

    /// Most places of a holder.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// A place for `holder` until it is dropped; `None` if the holder has all it may have.
    pub(crate) fn enter(&self, holder: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock();
        let count = taken.get(&holder).copied().unwrap_or(0);
        if count >= self.max {
            return None;
        }
        taken.insert(holder.clone(), count + 1);
        Some(Place { holder, taken: self.taken.clone() })
    }
}

/// A place of a holder.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    holder: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_its_own_bound_and_gets_places_back() {
        let quota = Quota::new(2);
        let first = quota.enter("a").expect("is free");
        let _second = quota.enter("a").expect("is free");
        assert!(quota.enter("a").is_none());
        let other = quota.enter("b").expect("is another's");
        drop(first);
        assert!(quota.enter("a").is_some());
        drop(other);
        assert_eq!(quota.taken.lock().len(), 1, "a holder without a place is remembered");
    }
}
