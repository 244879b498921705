//! Which instructions the fast paths may use: found out once, overridable for tests.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// A level of CPU instructions; a later one includes the earlier ones of its architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the compiler makes of plain loops, on any architecture.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

thread_local! {
    static OVERRIDE: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// The highest level this machine has.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// Every level this machine has, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2, Self::Avx512]
            .into_iter()
            .filter(|isa| *isa <= Self::detected())
    }

    /// The level operators called from this thread use.
    pub fn current() -> Self {
        OVERRIDE.get().unwrap_or_else(Self::detected)
    }

    /// Runs `body` with operators called from this thread at this level, or at the highest level
    /// the machine has if that is lower. Results may differ between levels in their last bits.
    pub fn with<R>(self, body: impl FnOnce() -> R) -> R {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                OVERRIDE.set(self.0);
            }
        }
        let _restore = Restore(OVERRIDE.replace(Some(self.min(Self::detected()))));
        body()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    let avx512 = has!("avx512f")
        && has!("avx512bw")
        && has!("avx512dq")
        && has!("avx512vl")
        && has!("avx512vnni");
    match (avx2, avx512) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_holds_inside_its_closure_only() {
        let outside = Isa::current();
        Isa::Portable.with(|| {
            assert_eq!(Isa::current(), Isa::Portable);
            Isa::detected().with(|| assert_eq!(Isa::current(), Isa::detected()));
            assert_eq!(Isa::current(), Isa::Portable);
        });
        assert_eq!(Isa::current(), outside);
    }

    #[test]
    fn a_level_the_machine_lacks_is_never_used() {
        Isa::Avx512.with(|| assert!(Isa::current() <= Isa::detected()));
    }
}
