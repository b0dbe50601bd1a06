//! PTX modules: what the text says, decoded once, and what loading it places on a device.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decode::{decode, flatten, has_features};
use crate::exec::program::Program;
use crate::fault::PtxError;
use crate::memory::{Memory, MemoryError};
use crate::ptx::{self, Function, Initial, Tree, Variable, VariableSpace};

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
    pub(crate) program: Program,
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
    pub(crate) source: String,
    variables: Vec<Variable>,
}

impl Module {
    /// Parses and decodes a text; an instruction that is not known fails here.
    pub fn parse(ptx: &str) -> Result<Self, PtxError> {
        if !has_features() {
            let message = "the simulator needs a processor with AVX2 and FMA".to_owned();
            return Err(PtxError { line: 0, message, text: String::new() });
        }
        // Drivers are given text that ends with a zero byte.
        let source = ptx.trim_end_matches('\0').to_owned();
        let tree = ptx::parse(&source)?;
        let functions = tree.functions.iter().filter(|function| function.is_entry);
        let entries: Result<_, _> =
            functions.map(|function| entry(&tree, &source, function)).collect();
        let inner = ModuleInner { entries: entries?, source, variables: tree.variables };
        Ok(Self { inner: Arc::new(inner) })
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
    pub fn load(&self, memory: &Memory) -> Result<LoadedModule, MemoryError> {
        let mut addresses = vec![];
        let mut variables = BTreeMap::new();
        for variable in &self.inner.variables {
            let is_placed = matches!(variable.space, VariableSpace::Global | VariableSpace::Const);
            let address = if is_placed { memory.allocate(u64::from(variable.bytes))? } else { 0 };
            addresses.push(address);
            if is_placed {
                variables.insert(variable.name.clone(), (address, u64::from(variable.bytes)));
            }
        }
        for (variable, &address) in self.inner.variables.iter().zip(&addresses) {
            if address != 0 {
                memory.write(address, &initial_bytes(variable, &variables))?;
            }
        }
        Ok(LoadedModule { module: self.clone(), variables, addresses })
    }
}

/// What a variable holds at first: zeros where the text gives nothing.
fn initial_bytes(variable: &Variable, variables: &BTreeMap<String, (u64, u64)>) -> Vec<u8> {
    let mut bytes = vec![];
    for initial in &variable.initial {
        let value = match initial {
            Initial::Value(value) => *value,
            Initial::Symbol(name, offset) => {
                variables.get(name).map_or(0, |(address, _)| address.wrapping_add_signed(*offset))
            }
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..variable.scalar.bytes() as usize]);
    }
    bytes.resize(variable.bytes as usize, 0);
    bytes
}

fn entry(tree: &Tree, source: &str, function: &Function) -> Result<Entry, PtxError> {
    let mut params: Vec<Param> = vec![];
    for param in &function.params {
        let end = params.last().map_or(0, |last| last.offset + last.size);
        let (size, align) = (param.bytes as usize, param.align as usize);
        params.push(Param { offset: end.next_multiple_of(align), size, align });
    }
    let decoded = decode(&flatten(tree, source, function)?, source)?;
    let program = decoded.program;
    Ok(Entry {
        name: function.name.clone(),
        params,
        static_shared_bytes: program.shared_bytes,
        local_bytes: program.local_bytes,
        num_registers: decoded.num_registers,
        max_threads: function.max_threads,
        program,
    })
}

/// A module on a device.
#[derive(Debug, Clone)]
pub struct LoadedModule {
    pub(crate) module: Module,
    /// Name to address and length.
    variables: BTreeMap<String, (u64, u64)>,
    /// Addresses in the text's order.
    pub(crate) addresses: Vec<u64>,
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
