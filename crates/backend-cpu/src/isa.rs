//! Which instructions the kernels may use. A later set computes the same bits as an earlier one.

use std::fmt;

/// A family of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust for any CPU.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AVX-512, and the tiles of AMX for bfloat16.
    Amx,
}

impl InstructionSet {
    /// All families, slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// The fastest family that this CPU and kernel offer (README.md has figures).
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// The families that this CPU and kernel offer, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_available()).collect()
    }

    /// Whether this CPU and kernel offer the family. Asking for AMX asks the kernel for its registers.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => has_avx2(),
            Self::Avx512 => has_avx512(),
            Self::Amx => has_avx512() && crate::amx::request_tiles(),
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

/// An instruction set that was found on this machine: what makes calling its kernels sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa(InstructionSet);

impl Isa {
    /// `None` where the machine does not have it.
    pub(crate) fn new(set: InstructionSet) -> Option<Self> {
        set.is_available().then_some(Self(set))
    }

    pub(crate) fn get(self) -> InstructionSet {
        self.0
    }
}

/// Defines `fn name(isa, args...)`, which runs `generic::<Lanes>(args...)` compiled for the
/// instruction set. `generic` must be `#[inline(always)]`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $generic:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $generic::<$crate::lanes::Avx2>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $generic::<$crate::lanes::Avx512>($($arg),*)
                }
                match isa.get() {
                    $crate::InstructionSet::Portable => {}
                    // SAFETY: an `Isa` is only made of an instruction set that the CPU has.
                    $crate::InstructionSet::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::InstructionSet::Avx512 | $crate::InstructionSet::Amx => {
                        // SAFETY: as above.
                        return unsafe { avx512($($arg),*) }
                    }
                }
            }
            let _ = isa;
            $generic::<$crate::lanes::Portable>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_is_always_there_and_detection_takes_the_fastest() {
        let available = InstructionSet::available();
        assert_eq!(available[0], InstructionSet::Portable);
        assert_eq!(available.last(), Some(&InstructionSet::detect()));
    }
}
