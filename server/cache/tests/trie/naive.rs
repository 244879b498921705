//! The model: what a lookup must find, told from the payloads that are alive and nothing else.

use std::collections::BTreeSet;

use crate::storage::{Integers, Owner, Record};

/// What a lookup must say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) matched: usize,
    pub(crate) resumed: usize,
}

fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// The longest prefix of all but the last symbol that living spans cover, and where it can be
/// resumed.
pub(crate) fn lookup(
    store: &Integers,
    owner: &Owner,
    needs_points: bool,
    symbols: &[u32],
) -> Expected {
    let key = &symbols[..symbols.len().saturating_sub(1)];
    let ours = |record: &&Record| record.owner == *owner;
    let spans: Vec<_> = store.alive.values().filter(ours).filter(|one| !one.is_point).collect();
    let mut matched = 0;
    while let Some(next) =
        spans.iter().find(|span| span.start == matched && common(&span.path, key) > matched)
    {
        matched = common(&next.path, key);
        if matched < next.end() {
            break;
        }
    }
    let mut points = store.alive.values().filter(ours).filter(|one| one.is_point);
    let resumed = if needs_points {
        let fits = |point: &Record| point.end() <= matched && point.path[..] == key[..point.end()];
        points.by_ref().filter(|point| fits(point)).map(Record::end).max().unwrap_or(0)
    } else {
        matched
    };
    Expected { matched, resumed }
}

/// Everything that was ever stored: what is found must be of it, and where nothing is ever lost all
/// of it must be found.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Paths covered by spans, each with all of its beginnings in mind.
    paths: Vec<(Owner, Vec<u32>)>,
    /// Paths with a point at their end.
    points: BTreeSet<(u64, Option<String>, Vec<u32>)>,
}

impl History {
    pub(crate) fn stored(&mut self, owner: &Owner, path: &[u32]) {
        let covered =
            |(other, longer): &(Owner, Vec<u32>)| other == owner && longer.starts_with(path);
        if !path.is_empty() && !self.paths.iter().any(covered) {
            self.paths.retain(|(other, shorter)| other != owner || !path.starts_with(shorter));
            self.paths.push((owner.clone(), path.to_vec()));
        }
    }

    pub(crate) fn pointed(&mut self, owner: &Owner, path: &[u32]) {
        self.points.insert((owner.domain.fingerprint, owner.salt.clone(), path.to_vec()));
    }

    /// What would be found if nothing had ever been lost.
    pub(crate) fn lookup(&self, owner: &Owner, needs_points: bool, symbols: &[u32]) -> Expected {
        let key = &symbols[..symbols.len().saturating_sub(1)];
        let ours = self.paths.iter().filter(|(other, _)| other == owner);
        let matched = ours.map(|(_, path)| common(path, key)).max().unwrap_or(0);
        let has_point = |offset: &usize| {
            let path = key[..*offset].to_vec();
            self.points.contains(&(owner.domain.fingerprint, owner.salt.clone(), path))
        };
        let resumed =
            if needs_points { (1..=matched).rev().find(has_point).unwrap_or(0) } else { matched };
        Expected { matched, resumed }
    }
}
