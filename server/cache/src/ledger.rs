//! The ledger: who holds how many bytes in which tier, and whether there is room for more.
//!
//! It counts, it does not allocate: a reservation is made before memory is taken and lives as long
//! as the memory does. Making room (eviction, page out) is the business of whoever was refused.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;

/// Where bytes lie, from the fastest to the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Memory the kernels compute in; on a CPU backend this is main memory.
    Device,
    /// Main memory beside the device.
    Host,
    /// Files.
    Disk,
}

/// What bytes are held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Model weights.
    Weights,
    /// Buffers of a step.
    Workspace,
    /// State of running sequences; never evicted.
    LiveState,
    /// State kept for requests to come.
    CachedState,
}

impl Tier {
    /// Every tier, fastest first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Weights, Self::Workspace, Self::LiveState, Self::CachedState];
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
        })
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Workspace => "workspace",
            Self::LiveState => "live state",
            Self::CachedState => "cached state",
        })
    }
}

/// Most bytes each tier may hold; 0 turns a tier off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Budget of [`Tier::Device`].
    pub device: u64,
    /// Budget of [`Tier::Host`].
    pub host: u64,
    /// Budget of [`Tier::Disk`].
    pub disk: u64,
}

/// One tier as it stood at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierSnapshot {
    /// Most bytes it may hold.
    pub budget: u64,
    /// Most bytes it ever held.
    pub peak: u64,
    used: [u64; Class::ALL.len()],
}

impl TierSnapshot {
    /// Bytes held for `class`.
    pub fn used(&self, class: Class) -> u64 {
        self.used[class as usize]
    }

    /// Bytes held for all classes together.
    pub fn total(&self) -> u64 {
        self.used.iter().sum()
    }

    /// Bytes that may still be reserved.
    pub fn free(&self) -> u64 {
        self.budget - self.total()
    }
}

/// The whole ledger as it stood at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    tiers: [TierSnapshot; Tier::ALL.len()],
}

impl Snapshot {
    /// The account of one tier.
    pub fn tier(&self, tier: Tier) -> TierSnapshot {
        self.tiers[tier as usize]
    }
}

/// Budgets and what is held against them. Clones share one account, so that a thread that loads a
/// model and the thread that runs another cannot both take the last bytes.
#[derive(Debug, Clone)]
pub struct Ledger {
    accounts: Arc<Mutex<Snapshot>>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(budgets: Budgets) -> Self {
        let mut accounts = Snapshot::default();
        for (tier, budget) in
            Tier::ALL.into_iter().zip([budgets.device, budgets.host, budgets.disk])
        {
            accounts.tiers[tier as usize].budget = budget;
        }
        Self { accounts: Arc::new(Mutex::new(accounts)) }
    }

    /// Sets `bytes` of `tier` aside for `class` until the reservation is dropped.
    ///
    /// # Errors
    /// [`Error::OverBudget`] if fewer bytes are free; nothing is reserved then.
    pub fn reserve(&self, tier: Tier, class: Class, bytes: u64) -> Result<Reservation, Error> {
        self.add(tier, class, bytes)?;
        Ok(Reservation { ledger: self.clone(), tier, class, bytes })
    }

    /// Starts to count bytes that are reserved for one class as held for another: 0 for now, see
    /// [`Reclassified::resize`].
    pub fn reclassify(&self, tier: Tier, from: Class, to: Class) -> Reclassified {
        Reclassified { ledger: self.clone(), tier, from, to, bytes: 0 }
    }

    /// What is held now.
    pub fn snapshot(&self) -> Snapshot {
        *self.lock()
    }

    /// Whether every tier is within its budget and its peak covers what it holds.
    ///
    /// # Panics
    /// If not, which is a bug of this crate; for tests.
    pub fn check_invariants(&self) {
        for tier in Tier::ALL {
            let account = self.snapshot().tier(tier);
            assert!(account.total() <= account.budget, "{tier} is over its budget: {account:?}");
            assert!(account.total() <= account.peak, "{tier} is over its peak: {account:?}");
        }
    }

    fn add(&self, tier: Tier, class: Class, bytes: u64) -> Result<(), Error> {
        let mut accounts = self.lock();
        let account = &mut accounts.tiers[tier as usize];
        let (free, budget) = (account.free(), account.budget);
        if bytes > free {
            return Err(Error::OverBudget { tier, class, wanted: bytes, free, budget });
        }
        account.used[class as usize] += bytes;
        account.peak = account.peak.max(account.total());
        Ok(())
    }

    fn subtract(&self, tier: Tier, class: Class, bytes: u64) {
        self.lock().tiers[tier as usize].used[class as usize] -= bytes;
    }

    fn shift(&self, tier: Tier, from: Class, to: Class, bytes: u64) -> Result<(), Error> {
        let mut accounts = self.lock();
        let used = &mut accounts.tiers[tier as usize].used;
        let held = used[from as usize];
        if bytes > held {
            return Err(Error::NotReserved { tier, class: from, wanted: bytes, held });
        }
        used[from as usize] -= bytes;
        used[to as usize] += bytes;
        Ok(())
    }

    /// The accounts are whole between any two statements that could panic, so a poisoned lock
    /// protects nothing.
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes set aside in a [`Ledger`]; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its bytes back"]
pub struct Reservation {
    ledger: Ledger,
    tier: Tier,
    class: Class,
    bytes: u64,
}

impl Reservation {
    /// Bytes set aside.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where they are.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// What they are for.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Makes the reservation `bytes` large: at once when it shrinks, if there is room when it grows.
    ///
    /// # Errors
    /// [`Error::OverBudget`] if there is no room; the reservation stays as it was.
    pub fn resize(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes > self.bytes {
            self.ledger.add(self.tier, self.class, bytes - self.bytes)?;
        } else {
            self.ledger.subtract(self.tier, self.class, self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives the bytes back; the same as dropping, for the reader.
    pub fn release(self) {}
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.subtract(self.tier, self.class, self.bytes);
    }
}

/// Bytes of one reservation that are counted under another class, since what was reserved as a
/// whole is used for several things; dropping it counts them as they were reserved. Must be empty
/// before the reservation behind it is dropped.
#[derive(Debug)]
#[must_use = "dropping it undoes the change of class"]
pub struct Reclassified {
    ledger: Ledger,
    tier: Tier,
    from: Class,
    to: Class,
    bytes: u64,
}

impl Reclassified {
    /// Bytes counted under the other class.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of both classes: the most that could be counted under either.
    pub fn of_both(&self) -> u64 {
        let account = self.ledger.snapshot().tier(self.tier);
        account.used(self.from).saturating_add(account.used(self.to))
    }

    /// Counts `bytes` in all under the other class.
    ///
    /// # Errors
    /// [`Error::NotReserved`] if fewer bytes are reserved to be counted so; nothing changes then.
    pub fn resize(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes > self.bytes {
            self.ledger.shift(self.tier, self.from, self.to, bytes - self.bytes)?;
        } else {
            self.ledger.shift(self.tier, self.to, self.from, self.bytes - bytes)?;
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Reclassified {
    fn drop(&mut self) {
        // Cannot fail: nobody else takes bytes of the class that this one counted.
        let _ = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGETS: Budgets = Budgets { device: 100, host: 50, disk: 0 };

    #[test]
    fn a_refused_reservation_names_every_number_and_takes_nothing() {
        let ledger = Ledger::new(BUDGETS);
        let held = ledger.reserve(Tier::Device, Class::Weights, 60).unwrap();
        let before = ledger.snapshot();
        let error = ledger.reserve(Tier::Device, Class::LiveState, 41).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device memory is full: 41 bytes wanted for live state, 40 free of a budget of 100"
        );
        assert_eq!(ledger.snapshot(), before);
        held.release();
        assert_eq!(ledger.snapshot().tier(Tier::Device).total(), 0);
        assert_eq!(ledger.snapshot().tier(Tier::Device).peak, 60);
    }

    #[test]
    fn bytes_change_class_only_where_they_are_reserved() {
        let ledger = Ledger::new(BUDGETS);
        let pool = ledger.reserve(Tier::Device, Class::LiveState, 60).unwrap();
        let used = |class| ledger.snapshot().tier(Tier::Device).used(class);
        let mut cached = ledger.reclassify(Tier::Device, Class::LiveState, Class::CachedState);
        cached.resize(40).unwrap();
        assert_eq!((used(Class::LiveState), used(Class::CachedState)), (20, 40));
        assert_eq!(
            cached.resize(61).unwrap_err().to_string(),
            "21 bytes wanted of device memory that is reserved for live state, which holds 20"
        );
        cached.resize(10).unwrap();
        assert_eq!((used(Class::LiveState), used(Class::CachedState)), (50, 10));
        drop(cached);
        assert_eq!((used(Class::LiveState), used(Class::CachedState)), (60, 0));
        drop(pool);
        assert_eq!(ledger.snapshot().tier(Tier::Device).total(), 0);
    }

    #[test]
    fn a_tier_without_budget_holds_nothing() {
        let ledger = Ledger::new(BUDGETS);
        assert!(ledger.reserve(Tier::Disk, Class::CachedState, 1).is_err());
        assert!(ledger.reserve(Tier::Disk, Class::CachedState, 0).is_ok());
    }

    #[test]
    fn an_unlimited_budget_does_not_overflow() {
        let ledger = Ledger::new(Budgets { device: u64::MAX, host: 0, disk: 0 });
        let all = ledger.reserve(Tier::Device, Class::Weights, u64::MAX).unwrap();
        assert!(ledger.reserve(Tier::Device, Class::LiveState, 1).is_err());
        drop(all);
        assert_eq!(ledger.snapshot().tier(Tier::Device).free(), u64::MAX);
    }

    #[test]
    fn threads_cannot_both_take_the_last_bytes() {
        let ledger = Ledger::new(BUDGETS);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| {
                    let ledger = ledger.clone();
                    scope.spawn(move || ledger.reserve(Tier::Device, Class::Workspace, 30).ok())
                })
                .collect();
            takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 3);
        ledger.check_invariants();
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Reserve(usize, usize, u64),
        Resize(usize, u64),
        Release(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..3_usize, 0..4_usize, 0..60_u64).prop_map(|(t, c, b)| Operation::Reserve(t, c, b)),
            (any::<usize>(), 0..60_u64).prop_map(|(i, b)| Operation::Resize(i, b)),
            any::<usize>().prop_map(Operation::Release),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_ledger_is_the_sum_of_its_reservations(
            operations in prop::collection::vec(operation(), 1..80),
        ) {
            let ledger = Ledger::new(BUDGETS);
            let mut held: Vec<Reservation> = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Reserve(tier, class, bytes) => {
                        let (tier, class) = (Tier::ALL[tier], Class::ALL[class]);
                        let free = ledger.snapshot().tier(tier).free();
                        let made = ledger.reserve(tier, class, bytes);
                        prop_assert_eq!(made.is_ok(), bytes <= free);
                        held.extend(made.ok());
                    }
                    Operation::Resize(index, bytes) if !held.is_empty() => {
                        let index = index % held.len();
                        let before = held[index].bytes();
                        let free = ledger.snapshot().tier(held[index].tier()).free();
                        let fits = bytes <= before + free;
                        prop_assert_eq!(held[index].resize(bytes).is_ok(), fits);
                        prop_assert_eq!(held[index].bytes(), if fits { bytes } else { before });
                    }
                    Operation::Release(index) if !held.is_empty() => {
                        let index = index % held.len();
                        held.swap_remove(index).release();
                    }
                    Operation::Resize(..) | Operation::Release(_) => {}
                }
                ledger.check_invariants();
                for tier in Tier::ALL {
                    for class in Class::ALL {
                        let sum: u64 = held
                            .iter()
                            .filter(|one| one.tier() == tier && one.class() == class)
                            .map(Reservation::bytes)
                            .sum();
                        prop_assert_eq!(ledger.snapshot().tier(tier).used(class), sum);
                    }
                }
            }
            held.clear();
            for tier in Tier::ALL {
                prop_assert_eq!(ledger.snapshot().tier(tier).total(), 0);
            }
        }
    }
}
