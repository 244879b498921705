//! `[cache]`: what may be remembered where, and the bytes that come of it on a machine.

use std::path::PathBuf;
use std::time::Duration;

use crate::serve::{CachePlan, CachePolicy};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::plan::Checker;
use super::size::{Amount, Share, legible};
use super::{Auto, ByteSize, ConfigError, Span};

/// Of the memory budget, unless set.
const DEVICE_SHARE: Share = Share::percent(50);
/// Of main memory, unless set.
const HOST_SHARE: Share = Share::percent(10);
/// Of the free space of the file system, unless set.
const DISK_SHARE: Share = Share::percent(10);
/// Restore points lie on a grid of this many tokens.
const SPACING_MIN: usize = 64;
/// Most tokens of a context, and so between restore points.
const SPACING_MAX: usize = 1 << 24;
/// Distances from the end of a prompt grow by a factor from this, for by 1 they would not grow.
const TAIL_MIN: usize = 2;
/// See [`TAIL_MIN`].
const TAIL_MAX: usize = 1024;
/// Nobody waits longer for a server to end.
const SAVE_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Most bytes of remembered state where the models compute.
    pub device: Auto<Amount>,
    /// Most bytes of remembered state in main memory.
    pub host: Auto<Amount>,
    /// Most bytes of remembered state on disk.
    pub disk: Auto<Amount>,
    /// Where on disk; empty for nowhere.
    pub directory: PathBuf,
    /// What is forgotten first.
    pub policy: PolicyChoice,
    /// Most tokens between restore points; 0 for none in between.
    pub restore_point_spacing: usize,
    /// By what the distances of restore points from the end of a prompt grow; 0 for none there.
    pub tail_spacing: usize,
    /// Longest that a server waits at its end until what is remembered is on disk.
    pub save_time_max: Span,
}

/// What is forgotten first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChoice {
    /// What is cheapest to compute again, for its bytes and its chance of being wanted.
    CostToLose,
    /// What was used longest ago.
    Lru,
    /// What was used longest ago, then deepest, then largest.
    OldestDeepestLargest,
}

impl From<CachePolicy> for PolicyChoice {
    fn from(policy: CachePolicy) -> Self {
        match policy {
            CachePolicy::CostToLose => Self::CostToLose,
            CachePolicy::Lru => Self::Lru,
            CachePolicy::OldestDeepestLargest => Self::OldestDeepestLargest,
        }
    }
}

impl From<PolicyChoice> for CachePolicy {
    fn from(policy: PolicyChoice) -> Self {
        match policy {
            PolicyChoice::CostToLose => Self::CostToLose,
            PolicyChoice::Lru => Self::Lru,
            PolicyChoice::OldestDeepestLargest => Self::OldestDeepestLargest,
        }
    }
}

impl Default for CacheConfig {
    /// What the machine allows, none on disk.
    fn default() -> Self {
        let plan = CachePlan::default();
        Self {
            device: Auto::Auto,
            host: Auto::Auto,
            disk: Auto::Auto,
            directory: PathBuf::new(),
            policy: plan.policy.into(),
            restore_point_spacing: plan.spacing,
            tail_spacing: plan.tail_factor,
            save_time_max: Span(plan.save_time_max),
        }
    }
}

/// What everything on the device may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceBudget {
    /// Most bytes; `None` for no limit.
    pub(super) bytes: Option<u64>,
    /// Bytes of memory that the device has to itself; `None` where it computes in main memory.
    pub(super) own_memory: Option<u64>,
}

impl DeviceBudget {
    /// What of `bytes` on the device is in main memory.
    fn of_main_memory(self, bytes: u64) -> u64 {
        if self.own_memory.is_some() { 0 } else { bytes }
    }
}

impl CacheConfig {
    /// The bytes of each tier on `machine`, where everything on the device has `budget`.
    ///
    /// # Errors
    /// The first setting that breaks a rule, or asks for a share of what is not known.
    pub(super) fn plan(
        &self,
        budget: DeviceBudget,
        machine: &Machine,
        check: &Checker<'_>,
    ) -> Result<CachePlan, ConfigError> {
        let (spacing, tail) = (self.restore_point_spacing, self.tail_spacing);
        check.zero_or("restore_point_spacing", spacing, SPACING_MIN, SPACING_MAX)?;
        check.zero_or("tail_spacing", tail, TAIL_MIN, TAIL_MAX)?;
        if self.save_time_max.0 > SAVE_TIME_MAX {
            let expected = format!("at most {}", Span(SAVE_TIME_MAX));
            return Err(check.refuse(&["cache", "save_time_max"], &expected, self.save_time_max));
        }
        let device = self.device(budget, machine, check)?;
        let host = self.host(device, budget, machine, check)?;
        Ok(CachePlan {
            device,
            host,
            disk: self.disk(machine, check)?,
            directory: self.directory(),
            policy: self.policy.into(),
            spacing,
            tail_factor: tail,
            save_time_max: self.save_time_max.0,
        })
    }

    fn directory(&self) -> Option<PathBuf> {
        (!self.directory.as_os_str().is_empty()).then(|| self.directory.clone())
    }

    /// State on the device is within its memory budget, and within its memory.
    fn device(
        &self,
        budget: DeviceBudget,
        machine: &Machine,
        check: &Checker<'_>,
    ) -> Result<u64, ConfigError> {
        let memory = budget.own_memory.or(machine.memory);
        let most = budget.bytes.into_iter().chain(memory).min();
        let key = ["cache", "device"];
        let bytes = match self.device {
            Auto::Auto => return Ok(most.map_or(u64::MAX, |most| DEVICE_SHARE.of(most))),
            Auto::Given(amount) => check.bytes(&key, amount, most)?,
        };
        match most.filter(|most| bytes > *most) {
            None => Ok(bytes),
            Some(most) => {
                let most = ByteSize(legible(most));
                let expected = format!("at most {most}, all the memory there is for the device");
                Err(check.refuse(&key, &expected, ByteSize(bytes)))
            }
        }
    }

    /// Within main memory; where the device computes in it too, so that both together are.
    fn host(
        &self,
        device: u64,
        budget: DeviceBudget,
        machine: &Machine,
        check: &Checker<'_>,
    ) -> Result<u64, ConfigError> {
        let key = ["cache", "host"];
        let bytes = match (self.host, machine.memory) {
            (Auto::Given(amount), memory) => check.bytes(&key, amount, memory)?,
            (Auto::Auto, Some(memory)) => {
                let taken = budget.bytes.unwrap_or(device);
                let left = memory.saturating_sub(budget.of_main_memory(taken));
                return Ok(HOST_SHARE.of(memory).min(left));
            }
            // Nobody could say when it is too much.
            (Auto::Auto, None) => return Ok(0),
        };
        let taken = budget.of_main_memory(device);
        let left = machine.memory.map(|memory| memory.saturating_sub(taken));
        match left.filter(|left| bytes > *left) {
            None => Ok(bytes),
            Some(left) => {
                let left = ByteSize(legible(left));
                let expected = format!("at most {left}, what `cache.device` leaves of the memory");
                Err(check.refuse(&key, &expected, ByteSize(bytes)))
            }
        }
    }

    fn disk(&self, machine: &Machine, check: &Checker<'_>) -> Result<u64, ConfigError> {
        let key = ["cache", "disk"];
        let Some(directory) = self.directory() else {
            return match self.disk {
                Auto::Auto => Ok(0),
                Auto::Given(amount) if amount.is_zero() => Ok(0),
                Auto::Given(amount) => {
                    Err(check.refuse(&key, "a `cache.directory` to keep it in", amount))
                }
            };
        };
        let refuse = |expected: &str, found: String| {
            check.refuse(
                &["cache", "directory"],
                expected,
                format!("{}{found}", directory.display()),
            )
        };
        if directory.exists() && !directory.is_dir() {
            return Err(refuse("a directory, or a path where one can be made", ", a file".into()));
        }
        let room = || {
            (machine.disk)(&directory).map_err(|error| {
                refuse("a file system that tells its free space", format!(": {error}"))
            })
        };
        match self.disk {
            Auto::Auto => Ok(DISK_SHARE.of(room()?)),
            Auto::Given(Amount::Bytes(bytes)) => Ok(bytes.0),
            Auto::Given(Amount::Share(share)) => Ok(share.of(room()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::super::Flag;
    use super::super::tests::load_on;
    use super::*;

    const GIB: u64 = 1 << 30;
    /// Free space of [`MACHINE`].
    const FREE: u64 = 500 * GIB;
    const MACHINE: Machine =
        Machine { memory: Some(10 * GIB), device_memory: |_| None, disk: |_| Ok(FREE) };

    fn plan_of(text: &str) -> CachePlan {
        load_on(&MACHINE, text, Vec::new()).expect(text).1.cache
    }

    fn tiers(text: &str) -> (u64, u64, u64) {
        let plan = plan_of(text);
        (plan.device, plan.host, plan.disk)
    }

    fn refused_on(machine: &Machine, text: &str, parts: &[&str]) {
        let message = load_on(machine, text, Vec::new()).expect_err(text).to_string();
        for part in parts {
            assert!(message.contains(part), "{text:?}: `{part}` not in: {message}");
        }
    }

    #[test]
    fn unset_the_tiers_take_shares_of_what_the_machine_has() {
        let (_, plan) = load_on(&MACHINE, "", Vec::new()).unwrap();
        assert_eq!(plan.engine.memory_budget, Some(8 * GIB));
        assert_eq!((plan.cache.device, plan.cache.host), (4 * GIB, GIB));
        assert_eq!((plan.cache.disk, plan.cache.directory), (0, None));
        assert_eq!(tiers("[cache]\ndirectory = \"/c\"").2, 50 * GIB);
        // The host takes no more than the device leaves.
        let budget = "[engine]\nmemory_budget = \"9728MiB\"";
        assert_eq!(tiers(budget), (4864 << 20, 512 << 20, 0));
        assert_eq!(tiers("[engine]\nmemory_budget = \"64GiB\""), (5 * GIB, 0, 0));
    }

    #[test]
    fn a_device_with_memory_of_its_own_leaves_the_host_all_of_its() {
        let machine = Machine { device_memory: |_| Some(100 * GIB), ..MACHINE };
        let plan = |text| load_on(&machine, text, Vec::new()).expect(text).1;
        let unset = plan("");
        assert_eq!(unset.engine.memory_budget, Some(80 * GIB));
        assert_eq!((unset.cache.device, unset.cache.host), (40 * GIB, GIB));
        let given =
            plan("[engine]\nmemory_budget = \"90%\"\n[cache]\ndevice = \"80GiB\"\nhost = \"9GiB\"");
        assert_eq!(given.engine.memory_budget, Some(90 * GIB));
        assert_eq!((given.cache.device, given.cache.host), (80 * GIB, 9 * GIB));
        refused_on(&machine, "[cache]\nhost = \"11GiB\"", &["`cache.host`", "10GiB"]);
        refused_on(&machine, "[cache]\ndevice = \"101GiB\"", &["`cache.device`", "80GiB"]);
    }

    #[test]
    fn a_share_of_the_device_is_one_of_the_memory_budget() {
        let text = "[engine]\nmemory_budget = \"4GiB\"\n\
                    [cache]\ndevice = \"25%\"\nhost = \"30%\"\ndisk = \"2%\"\ndirectory = \"/c\"";
        assert_eq!(tiers(text), (GIB, 3 * GIB, 10 * GIB));
        let text = "[cache]\ndevice = 5\nhost = \"6KiB\"\ndisk = \"7TB\"\ndirectory = \"/c\"";
        assert_eq!(tiers(text), (5, 6144, 7_000_000_000_000));
        assert_eq!(plan_of(text).directory, Some("/c".into()));
    }

    #[test]
    fn zero_turns_a_tier_off() {
        for zero in ["0", "\"0\"", "\"0%\"", "\"0GiB\""] {
            let text = format!("[cache]\ndevice = {zero}\nhost = {zero}\ndisk = {zero}");
            assert_eq!(tiers(&text), (0, 0, 0), "{zero}");
            assert_eq!(tiers(&format!("{text}\ndirectory = \"/c\"")), (0, 0, 0), "{zero}");
        }
        let text = "[cache]\nrestore_point_spacing = 0\ntail_spacing = 0";
        assert_eq!((plan_of(text).spacing, plan_of(text).tail_factor), (0, 0));
    }

    #[test]
    fn the_time_to_save_is_as_it_is_set() {
        assert_eq!(plan_of("").save_time_max, Duration::from_secs(60));
        for (text, seconds) in [("0s", 0), ("5m", 300), ("1day", 86_400)] {
            let plan = plan_of(&format!("[cache]\nsave_time_max = \"{text}\""));
            assert_eq!(plan.save_time_max, Duration::from_secs(seconds));
        }
    }

    #[test]
    fn policies_go_by_their_names() {
        for (name, policy) in [
            ("cost-to-lose", CachePolicy::CostToLose),
            ("lru", CachePolicy::Lru),
            ("oldest-deepest-largest", CachePolicy::OldestDeepestLargest),
        ] {
            assert_eq!(plan_of(&format!("[cache]\npolicy = \"{name}\"")).policy, policy);
        }
    }

    #[test]
    fn a_wrong_setting_of_the_cache_is_told_with_its_name() {
        for (text, parts) in [
            ("device = \"8 apples\"", &["`cache.device`", "8 apples", "`100%`", "`auto`"][..]),
            ("host = \"101%\"", &["`cache.host`", "101%"]),
            ("host = -1", &["`cache.host`"]),
            ("device = \"9GiB\"", &["`cache.device`", "at most 8GiB", "found 9GiB", "file"]),
            ("host = \"7GiB\"", &["`cache.host`", "at most 6GiB", "`cache.device`"]),
            ("device = \"100%\"\nhost = \"30%\"", &["`cache.host`", "at most 2GiB"]),
            ("disk = \"1GiB\"", &["`cache.disk`", "`cache.directory`", "found 1GiB"]),
            ("disk = \"5%\"", &["`cache.disk`", "`cache.directory`", "found 5%"]),
            ("directory = \"/dev/null\"", &["`cache.directory`", "/dev/null", "a directory"]),
            ("directory = 3", &["`cache.directory`"]),
            ("policy = \"fifo\"", &["`cache.policy`", "fifo", "`lru`"]),
            ("restore_point_spacing = 63", &["`cache.restore_point_spacing`", "0 or", "from 64"]),
            ("restore_point_spacing = \"auto\"", &["`cache.restore_point_spacing`"]),
            ("tail_spacing = 1", &["`cache.tail_spacing`", "0 or", "from 2 to 1024", "found 1"]),
            (
                "save_time_max = \"25h\"",
                &["`cache.save_time_max`", "at most 1day", "found 1day 1h"],
            ),
            ("save_time_max = 60", &["`cache.save_time_max`"]),
            ("tiers = 3", &["`cache.tiers`", "unknown", "`directory`"]),
        ] {
            refused_on(&MACHINE, &format!("[cache]\n{text}"), parts);
        }
    }

    #[test]
    fn a_share_of_what_is_not_known_is_refused() {
        let unknown = Machine {
            memory: None,
            device_memory: |_| None,
            disk: |_| Err(ErrorKind::PermissionDenied.into()),
        };
        refused_on(&unknown, "[cache]\ndevice = \"25%\"", &["`cache.device`", "byte size"]);
        refused_on(&unknown, "[cache]\nhost = \"25%\"", &["`cache.host`", "byte size"]);
        let directory = "[cache]\ndirectory = \"/c\"";
        refused_on(&unknown, directory, &["`cache.directory`", "/c", "permission denied"]);
        let text = format!("{directory}\ndisk = \"1GiB\"\nhost = \"2GiB\"");
        let (_, plan) = load_on(&unknown, &text, Vec::new()).unwrap();
        assert_eq!(plan.engine.memory_budget, None);
        assert_eq!((plan.cache.device, plan.cache.host, plan.cache.disk), (u64::MAX, 2 * GIB, GIB));
    }

    #[test]
    fn a_flag_of_the_cache_wins_and_is_named_when_it_is_wrong() {
        let flag = |value: &str| vec![Flag::new("--cache-host", ("cache", "host"), value)];
        let (_, plan) = load_on(&MACHINE, "[cache]\nhost = 5", flag("20%")).unwrap();
        assert_eq!(plan.cache.host, 2 * GIB);
        let message = load_on(&MACHINE, "", flag("99%")).expect_err("too much").to_string();
        assert!(message.contains("flag --cache-host"), "{message}");
    }
}
