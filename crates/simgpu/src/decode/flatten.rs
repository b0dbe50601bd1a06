//! Resolves names and inlines calls, so that a kernel is one list of instructions.

use std::collections::{HashMap, HashSet};

use super::args::{Arg, Base, Flat, Resolved, Special, Symbol};
use crate::fault::PtxError;
use crate::ptx::{
    Function, Instruction, Operand, Scalar, Statement, Tree, Variable, VariableSpace,
};

/// Calls inside calls; more is taken for a recursion.
const MAX_DEPTH: usize = 64;

type Result<T> = std::result::Result<T, PtxError>;

#[derive(Debug, Clone, Copy)]
enum Binding {
    Register(u32),
    Pred(u32),
    Symbol(Symbol),
    Label(u32),
    Table(u32),
}

type Scope = HashMap<String, Binding>;

/// Turns an entry into one list. `variables` gives the index of each module variable by name.
pub(crate) fn flatten(tree: &Tree, source: &str, entry: &Function) -> Result<Flat> {
    let mut flattener =
        Flattener { tree, source, flat: Flat::default(), scopes: vec![Scope::new()], ends: vec![] };
    // Predicate 0 is the carry flag.
    flattener.flat.num_preds = 1;
    let mut offset = 0_u32;
    for param in &entry.params {
        offset = offset.next_multiple_of(param.align);
        flattener.bind(&param.name, Binding::Symbol(Symbol::Param(offset)));
        offset += param.bytes;
    }
    if let Some(body) = &entry.body {
        flattener.module_shared(body);
        flattener.scope(body)?;
    }
    let end = entry.body.as_ref().map_or(0..0, |_| 0..0);
    flattener.push(None, "exit", vec![], entry.line, end);
    Ok(flattener.flat)
}

struct Flattener<'a> {
    tree: &'a Tree,
    source: &'a str,
    flat: Flat,
    scopes: Vec<Scope>,
    /// Where `ret` of each function being inlined goes.
    ends: Vec<u32>,
}

impl Flattener<'_> {
    fn bind(&mut self, name: &str, binding: Binding) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), binding);
        }
    }

    fn find(&self, name: &str) -> Option<Binding> {
        if let Some(binding) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Some(*binding);
        }
        let is_named = |variable: &Variable| variable.name == name;
        let index = self.tree.variables.iter().position(is_named)?;
        Some(Binding::Symbol(Symbol::Variable(index as u32)))
    }

    /// Places the module-wide shared variables that the kernel and what it calls name.
    fn module_shared(&mut self, body: &[Statement]) {
        let tree = self.tree;
        let mut names = HashSet::new();
        mentions(tree, body, &mut names);
        let is_named = |variable: &&Variable| names.contains(variable.name.as_str());
        for variable in
            tree.variables.iter().filter(|v| v.space == VariableSpace::Shared).filter(is_named)
        {
            self.variable(variable);
        }
    }

    fn push(
        &mut self,
        guard: Option<(u32, bool)>,
        name: &str,
        args: Vec<Arg>,
        line: u32,
        span: std::ops::Range<usize>,
    ) {
        self.flat.code.push(Resolved { guard, name: name.to_owned(), args, line, span });
    }

    fn new_label(&mut self) -> u32 {
        self.flat.labels.push(u32::MAX);
        self.flat.labels.len() as u32 - 1
    }

    fn place(&mut self, label: u32) {
        self.flat.labels[label as usize] = self.flat.code.len() as u32;
    }

    fn error<T>(&self, instruction: &Instruction, message: String) -> Result<T> {
        let text = self.source[instruction.span.clone()].to_owned();
        Err(PtxError { line: instruction.line, message, text })
    }

    /// A body or a block in braces.
    fn scope(&mut self, statements: &[Statement]) -> Result<()> {
        self.scopes.push(Scope::new());
        for statement in statements {
            // Labels may be used before they stand.
            if let Statement::Label(name) = statement {
                let label = self.new_label();
                self.bind(name, Binding::Label(label));
            }
        }
        for statement in statements {
            if let Statement::Targets(name, labels) = statement {
                self.targets(name, labels);
            }
        }
        for statement in statements {
            match statement {
                Statement::Scope(inner) => self.scope(inner)?,
                Statement::Label(name) => {
                    if let Some(Binding::Label(label)) = self.find(name) {
                        self.place(label);
                    }
                }
                Statement::Registers(scalar, names) => self.registers(*scalar, names),
                Statement::Variable(variable) => self.variable(variable),
                Statement::Targets(..) => {}
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        self.scopes.pop();
        Ok(())
    }

    fn targets(&mut self, name: &str, labels: &[String]) {
        let found = labels.iter().filter_map(|label| match self.find(label) {
            Some(Binding::Label(label)) => Some(label),
            _ => None,
        });
        let table = found.collect();
        self.flat.tables.push(table);
        self.bind(name, Binding::Table(self.flat.tables.len() as u32 - 1));
    }

    fn registers(&mut self, scalar: Scalar, names: &[String]) {
        for name in names {
            let binding = if scalar == Scalar::Pred {
                self.flat.num_preds += 1;
                Binding::Pred(self.flat.num_preds - 1)
            } else {
                self.flat.registers.push(scalar);
                Binding::Register(self.flat.registers.len() as u32 - 1)
            };
            self.bind(name, binding);
        }
    }

    fn variable(&mut self, variable: &Variable) {
        let symbol = match variable.space {
            VariableSpace::Shared if variable.bytes == 0 => {
                self.flat.dynamic_align = self.flat.dynamic_align.max(variable.align);
                Symbol::DynamicShared
            }
            VariableSpace::Shared => {
                let offset = self.flat.shared_bytes.next_multiple_of(variable.align);
                self.flat.shared_bytes = offset + variable.bytes;
                Symbol::Shared(offset)
            }
            // Arguments of calls live in local memory, as they do on a device's stack.
            _ => Symbol::Local(self.local(variable.bytes, variable.align)),
        };
        self.bind(&variable.name, Binding::Symbol(symbol));
    }

    fn local(&mut self, bytes: u32, align: u32) -> u32 {
        let offset = self.flat.local_bytes.next_multiple_of(align);
        self.flat.local_bytes = offset + bytes;
        offset
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<()> {
        let guard = match &instruction.guard {
            None => None,
            Some((name, is_negated)) => match self.find(name) {
                Some(Binding::Pred(pred)) => Some((pred, *is_negated)),
                _ => return self.error(instruction, format!("no predicate `{name}`")),
            },
        };
        let base = instruction.name.split('.').next().unwrap_or_default();
        match (base, self.ends.last()) {
            ("call", _) => return self.call(instruction, guard),
            ("ret", Some(&end)) => {
                let span = instruction.span.clone();
                self.push(guard, "bra", vec![Arg::Label(end)], instruction.line, span);
                return Ok(());
            }
            _ => {}
        }
        let args: Result<Vec<Arg>> =
            instruction.operands.iter().map(|operand| self.arg(instruction, operand)).collect();
        self.push(guard, &instruction.name, args?, instruction.line, instruction.span.clone());
        Ok(())
    }

    fn arg(&self, instruction: &Instruction, operand: &Operand) -> Result<Arg> {
        Ok(match operand {
            Operand::Name(name, offset) => match self.find(name) {
                Some(Binding::Register(register)) => Arg::Register(register),
                Some(Binding::Pred(pred)) => Arg::Pred(pred, false),
                Some(Binding::Symbol(symbol)) => Arg::Symbol(symbol, *offset),
                Some(Binding::Label(label)) => Arg::Label(label),
                Some(Binding::Table(table)) => Arg::Table(table),
                None => match Special::parse(name) {
                    Some(special) => Arg::Special(special),
                    None if is_clock(name) => Arg::Clock,
                    None if name == "WARP_SZ" => Arg::Int(32),
                    None => return self.error(instruction, format!("no `{name}` here")),
                },
            },
            Operand::Int(value) => Arg::Int(*value),
            Operand::Float32(bits) => Arg::Float32(*bits),
            Operand::Float64(bits) => Arg::Float64(*bits),
            Operand::Not(name) => match self.find(name) {
                Some(Binding::Pred(pred)) => Arg::Pred(pred, true),
                _ => return self.error(instruction, format!("no predicate `{name}`")),
            },
            Operand::Pair(first, second) => Arg::Pair(
                Box::new(self.arg(instruction, first)?),
                Box::new(self.arg(instruction, second)?),
            ),
            Operand::Vector(items) | Operand::List(items) => {
                let items: Result<_> =
                    items.iter().map(|item| self.arg(instruction, item)).collect();
                Arg::Vector(items?)
            }
            Operand::Address(None, offset) => Arg::Address(Base::Absolute, *offset),
            Operand::Address(Some(name), offset) => match self.find(name) {
                Some(Binding::Register(register)) => {
                    Arg::Address(Base::Register(register), *offset)
                }
                Some(Binding::Symbol(symbol)) => Arg::Address(Base::Symbol(symbol), *offset),
                _ => return self.error(instruction, format!("no `{name}` to address")),
            },
            Operand::Sink => Arg::Sink,
        })
    }

    /// Puts the callee's body here, its parameters bound to the caller's.
    fn call(&mut self, instruction: &Instruction, guard: Option<(u32, bool)>) -> Result<()> {
        let mut operands = instruction.operands.iter();
        let mut next = operands.next();
        let results = match next {
            Some(Operand::List(items)) => {
                next = operands.next();
                items.as_slice()
            }
            _ => &[],
        };
        let Some(Operand::Name(name, _)) = next else {
            return self.error(instruction, "a call needs a function's name".to_owned());
        };
        let arguments = match operands.next() {
            Some(Operand::List(items)) => items.as_slice(),
            _ => &[],
        };
        let tree = self.tree;
        let callee = tree.functions.iter().find(|function| function.name == *name);
        let Some((callee, body)) = callee.and_then(|callee| Some((callee, callee.body.as_ref()?)))
        else {
            let (line, span) = (instruction.line, instruction.span.clone());
            self.push(guard, "call", vec![Arg::Extern(name.clone())], line, span);
            return Ok(());
        };
        if self.ends.len() > MAX_DEPTH {
            return self
                .error(instruction, "calls nest too deeply (recursion is not known)".to_owned());
        }
        let end = self.new_label();
        if let Some((pred, is_negated)) = guard {
            let skip = vec![Arg::Label(end)];
            let span = instruction.span.clone();
            self.push(Some((pred, !is_negated)), "bra", skip, instruction.line, span);
        }
        let mut scope = Scope::new();
        self.pass(instruction, &mut scope, &callee.params, arguments)?;
        self.pass(instruction, &mut scope, &callee.results, results)?;
        let callers = std::mem::replace(&mut self.scopes, vec![scope]);
        self.ends.push(end);
        self.scope(body)?;
        self.ends.pop();
        self.scopes = callers;
        self.place(end);
        Ok(())
    }

    /// Binds formal parameters to what the caller passed.
    fn pass(
        &self,
        instruction: &Instruction,
        scope: &mut Scope,
        formal: &[Variable],
        passed: &[Operand],
    ) -> Result<()> {
        if formal.len() != passed.len() {
            return self.error(instruction, format!("{} operands expected", formal.len()));
        }
        for (variable, operand) in formal.iter().zip(passed) {
            let binding = match self.arg(instruction, operand)? {
                Arg::Symbol(symbol, 0) => Binding::Symbol(symbol),
                Arg::Register(register) => Binding::Register(register),
                Arg::Pred(pred, false) => Binding::Pred(pred),
                _ => {
                    return self.error(instruction, "calls pass variables or registers".to_owned());
                }
            };
            scope.insert(variable.name.clone(), binding);
        }
        Ok(())
    }
}

/// Names that statements mention, those of functions that they call included.
fn mentions<'a>(tree: &'a Tree, statements: &'a [Statement], names: &mut HashSet<&'a str>) {
    for statement in statements {
        match statement {
            Statement::Scope(inner) => mentions(tree, inner, names),
            Statement::Instruction(instruction) => {
                instruction.operands.iter().for_each(|operand| mention(tree, operand, names));
            }
            _ => {}
        }
    }
}

fn mention<'a>(tree: &'a Tree, operand: &'a Operand, names: &mut HashSet<&'a str>) {
    match operand {
        Operand::Name(name, _) | Operand::Address(Some(name), _) => {
            if names.insert(name)
                && let Some(function) =
                    tree.functions.iter().find(|function| function.name == *name)
            {
                mentions(tree, function.body.as_deref().unwrap_or_default(), names);
            }
        }
        Operand::Vector(items) | Operand::List(items) => {
            for item in items {
                mention(tree, item, names);
            }
        }
        Operand::Pair(first, second) => {
            mention(tree, first, names);
            mention(tree, second, names);
        }
        _ => {}
    }
}

fn is_clock(name: &str) -> bool {
    matches!(
        name,
        "%clock"
            | "%clock64"
            | "%clock_hi"
            | "%globaltimer"
            | "%globaltimer_lo"
            | "%globaltimer_hi"
    )
}
