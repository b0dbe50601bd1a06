//! A device with buffers, and kernels to run on it.

use oarlock_simgpu::{
    Counters, Fault, LaunchConfig, LoadedModule, Memory, Module, Options, launch,
};

/// Header of hand-written PTX.
pub(crate) const HEADER: &str = ".version 8.8\n.target sm_90\n.address_size 64\n";

/// Plain numbers as bytes.
pub(crate) trait Number: Copy + Default {
    const BYTES: usize;
    fn put(self, out: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($T:ty),*) => {
        $(impl Number for $T {
            const BYTES: usize = size_of::<$T>();
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        })*
    };
}

numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

pub(crate) fn bytes_of<T: Number>(values: &[T]) -> Vec<u8> {
    let mut bytes = vec![];
    for value in values {
        value.put(&mut bytes);
    }
    bytes
}

/// A kernel argument.
pub(crate) enum Arg {
    U32(u32),
    U64(u64),
    Bytes(Vec<u8>),
}

/// A device with a module.
pub(crate) struct Device {
    pub(crate) memory: Memory,
    pub(crate) loaded: LoadedModule,
    pub(crate) options: Options,
}

impl Device {
    pub(crate) fn new(ptx: &str) -> Self {
        let memory = Memory::new(256 << 20);
        let module = Module::parse(ptx).unwrap();
        let loaded = module.load(&memory).unwrap();
        Self { memory, loaded, options: Options { threads: 1, ..Options::default() } }
    }

    pub(crate) fn upload<T: Number>(&self, values: &[T]) -> u64 {
        let address = self.alloc(values.len() * T::BYTES);
        self.memory.write(address, &bytes_of(values)).unwrap();
        address
    }

    pub(crate) fn alloc(&self, bytes: usize) -> u64 {
        self.memory.allocate(bytes as u64).unwrap()
    }

    pub(crate) fn download<T: Number>(&self, address: u64, len: usize) -> Vec<T> {
        let mut bytes = vec![0; len * T::BYTES];
        self.memory.read(address, &mut bytes).unwrap();
        bytes.chunks_exact(T::BYTES).map(T::get).collect()
    }

    /// Name of the one entry that contains `part`.
    pub(crate) fn entry(&self, part: &str) -> String {
        let found: Vec<&str> = self
            .loaded
            .module()
            .entries()
            .map(oarlock_simgpu::Entry::name)
            .filter(|name| name.contains(part))
            .collect();
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        found[0].to_owned()
    }

    pub(crate) fn try_launch(
        &self,
        entry: &str,
        grid: u32,
        block: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<Counters, Fault> {
        let found = self.loaded.module().entry(entry).unwrap();
        let mut params = vec![0; found.param_bytes()];
        assert_eq!(args.len(), found.params().len());
        for (param, arg) in found.params().iter().zip(args) {
            let bytes = match arg {
                Arg::U32(value) => value.to_le_bytes().to_vec(),
                Arg::U64(value) => value.to_le_bytes().to_vec(),
                Arg::Bytes(bytes) => bytes.clone(),
            };
            assert!(
                bytes.len() <= param.size,
                "{} bytes for a parameter of {}",
                bytes.len(),
                param.size
            );
            params[param.offset..param.offset + bytes.len()].copy_from_slice(&bytes);
        }
        let config = LaunchConfig {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared_bytes: shared,
            params: &params,
        };
        launch(&self.loaded, entry, &config, &self.memory, &self.options)
    }

    pub(crate) fn launch(
        &self,
        entry: &str,
        grid: u32,
        block: u32,
        shared: u32,
        args: &[Arg],
    ) -> Counters {
        self.try_launch(entry, grid, block, shared, args).unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// A stream of pseudo-random words.
pub(crate) fn words(seed: u64, len: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..len).map(|_| next()).collect()
}
