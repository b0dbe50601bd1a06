//! What computes, and how: options that `oarlock serve` hands on to its workers.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use clap::Args;
use oarlock_worker::{BufferType, Dtype, InstructionSet, Numbers, Quantization};

use crate::device::{Device, DeviceArgument};

/// What computes, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct ComputeArguments {
    /// What computes: auto (CUDA devices where the program has kernels for them and a driver finds one,
    /// otherwise the CPU), cpu, cuda.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) device: DeviceArgument,
    /// Threads that compute on the CPU, divided over the workers; 0: one per core, and at least one per
    /// worker.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Instruction set of the CPU kernels: auto, portable, avx2, avx512 or amx. All give the same bits.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) instruction_set: String,
    /// What is computed with: auto (int8 activations with quantized weights, bfloat16 with others),
    /// bfloat16 (all weights and activations), float32 (those and the KV cache: exact, slow, large).
    #[arg(long, value_name = "TYPE", default_value_t = Dtype::Auto)]
    pub(crate) dtype: Dtype,
    /// Quantizes linear layers that are stored as floats while they are loaded: none, q8_0 or q4_0. Less
    /// memory and time for some loss (see the README); embeddings, norms and routers stay, and with q4_0
    /// the output layer gets 8 bits.
    #[arg(long, value_name = "KIND", default_value_t = Quantization::None)]
    pub(crate) quantize: Quantization,
    /// What a model's buffers (frequencies of rotary embeddings, the scale of Gemma's embeddings) are rounded
    /// to: float32 (as models are run), bfloat16, float16, stored (the type that config.json names: as in a
    /// model that was cast as a whole, of which published float32 references are). auto: stored with
    /// --dtype float32, which is for comparing with such references, otherwise float32.
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "auto",
        alias = "rope-frequencies",
        hide_short_help = true
    )]
    pub(crate) buffer_dtype: BufferArgument,
}

impl ComputeArguments {
    /// What so many ranks compute on.
    pub(crate) fn device(&self, ranks: u32) -> anyhow::Result<Device> {
        self.device.choose(ranks)
    }

    /// The instruction set; `None` for the best that the machine has.
    pub(crate) fn instruction_set(&self) -> anyhow::Result<Option<InstructionSet>> {
        if self.instruction_set == "auto" {
            return Ok(None);
        }
        let available = InstructionSet::available();
        let chosen = available.iter().copied().find(|set| set.to_string() == self.instruction_set);
        chosen.map(Some).with_context(|| {
            let names: Vec<_> = available.iter().map(ToString::to_string).collect();
            format!(
                "--instruction-set {}: this machine has auto, {}",
                self.instruction_set,
                names.join(", ")
            )
        })
    }

    /// What decides the numbers beside the device.
    pub(crate) fn numbers(&self) -> Numbers {
        let buffers = match (self.buffer_dtype.0, self.dtype) {
            (Some(buffers), _) => buffers,
            (None, Dtype::Float32) => BufferType::Stored,
            (None, _) => BufferType::Float32,
        };
        Numbers { buffers, quantization: self.quantize }
    }

    /// The same options for the command line of each of `ranks` workers.
    pub(crate) fn to_arguments(&self, ranks: u32) -> anyhow::Result<Vec<OsString>> {
        let threads = self.threads_per_rank(ranks as usize)?.to_string();
        let dtype = self.dtype.to_string();
        // Decided once, so that all workers agree.
        let device = self.device(ranks)?.to_string();
        let quantize = self.quantize.to_string();
        let buffers = self.buffer_dtype.to_string();
        let pairs = [
            ("--device", &device),
            ("--threads", &threads),
            ("--instruction-set", &self.instruction_set),
            ("--dtype", &dtype),
            ("--quantize", &quantize),
            ("--buffer-dtype", &buffers),
        ];
        Ok(pairs.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect())
    }

    fn threads_per_rank(&self, ranks: usize) -> anyhow::Result<usize> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match self.threads {
            0 => Ok((cores() / ranks).max(1)),
            threads if threads < ranks => {
                anyhow::bail!(
                    "--threads {threads}: --tensor-parallel {ranks} needs one for each worker"
                )
            }
            threads => Ok(threads / ranks),
        }
    }
}

/// What buffers are rounded to; `None` is auto.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferArgument(Option<BufferType>);

impl FromStr for BufferArgument {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self(None)),
            name => Ok(Self(Some(name.parse().map_err(|reason| format!("auto, {reason}"))?))),
        }
    }
}

impl fmt::Display for BufferArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("auto"),
            Some(buffers) => buffers.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::arguments::{Arguments, Command};

    #[test]
    fn threads_are_divided_over_workers() {
        let per_rank = |threads: &str, ranks: usize| {
            let words = ["oarlock", "serve", "--model", "m", "--threads", threads];
            let Command::Serve(arguments) = Arguments::parse_from(words).command else {
                panic!("{words:?}")
            };
            arguments.compute.threads_per_rank(ranks)
        };
        assert_eq!(per_rank("8", 2).unwrap(), 4);
        assert_eq!(per_rank("7", 2).unwrap(), 3);
        assert!(per_rank("0", 8).unwrap() >= 1, "one core serves eight workers, slowly");
        let few = per_rank("3", 4).unwrap_err().to_string();
        assert!(few.contains("--threads 3") && few.contains("--tensor-parallel 4"), "{few}");
    }
}
