//! A small world around a trie: domains, running sequences, memory pressure; and after each step
//! everything that must be true of it.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_cache::{
    Adopted, Budgets, Class, CostModel, DomainId, DomainKey, DomainShape, Error, LeaseId, Ledger,
    Lost, Policy, Reservation, SnapshotId, SnapshotSpec, Tier, Trie, TrieConfig, What,
};

use crate::naive::{self, History};
use crate::storage::{Integers, Moods, Owner, PAGE, Point, Span, limit};

/// Longest prompt.
const LONGEST: usize = 120;
/// Most sequences at a time.
const SEQUENCES: usize = 5;
const SALTS: [Option<&str>; 3] = [None, Some("a"), Some("b")];

/// One thing that happens; the numbers are taken modulo what there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) kind: u8,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
}

/// What a world is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nature {
    pub(crate) limits: Budgets,
    /// Which of the three domains need points, as bits.
    pub(crate) needs_points: u8,
    pub(crate) domains: usize,
    pub(crate) policy: Policy,
    pub(crate) ghost_tokens_max: usize,
    /// Nothing is ever lost, so lookups must be exact.
    pub(crate) endless: bool,
}

struct Sequence {
    lease: LeaseId,
    domain: usize,
    salt: Option<&'static str>,
    symbols: Vec<u32>,
    /// What the lease must cover at least.
    covered: usize,
}

pub(crate) struct World {
    pub(crate) trie: Trie<Span, Point>,
    pub(crate) store: Integers,
    nature: Nature,
    ledger: Ledger,
    /// The pools behind the device, and what somebody else holds of host memory.
    pools: Option<Reservation>,
    squeeze: Option<Reservation>,
    domains: Vec<(DomainKey, DomainId)>,
    sequences: Vec<Sequence>,
    history: History,
    pinned: BTreeMap<SnapshotId, usize>,
    now: Duration,
    pub(crate) steps: u64,
}

/// One of a few stories that prompts are cut from, so that they share beginnings.
fn story(number: u32, at: usize) -> u32 {
    let mixed = (number.wrapping_mul(0x9e37_79b9) ^ at as u32).wrapping_mul(0x85eb_ca6b);
    (mixed >> 13) % 3
}

impl World {
    pub(crate) fn new(nature: Nature) -> Self {
        // The ledger may have room for more than the trie may take.
        let slack = u64::from(nature.ghost_tokens_max > 100) * 500;
        let Budgets { device, host, disk } = nature.limits;
        let ledger =
            Ledger::new(Budgets { device: device + slack, host: host + slack, disk: disk + slack });
        let pools = ledger.reserve(Tier::Device, Class::LiveState, device + slack).ok();
        let config = TrieConfig {
            policy: nature.policy,
            half_life: 8.0,
            ghost_tokens_max: nature.ghost_tokens_max,
            snapshots_max: 6,
            events_max: 16,
            event_tokens_max: 200,
            ..TrieConfig::new(nature.limits)
        };
        let mut world = Self {
            trie: Trie::new(config, &ledger),
            store: Integers::new(nature.limits),
            nature,
            ledger,
            pools,
            squeeze: None,
            domains: Vec::new(),
            sequences: Vec::new(),
            history: History::default(),
            pinned: BTreeMap::new(),
            now: Duration::ZERO,
            steps: 0,
        };
        for index in 0..nature.domains {
            world.open(index);
        }
        world
    }

    fn needs_points(&self, domain: usize) -> bool {
        self.nature.needs_points >> domain & 1 == 1
    }

    fn open(&mut self, index: usize) {
        let key = DomainKey { fingerprint: index as u64 + 1, instance: 0 };
        let shape = DomainShape {
            needs_points: self.needs_points(index),
            page_tokens: PAGE,
            cost: CostModel::default(),
        };
        let id = self.trie.open_domain(key, shape);
        if index == self.domains.len() {
            self.domains.push((key, id));
        }
        assert_eq!(self.domains[index], (key, id), "a domain is found again");
    }

    fn owner(&self, domain: usize, salt: Option<&str>) -> Owner {
        Owner { domain: self.domains[domain].0, salt: salt.map(str::to_owned) }
    }

    /// A prompt: the beginning of one story, and then another.
    fn prompt(&self, step: Step) -> (usize, Option<&'static str>, Vec<u32>) {
        let domain = step.a as usize % self.domains.len();
        let salt = SALTS[[0, 0, 0, 0, 1, 2][(step.a >> 4) as usize % 6]];
        let length = 1 + (step.b >> 8) as usize % LONGEST;
        let fork = (step.b & 0xff) as usize % length;
        let (one, other) = (step.c % 3, (step.c >> 4) % 5);
        let symbols =
            (0..length)
                .map(|at| {
                    if at < fork { story(one, at) } else { story(other + 7 * (at / 50) as u32, at) }
                })
                .collect();
        (domain, salt, symbols)
    }

    /// Does one step, and checks everything.
    pub(crate) fn step(&mut self, step: Step) -> Result<(), String> {
        self.steps += 1;
        let damaged = self.store.damaged;
        let mut forgot = false;
        match step.kind % 32 {
            0..=5 => self.start(step),
            6..=12 => self.extend(step),
            13..=15 => self.attach(step),
            16..=18 => self.end(step),
            19 => self.shorten(step),
            20 | 21 => self.page_in(step),
            22 | 23 => self.evict(step),
            24 | 25 => self.name(step)?,
            26 => self.unname(step),
            27 => self.adopt(step),
            28 => forgot = self.forget(step),
            29 => self.swap(step),
            30 => self.upheaval(step),
            _ => self.weather(step),
        }
        let lost = forgot || self.store.damaged > damaged;
        self.check(lost)?;
        self.check_lookup(step)
    }

    fn start(&mut self, step: Step) {
        if self.sequences.len() >= SEQUENCES {
            self.end(step);
        }
        let (domain, salt, symbols) = self.prompt(step);
        let before = self.trie.lookup(self.domains[domain].1, salt, &symbols);
        let (lease, found) = self.trie.lease(self.domains[domain].1, salt, &symbols);
        assert_eq!(before, found, "a dry run says what the lease finds");
        assert_eq!(self.trie.leased(lease), found.resumed);
        let covered = found.resumed;
        self.sequences.push(Sequence { lease, domain, salt, symbols, covered });
    }

    /// Which sequence a step is about.
    fn chosen(&self, step: Step) -> Option<usize> {
        (!self.sequences.is_empty()).then(|| step.a as usize % self.sequences.len())
    }

    fn extend(&mut self, step: Step) {
        let Some(index) = self.chosen(step) else { return self.start(step) };
        let owner = self.owner(self.sequences[index].domain, self.sequences[index].salt);
        let sequence = &mut self.sequences[index];
        if step.c.is_multiple_of(3) && sequence.symbols.len() < 2 * LONGEST {
            // Generated tokens.
            let at = sequence.symbols.len();
            sequence.symbols.extend((at..at + 9).map(|at| story(step.c % 5, at)));
        }
        let ahead = sequence.symbols.len() - sequence.covered.min(sequence.symbols.len());
        let end = sequence.covered + (step.b as usize % (ahead + 1));
        let symbols = sequence.symbols.clone();
        let gives = if self.nature.endless { 32 } else { (step.c >> 8) % 9 };
        let mut asked = Vec::new();
        let reached = self.trie.extend(
            &mut self.store,
            sequence.lease,
            &symbols,
            end,
            &mut |store: &mut Integers, range| {
                asked.push(range.clone());
                let path = &symbols[..range.end];
                (asked.len() as u32 <= gives)
                    .then(|| store.make_span(&owner, path, range.start, Tier::Device))
            },
        );
        assert!(asked.iter().all(|range| range.end <= end && range.start < range.end));
        assert!(asked.is_sorted_by(|one, next| one.end <= next.start), "no token is made twice");
        assert!(sequence.covered <= reached && reached <= end.max(sequence.covered));
        sequence.covered = reached;
        self.history.stored(&owner, &symbols[..reached]);
        if self.nature.endless {
            assert_eq!(reached, end, "there is room for everything");
        }
    }

    fn attach(&mut self, step: Step) {
        let Some(index) = self.chosen(step) else { return };
        let sequence = &self.sequences[index];
        let owner = self.owner(sequence.domain, sequence.salt);
        let offset = step.b as usize % (sequence.covered + 2);
        let offset = if step.c.is_multiple_of(2) { sequence.covered } else { offset };
        let inside = 0 < offset && offset <= sequence.covered;
        let path = &sequence.symbols[..offset.min(sequence.symbols.len())];
        let had = self.trie.has_point(sequence.lease, offset);
        let point = self.store.make_point(&owner, path, Tier::Device);
        let kept = self.trie.attach(&mut self.store, sequence.lease, offset, point);
        assert!(!kept || (inside && !had && self.needs_points(sequence.domain)));
        if kept {
            assert!(self.trie.has_point(sequence.lease, offset));
            self.history.pointed(&owner, path);
        }
        if self.nature.endless && inside && self.needs_points(sequence.domain) {
            assert_ne!(kept, had, "there is room for everything");
        }
    }

    fn end(&mut self, step: Step) {
        if let Some(index) = self.chosen(step) {
            let gone = self.sequences.swap_remove(index);
            self.trie.release(gone.lease);
            assert_eq!(self.trie.leased(gone.lease), 0);
        }
    }

    fn shorten(&mut self, step: Step) {
        let Some(index) = self.chosen(step) else { return };
        let needs_points = self.needs_points(self.sequences[index].domain);
        let sequence = &mut self.sequences[index];
        let upto = step.b as usize % (sequence.covered + 3);
        let left = self.trie.shorten(sequence.lease, upto);
        assert!(left <= upto.min(sequence.covered));
        if !needs_points {
            assert_eq!(left, upto.min(sequence.covered), "it can be resumed anywhere");
        } else if left > 0 && left < sequence.covered {
            assert!(self.trie.point(sequence.lease).is_some(), "it can be resumed there");
        }
        sequence.covered = left;
    }

    fn page_in(&mut self, step: Step) {
        let Some(index) = self.chosen(step) else { return };
        let sequence = &mut self.sequences[index];
        let left = self.trie.page_in(&mut self.store, sequence.lease);
        assert!(left <= sequence.covered);
        sequence.covered = left;
        if self.nature.limits.device > 0 {
            let mut spans = self.trie.spans(sequence.lease);
            assert!(spans.all(|(_, tier, _)| tier == Tier::Device), "a lease is on the device now");
        }
    }

    fn evict(&mut self, step: Step) {
        if self.nature.endless {
            return;
        }
        let domain = self.domains[step.a as usize % self.domains.len()].1;
        let what = if step.b.is_multiple_of(3) { What::Points } else { What::Pages };
        let before = self.store.used(Tier::Device);
        let wanted = u64::from(step.c % 200);
        let done = self.trie.evict(&mut self.store, domain, what, &mut |store: &Integers| {
            before - store.used(Tier::Device) >= wanted
        });
        assert!(!done || before - self.store.used(Tier::Device) >= wanted);
    }

    fn name(&mut self, step: Step) -> Result<(), String> {
        let Some(index) = self.chosen(step) else { return Ok(()) };
        let sequence = &self.sequences[index];
        let offset = step.b as usize % (sequence.covered + 1);
        let offset = if step.c.is_multiple_of(4) { sequence.covered } else { offset };
        let pinned = step.c.is_multiple_of(3);
        let expires = (step.c >> 4).is_multiple_of(2).then(|| self.now + Duration::from_secs(20));
        let name = format!("name {}", (step.c >> 8) % 5);
        let spec = SnapshotSpec { name: name.clone(), pinned, expires };
        let lease = sequence.lease;
        let had_point = self.trie.has_point(lease, offset);
        let resumable = offset > 0 && (had_point || !self.needs_points(sequence.domain));
        match self.trie.name(&mut self.store, lease, offset, spec) {
            Ok(id) => {
                if !resumable {
                    return Err(format!("{name} was given at {offset}, where nothing resumes"));
                }
                let views = self.trie.snapshots();
                let view =
                    views.iter().find(|view| view.id == id).ok_or("a snapshot not listed")?;
                assert_eq!((view.tokens, view.pinned, &view.name), (offset, pinned, &name));
                if pinned && expires.is_none() {
                    self.pinned.insert(id, offset);
                }
                self.pinned.retain(|id, _| views.iter().any(|view| view.id == *id));
            }
            Err(Error::NotARestorePoint { .. }) if !resumable => {}
            Err(Error::PinsFull { wanted, bound }) if pinned && wanted > bound => {}
            Err(Error::TooManySnapshots { max }) if self.trie.snapshots().len() == max => {}
            Err(other) => return Err(format!("naming failed: {other}")),
        }
        Ok(())
    }

    fn unname(&mut self, step: Step) {
        let views = self.trie.snapshots();
        if views.is_empty() {
            return;
        }
        let view = &views[step.a as usize % views.len()];
        if step.b.is_multiple_of(3) {
            let (lease, symbols) = self.trie.lease_snapshot(view.id).expect("it is listed");
            assert_eq!((symbols.len(), self.trie.leased(lease)), (view.tokens, view.tokens));
            let domain = self.domains.iter().position(|one| one.0 == view.domain).expect("ours");
            if self.needs_points(domain) {
                assert!(self.trie.point(lease).is_some(), "a snapshot can be resumed");
            }
            let salt = SALTS.into_iter().find(|&salt| salt == view.salt.as_deref()).expect("ours");
            let covered = symbols.len();
            self.sequences.push(Sequence { lease, domain, salt, symbols, covered });
            if self.sequences.len() > SEQUENCES {
                self.end(step);
            }
            return;
        }
        self.pinned.remove(&view.id);
        assert!(self.trie.drop_snapshot(&mut self.store, view.id));
        assert!(!self.trie.drop_snapshot(&mut self.store, view.id));
    }

    fn adopt(&mut self, step: Step) {
        let (domain, salt, symbols) = self.prompt(step);
        let owner = self.owner(domain, salt);
        let tier = if step.c & 64 == 0 { Tier::Disk } else { Tier::Host };
        let id = self.domains[domain].1;
        let start = (step.c >> 8) as usize % symbols.len();
        let start = if step.a & 0x100 == 0 { start } else { 0 };
        if limit(&self.nature.limits, tier) == 0 || (self.nature.endless && start > 0) {
            return;
        }
        let span = self.store.make_span(&owner, &symbols, start, tier);
        let payload = Adopted::Span(start, span);
        let kept = self.trie.adopt(&mut self.store, id, salt, &symbols, payload, tier);
        let mut longer = symbols.clone();
        longer.push(0);
        if kept {
            let found = self.trie.lookup(id, salt, &longer);
            self.history.stored(&owner, &symbols[..found.matched]);
        }
        if self.needs_points(domain) {
            let point = self.store.make_point(&owner, &symbols, tier);
            let payload = Adopted::Point(point);
            if self.trie.adopt(&mut self.store, id, salt, &symbols, payload, tier) {
                self.history.pointed(&owner, &symbols);
            }
        }
    }

    fn forget(&mut self, step: Step) -> bool {
        if self.nature.endless {
            return false;
        }
        let store = &self.store;
        let below: Vec<u64> = store
            .alive
            .iter()
            .filter(|(id, record)| {
                record.tier != Tier::Device && (**id as u32 ^ step.b).is_multiple_of(1 + step.c % 9)
            })
            .map(|(&id, _)| id)
            .collect();
        let count = self.trie.forget(&mut self.store, &mut |lost| match lost {
            Lost::Span(span) => below.contains(&span.0),
            Lost::Point(point) => below.contains(&point.0),
        });
        assert_eq!(count, below.len(), "every payload alive is the trie's");
        true
    }

    /// A model goes and comes.
    fn swap(&mut self, step: Step) {
        if self.nature.endless && self.nature.limits.host == 0 {
            return;
        }
        let index = step.a as usize % self.domains.len();
        let (key, id) = self.domains[index];
        self.sequences.retain(|sequence| sequence.domain != index);
        let before = self.trie.snapshots();
        self.trie.close_domain(&mut self.store, id);
        let left = self.store.alive.values();
        let mut left = left.filter(|one| one.owner.domain == key && one.tier == Tier::Device);
        assert!(left.next().is_none(), "nothing of a closed domain is on the device");
        if step.b.is_multiple_of(4) && self.sequences.is_empty() {
            for &(_, id) in &self.domains {
                self.trie.close_domain(&mut self.store, id);
            }
            self.trie.park(&mut self.store);
        }
        // What is pinned may have had nowhere to go.
        let now = self.trie.snapshots();
        let gone = before.iter().filter(|view| now.iter().all(|other| other.id != view.id));
        for view in gone {
            self.pinned.remove(&view.id);
        }
        self.open(index);
    }

    fn upheaval(&mut self, step: Step) {
        if self.nature.endless || !step.b.is_multiple_of(4) {
            return;
        }
        let domain = step.a as usize % (self.domains.len() + 1);
        let domain = self.domains.get(domain).map(|&(_, id)| id);
        self.trie.clear(&mut self.store, domain);
        let now = self.trie.snapshots();
        self.pinned.retain(|id, _| now.iter().any(|view| view.id == *id));
    }

    /// Time passes, moves begin to fail, somebody takes host memory.
    fn weather(&mut self, step: Step) {
        self.now += Duration::from_secs(u64::from(step.a % 9));
        self.trie.expire(&mut self.store, self.now);
        assert!(self.trie.next_expiry().is_none_or(|at| at > self.now));
        if self.nature.endless {
            return;
        }
        let damage = if step.b.is_multiple_of(3) { step.c >> 16 & step.c } else { 0 };
        *self.store.moods.get_mut() = Moods { refuse: step.b & step.c & (step.b >> 16), damage };
        self.squeeze = None;
        let free = self.ledger.snapshot().tier(Tier::Host).free();
        if step.a.is_multiple_of(3) {
            let taken = free * u64::from(step.a >> 8 & 3) / 3;
            self.squeeze = self.ledger.reserve(Tier::Host, Class::Workspace, taken).ok();
        }
    }

    fn check(&mut self, lost: bool) -> Result<(), String> {
        self.trie.check_invariants(&self.store)?;
        self.ledger.check_invariants();
        let counters = self.trie.counters();
        for tier in Tier::ALL {
            let alive = self.store.used(tier);
            let counted = counters.bytes[tier as usize];
            let held = self.ledger.snapshot().tier(tier).used(Class::CachedState);
            if alive != counted || alive != held {
                return Err(format!(
                    "{alive} bytes alive on {tier}, {counted} counted, {held} held"
                ));
            }
        }
        if counters.ghost_tokens > self.nature.ghost_tokens_max {
            return Err(format!("{} tokens of ghosts", counters.ghost_tokens));
        }
        self.check_borders()?;
        self.check_sequences(lost)?;
        let views = self.trie.snapshots();
        for (id, tokens) in std::mem::take(&mut self.pinned) {
            match views.iter().find(|view| view.id == id) {
                Some(view) if view.tokens == tokens => _ = self.pinned.insert(id, tokens),
                None if lost => {}
                other => return Err(format!("the pinned snapshot {id} became {other:?}")),
            }
        }
        Ok(())
    }

    /// A span whose first page is charged to the span before it has one before it.
    fn check_borders(&self) -> Result<(), String> {
        for record in self.store.alive.values().filter(|record| record.shares_border) {
            let charged = self.store.alive.values().any(|head| {
                !head.is_point
                    && head.tier == record.tier
                    && head.owner == record.owner
                    && head.path[..] == record.path[..record.start]
            });
            if !charged {
                return Err(format!("nobody is charged for the first page of {record:?}"));
            }
        }
        Ok(())
    }

    fn check_sequences(&mut self, lost: bool) -> Result<(), String> {
        for sequence in &mut self.sequences {
            let leased = self.trie.leased(sequence.lease);
            if leased > sequence.covered || (leased < sequence.covered && !lost) {
                return Err(format!("a lease of {} covers {leased}", sequence.covered));
            }
            sequence.covered = leased;
            let mut at = 0;
            for (range, tier, span) in self.trie.spans(sequence.lease) {
                let record = &self.store.alive[&span.0];
                let right = record.path.get(..range.end) == sequence.symbols.get(..range.end)
                    && record.tier == tier
                    && record.start == range.start
                    && record.owner.salt.as_deref() == sequence.salt
                    && record.owner.domain == self.domains[sequence.domain].0;
                if !right || range.start != at {
                    return Err(format!("{range:?} of a lease is {record:?}"));
                }
                at = range.end;
            }
            if at != leased {
                return Err(format!("spans cover {at} of {leased}"));
            }
            if let Some((tier, point)) = self.trie.point(sequence.lease) {
                let record = &self.store.alive[&point.0];
                if record.path[..] != sequence.symbols[..leased] || record.tier != tier {
                    return Err(format!("the point of a lease at {leased} is {record:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_lookup(&self, step: Step) -> Result<(), String> {
        let mixed = Step { b: step.b.rotate_left(7) ^ step.c, c: step.c.rotate_left(3), ..step };
        let (domain, salt, symbols) = self.prompt(mixed);
        let owner = self.owner(domain, salt);
        let needs_points = self.needs_points(domain);
        let found = self.trie.lookup(self.domains[domain].1, salt, &symbols);
        let expected = naive::lookup(&self.store, &owner, needs_points, &symbols);
        if (found.matched, found.resumed) != (expected.matched, expected.resumed) {
            return Err(format!("{found:?}, but {expected:?} is alive"));
        }
        let ever = self.history.lookup(&owner, needs_points, &symbols);
        let exact = (found.matched, found.resumed) == (ever.matched, ever.resumed);
        let known = found.matched <= found.known && found.known <= ever.matched;
        if !known || (self.nature.endless && !exact) {
            return Err(format!("{found:?}, but {ever:?} was stored"));
        }
        Ok(())
    }

    /// Ends everything; nothing may be left.
    pub(crate) fn close(mut self) -> Result<(), String> {
        for sequence in std::mem::take(&mut self.sequences) {
            self.trie.release(sequence.lease);
        }
        self.trie.clear(&mut self.store, None);
        self.pinned.clear();
        self.check(false)?;
        if !self.store.alive.is_empty() {
            return Err(format!("left over: {:?}", self.store.alive));
        }
        let counters = self.trie.counters();
        if (counters.nodes, counters.ghost_tokens, counters.candidates) != (0, 0, 0) {
            return Err(format!("left over: {counters:?}"));
        }
        drop(self.trie);
        drop((self.pools, self.squeeze));
        for tier in Tier::ALL {
            if self.ledger.snapshot().tier(tier).total() != 0 {
                return Err(format!("{tier} is not empty"));
            }
        }
        Ok(())
    }
}
