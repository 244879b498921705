//! Which instructions the fast paths may use: found out once, overridable for tests.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// A level of CPU instructions. Those of one architecture are ordered by how fast they are expected
/// to be; a processor may lack one and have a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the compiler makes of plain loops, on any architecture.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// `Avx2` with AVX-VNNI.
    Avx2Vnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// `Avx512` with AVX-512 VNNI.
    Avx512Vnni,
    /// aarch64.
    Neon,
    /// `Neon` with sums of four products of bytes (`FEAT_DotProd`).
    NeonDotprod,
    /// `NeonDotprod` with products of unsigned by signed bytes (`FEAT_I8MM`).
    NeonI8mm,
}

thread_local! {
    static OVERRIDE: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// Every level, of all architectures.
    const ALL: [Self; 8] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx2Vnni,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Neon,
        Self::NeonDotprod,
        Self::NeonI8mm,
    ];

    /// The highest level this machine has.
    pub fn detected() -> Self {
        Self::NeonI8mm.usable()
    }

    /// Every level this machine has, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.usable() == *isa)
    }

    /// The level operators called from this thread use.
    pub fn current() -> Self {
        OVERRIDE.get().unwrap_or_else(Self::detected)
    }

    /// Runs `body` with operators called from this thread at this level, or at the highest below it
    /// that the machine has. Results may differ between levels in their last bits.
    pub fn with<R>(self, body: impl FnOnce() -> R) -> R {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                OVERRIDE.set(self.0);
            }
        }
        let _restore = Restore(OVERRIDE.replace(Some(self.usable())));
        body()
    }

    /// This level, or the highest below it that the machine has.
    pub(crate) fn usable(self) -> Self {
        static MACHINE: OnceLock<[Isa; Isa::ALL.len()]> = OnceLock::new();
        MACHINE.get_or_init(|| {
            let mut highest = Self::Portable;
            Self::ALL.map(|isa| {
                if isa.is_detected() {
                    highest = isa;
                }
                highest
            })
        })[self as usize]
    }

    #[cfg(target_arch = "x86_64")]
    fn is_detected(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            // The feature's encoding of the instruction is that of AVX-512.
            Self::Avx2Vnni if cfg!(feature = "evex-vnni") => {
                Self::Avx2.is_detected() && Self::Avx512Vnni.is_detected()
            }
            Self::Avx2Vnni => Self::Avx2.is_detected() && has!("avxvnni"),
            Self::Avx512 => {
                Self::Avx2.is_detected()
                    && has!("bmi2")
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
            }
            Self::Avx512Vnni => Self::Avx512.is_detected() && has!("avx512vnni"),
            Self::Neon | Self::NeonDotprod | Self::NeonI8mm => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_detected(self) -> bool {
        use std::arch::is_aarch64_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Neon => has!("neon"),
            Self::NeonDotprod => Self::Neon.is_detected() && has!("dotprod"),
            Self::NeonI8mm => Self::NeonDotprod.is_detected() && has!("i8mm"),
            Self::Avx2 | Self::Avx2Vnni | Self::Avx512 | Self::Avx512Vnni => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_detected(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        })
    }
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
        let available: Vec<Isa> = Isa::available().collect();
        assert_eq!(available.first(), Some(&Isa::Portable));
        assert_eq!(available.last(), Some(&Isa::detected()));
        for isa in Isa::ALL {
            let below = available.iter().rfind(|level| **level <= isa).copied();
            assert_eq!(isa.with(Isa::current), below.unwrap(), "{isa}");
        }
    }

    #[test]
    fn levels_are_listed_in_their_order() {
        assert!(Isa::ALL.is_sorted());
        for (index, isa) in Isa::ALL.into_iter().enumerate() {
            assert_eq!(isa as usize, index, "{isa}");
        }
    }
}
