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
    /// Asks the machine. Auto is silent about what is not there.
    pub(crate) fn choose(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            Self::Auto => Ok(if crate::cuda::check().is_ok() { Device::Cuda } else { Device::Cpu }),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                use anyhow::Context as _;
                crate::cuda::check().context("--device cuda")?;
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

#[cfg(feature = "cuda")]
impl Device {
    /// Refuses a number of ranks that the device cannot have yet.
    pub(crate) fn check_degree(self, ranks: u32) -> anyhow::Result<()> {
        anyhow::ensure!(
            self == Self::Cpu || ranks == 1,
            "--tensor-parallel {ranks}: CUDA devices cannot work together yet; take 1, or --device cpu"
        );
        Ok(())
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
