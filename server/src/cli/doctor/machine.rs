//! The build and the machine: instructions, threads, memory.

use sconce_models::Isa;
use sconce_server::memory;
use sconce_server::serve::ServePlan;

use super::Check;
use crate::cli::output;
use crate::config::Machine;
use crate::telemetry;

/// Which binary this is. Tests and measurements of a debug build mislead.
pub(super) fn build() -> Check {
    let features = [
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
        ("object-store", cfg!(feature = "object-store")),
        ("otlp", cfg!(feature = "otlp")),
        ("top", cfg!(feature = "top")),
    ];
    let on: Vec<&str> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    let features = if on.is_empty() { "none".to_owned() } else { on.join(", ") };
    let system = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let found = format!("sconce {} for {system}, features: {features}", telemetry::version());
    if cfg!(debug_assertions) {
        let advice = "build with --release to serve or to measure: this one is many times slower";
        return Check::warn("build", format!("{found}; a debug build"), advice);
    }
    Check::ok("build", found)
}

/// The level of instructions that the kernels chose.
pub(super) fn instructions() -> Check {
    let isa = Isa::detected();
    let found = format!("kernels use {isa}");
    if isa == Isa::Portable {
        let advice = "expected AVX2 with FMA (x86-64) or NEON (aarch64); a virtual machine may hide \
                      them: pass the host's processor through";
        return Check::warn("instructions", found, advice);
    }
    Check::ok("instructions", found)
}

/// Threads that compute, against the processors that the process may use.
pub(super) fn threads(plan: &ServePlan) -> Check {
    let threads = plan.engine.threads.unwrap_or_else(sconce_models::threads::count);
    // Counts what affinity and the quotas of control groups allow.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    threads_of(threads, allowed)
}

fn threads_of(threads: usize, allowed: usize) -> Check {
    let found = format!("{threads} compute, {allowed} processors may be used");
    if threads > allowed {
        let advice = format!(
            "threads wait for each other in every step: set engine.threads to {allowed} or less, or \
             raise the quota of the control group"
        );
        return Check::warn("threads", found, advice);
    }
    Check::ok("threads", found)
}

/// The budgets, against the memory that there is and that is free.
pub(super) fn memory(plan: &ServePlan) -> Vec<Check> {
    let device = plan.engine.device;
    if let Some(own) = device.own_memory() {
        let found = format!("{} on {device}, the budget is {}", output::bytes(own), budget(plan));
        let mut checks = vec![match plan.engine.memory_budget {
            Some(bytes) if bytes > own => {
                Check::fail("memory of the GPU", found, "lower engine.memory_budget")
            }
            _ => Check::ok("memory of the GPU", found),
        }];
        checks.push(main_memory(plan.cache.host, Machine::read().memory, memory::available()));
        return checks;
    }
    let wanted = plan.engine.memory_budget.unwrap_or(0).saturating_add(plan.cache.host);
    vec![main_memory(wanted, Machine::read().memory, memory::available())]
}

fn budget(plan: &ServePlan) -> String {
    plan.engine.memory_budget.map_or_else(|| "unlimited".to_owned(), output::bytes)
}

/// `wanted` is what a server may come to hold; `total` and `free` are within control groups.
fn main_memory(wanted: u64, total: Option<u64>, free: Option<u64>) -> Check {
    let (Some(total), Some(free)) = (total, free) else {
        let advice = "set engine.memory_budget and cache.host in bytes";
        return Check::warn("memory", "the system does not tell what there is", advice);
    };
    let told = output::bytes;
    let found = format!(
        "{} of {} free, a server may come to hold {}",
        told(free),
        told(total),
        told(wanted)
    );
    if wanted > total {
        let advice = "the system would end the server: lower engine.memory_budget or cache.host";
        return Check::fail("memory", found, advice);
    }
    if wanted > free {
        let advice = "others hold what it may want: lower engine.memory_budget and cache.host by \
                      that, or stop them (a server that runs already counts as another)";
        return Check::warn("memory", found, advice);
    }
    Check::ok("memory", found)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn more_threads_than_the_quota_are_a_warning() {
        assert_eq!(threads_of(4, 4).level, Level::Ok);
        let many = threads_of(8, 2);
        assert_eq!(many.level, Level::Warn);
        assert!(many.advice.contains("engine.threads to 2"), "{many:?}");
    }

    #[test]
    fn budgets_are_held_against_what_is_there_and_what_is_free() {
        let level = |wanted, total, free| main_memory(wanted, total, free).level;
        assert_eq!(level(10, Some(100), Some(50)), Level::Ok);
        assert_eq!(level(60, Some(100), Some(50)), Level::Warn);
        assert_eq!(level(101, Some(100), Some(50)), Level::Fail);
        assert_eq!(level(1, None, None), Level::Warn);
    }

    #[test]
    fn this_build_says_what_it_is() {
        let check = build();
        assert!(check.found.contains(env!("CARGO_PKG_VERSION")), "{check:?}");
        let debug = if cfg!(debug_assertions) { Level::Warn } else { Level::Ok };
        assert_eq!(check.level, debug);
    }
}
