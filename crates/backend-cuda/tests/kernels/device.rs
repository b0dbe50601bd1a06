//! A simulated device with the kernels loaded, and buffers on it.

use std::collections::BTreeMap;
use std::env;
use std::sync::{Mutex, OnceLock};

use bytemuck::Pod;
use half::bf16;
use oarlock_backend_cuda::kernels::launch::{Launch, WorkType};
use oarlock_backend_cuda::kernels::{HAS_KERNELS, MODULES};
use oarlock_simgpu::{Counters, Fault, LaunchConfig, LoadedModule, Memory, Module, Options};

/// Compute capability whose PTX runs: `OARLOCK_KERNEL_ARCH`, or 8.0.
fn arch() -> u32 {
    env::var("OARLOCK_KERNEL_ARCH").ok().and_then(|arch| arch.parse().ok()).unwrap_or(80)
}

/// One device.
pub(crate) struct Device {
    memory: Memory,
    modules: BTreeMap<&'static str, LoadedModule>,
    pub(crate) options: Options,
    /// Runs in place of the entry of its name, and may fail.
    pub(crate) mutant: Option<Module>,
    /// How the mutant failed.
    pub(crate) fault: Option<Fault>,
}

/// Whether there are kernels to test; says so where there are none, which CI does not take.
pub(crate) fn has_kernels() -> bool {
    if !HAS_KERNELS {
        let reason = "no kernels were built: run `cargo xtask cuda-toolkit`";
        assert!(env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
    }
    HAS_KERNELS
}

/// The file that has an entry, parsed once for all tests.
fn module_of(entry: &str) -> (&'static str, Module) {
    static PARSED: OnceLock<Mutex<BTreeMap<&'static str, Module>>> = OnceLock::new();
    let module = MODULES.iter().find(|module| module.entries.contains(&entry));
    let module = module.unwrap_or_else(|| panic!("no file has {entry}"));
    let mut parsed = PARSED.get_or_init(Mutex::default).lock().expect("no parser panicked");
    let found = parsed.entry(module.name).or_insert_with(|| {
        let wanted = arch();
        let (_, ptx) = module.ptx.iter().find(|(arch, _)| *arch == wanted).expect("its PTX");
        Module::parse(ptx).unwrap_or_else(|error| panic!("{}: {error}", module.name))
    });
    (module.name, found.clone())
}

impl Device {
    /// `OARLOCK_KERNEL_SEED` gives other schedules.
    pub(crate) fn new(seed: u64) -> Self {
        let more = env::var("OARLOCK_KERNEL_SEED").ok().and_then(|seed| seed.parse().ok());
        let options = Options { seed: seed + 1000 * more.unwrap_or(0), ..Options::default() };
        let memory = Memory::new(1 << 30);
        Self { memory, modules: BTreeMap::new(), options, mutant: None, fault: None }
    }

    pub(crate) fn upload<T: Pod>(&self, values: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.allocate(bytes.len());
        self.memory.write(address, bytes).expect("inside an allocation");
        address
    }

    /// Uninitialized memory.
    pub(crate) fn allocate(&self, bytes: usize) -> u64 {
        self.memory.allocate(bytes as u64).expect("room on the device")
    }

    pub(crate) fn read<T: Pod>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        self.memory.read(address, bytemuck::cast_slice_mut(&mut values)).expect("an allocation");
        values
    }

    /// Values of the working type.
    pub(crate) fn upload_work(&self, work: WorkType, values: &[f32]) -> u64 {
        match work {
            WorkType::F32 => self.upload(values),
            WorkType::Bf16 => {
                let values: Vec<u16> =
                    values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
                self.upload(&values)
            }
        }
    }

    pub(crate) fn read_work(&self, work: WorkType, address: u64, count: usize) -> Vec<f32> {
        match work {
            WorkType::F32 => self.read(address, count),
            WorkType::Bf16 => {
                let bits: Vec<u16> = self.read(address, count);
                bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()
            }
        }
    }

    pub(crate) fn run<P: Pod>(&mut self, launch: &Launch, params: &P) -> Counters {
        let config = LaunchConfig {
            grid: launch.grid,
            block: [launch.threads, 1, 1],
            dynamic_shared_bytes: launch.shared_bytes,
            params: bytemuck::bytes_of(params),
        };
        if self.fault.is_some() {
            return Counters::default();
        }
        let memory = &self.memory;
        let mutant = self.mutant.as_ref().filter(|module| module.entry(launch.entry).is_some());
        let result = if let Some(mutant) = mutant {
            let loaded = mutant.load(memory).expect("room on the device");
            oarlock_simgpu::launch(&loaded, launch.entry, &config, memory, &self.options)
        } else {
            let (name, module) = module_of(launch.entry);
            let load = || module.load(memory).expect("room on the device");
            let loaded = self.modules.entry(name).or_insert_with(load);
            oarlock_simgpu::launch(loaded, launch.entry, &config, memory, &self.options)
        };
        result.unwrap_or_else(|fault| {
            assert!(self.mutant.is_some(), "{}: {fault}", launch.entry);
            self.fault = Some(fault);
            Counters::default()
        })
    }
}

/// The PTX of one entry, with what it needs of its file.
pub(crate) fn ptx_of(entry: &str) -> String {
    let module = MODULES.iter().find(|module| module.entries.contains(&entry));
    let wanted = arch();
    let (_, ptx) = module
        .and_then(|module| module.ptx.iter().find(|(arch, _)| *arch == wanted))
        .expect("PTX of the entry");
    let is_start = |line: &str| line.starts_with(".visible .entry ");
    let mut text = String::new();
    let mut is_wanted = true;
    for line in ptx.lines() {
        if is_start(line) {
            is_wanted = line.contains(&format!(" {entry}("));
        }
        if is_wanted {
            text.push_str(line);
            text.push('\n');
        }
        // After an entry there may be declarations of the file.
        if line == "}" {
            is_wanted = true;
        }
    }
    text
}

/// What a working type makes of values.
pub(crate) fn rounded(work: WorkType, values: &[f32]) -> Vec<f32> {
    match work {
        WorkType::F32 => values.to_vec(),
        WorkType::Bf16 => values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
    }
}

/// Panics unless the relative root-mean-square error is within `tolerance`.
pub(crate) fn assert_near(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let (mut error, mut power) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        error += f64::from(got - want).powi(2);
        power += f64::from(*want).powi(2);
    }
    let relative = (error / power.max(1e-30)).sqrt();
    assert!(relative <= tolerance, "{what}: relative error {relative:e}, {tolerance:e} allowed");
}

/// Panics unless all bits agree.
pub(crate) fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: value {i} is {got} and was {want}");
    }
}
