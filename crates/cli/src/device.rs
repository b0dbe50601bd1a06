//! `--device`: which backend computes.

use std::fmt;

use clap::ValueEnum;

/// What a person may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArgument {
    /// CUDA where it is possible.
    Auto,
    /// The processor.
    Cpu,
    /// CUDA devices.
    Cuda,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda,
}

impl DeviceArgument {
    /// Asks the machine for what so many ranks can compute on. Auto is silent about what is not there, or not
    /// enough.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "the CPU has any number"))]
    pub(crate) fn choose(self, ranks: u32) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            Self::Auto => {
                Ok(if crate::cuda::check(ranks).is_ok() { Device::Cuda } else { Device::Cpu })
            }
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                use anyhow::Context as _;
                crate::cuda::check(ranks).context("--device cuda")?;
                Ok(Device::Cuda)
            }
            #[cfg(not(feature = "cuda"))]
            Self::Auto => Ok(Device::Cpu),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => anyhow::bail!(
                "--device cuda: this program was built without CUDA; `cargo xtask cuda-toolkit` installs the \
                 compiler, then build it with --features cuda"
            ),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda => "cuda",
        })
    }
}
