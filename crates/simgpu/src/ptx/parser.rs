//! Directives outside of bodies: functions and variables.

use super::ast::{Function, Initial, Scalar, Tree, Variable, VariableSpace};
use super::token::{Kind, Token, tokens};
use crate::fault::PtxError;

/// Parses a text.
pub(crate) fn parse(source: &str) -> Result<Tree, PtxError> {
    let mut parser = Parser { source, tokens: tokens(source)?, at: 0 };
    let mut tree = Tree::default();
    while parser.peek() != Kind::End {
        parser.top_level(&mut tree)?;
    }
    Ok(tree)
}

pub(super) struct Parser<'a> {
    pub(super) source: &'a str,
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) at: usize,
}

type Parsed<T> = Result<T, PtxError>;

impl<'a> Parser<'a> {
    pub(super) fn token(&self) -> Token<'a> {
        self.tokens[self.at]
    }

    pub(super) fn peek(&self) -> Kind<'a> {
        self.tokens[self.at].kind
    }

    pub(super) fn peek_after(&self) -> Kind<'a> {
        self.tokens.get(self.at + 1).map_or(Kind::End, |token| token.kind)
    }

    pub(super) fn advance(&mut self) -> Kind<'a> {
        let kind = self.peek();
        if kind != Kind::End {
            self.at += 1;
        }
        kind
    }

    pub(super) fn error<T>(&self, message: &str) -> Parsed<T> {
        let token = self.token();
        let text = self.source[token.start..].lines().next().unwrap_or_default().trim();
        Err(PtxError { line: token.line, message: message.to_owned(), text: text.to_owned() })
    }

    /// Takes the sign if it comes next.
    pub(super) fn take(&mut self, sign: char) -> bool {
        let found = self.peek() == Kind::Sign(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, sign: char) -> Parsed<()> {
        if self.take(sign) { Ok(()) } else { self.error(&format!("`{sign}` expected")) }
    }

    pub(super) fn word(&mut self) -> Parsed<&'a str> {
        if let Kind::Word(word) = self.peek() {
            self.at += 1;
            return Ok(word);
        }
        self.error("a name expected")
    }

    pub(super) fn int(&mut self) -> Parsed<u64> {
        if let Kind::Int(value) = self.peek() {
            self.at += 1;
            return Ok(value);
        }
        self.error("a number expected")
    }

    fn top_level(&mut self, tree: &mut Tree) -> Parsed<()> {
        let Kind::Word(word) = self.peek() else {
            return self.error("a directive expected");
        };
        match word {
            ".version" | ".target" | ".address_size" | ".file" => self.skip_line(),
            ".section" => {
                while self.peek() != Kind::End && !self.take('}') {
                    self.at += 1;
                }
            }
            ".visible" | ".extern" | ".weak" | ".common" => self.at += 1,
            ".entry" | ".func" => {
                let function = self.function(word == ".entry")?;
                // A definition after its declaration takes its place.
                if function.body.is_some() {
                    tree.functions.retain(|other| other.name != function.name);
                }
                if tree.functions.iter().all(|other| other.name != function.name) {
                    tree.functions.push(function);
                }
            }
            ".global" | ".const" | ".shared" => tree.variables.extend(self.variables()?),
            ".pragma" | ".alias" => {
                while self.peek() != Kind::End && !self.take(';') {
                    self.at += 1;
                }
            }
            _ => return self.error("unknown directive"),
        }
        Ok(())
    }

    pub(super) fn skip_line(&mut self) {
        let line = self.token().line;
        while self.peek() != Kind::End && self.token().line == line {
            self.at += 1;
        }
    }

    fn function(&mut self, is_entry: bool) -> Parsed<Function> {
        self.at += 1;
        let line = self.token().line;
        let results = if is_entry { vec![] } else { self.parameters()? };
        let name = self.word()?.to_owned();
        let params = self.parameters()?;
        let mut max_threads = None;
        loop {
            match self.peek() {
                Kind::Sign('{') => {
                    let body = Some(self.scope()?);
                    return Ok(Function {
                        name,
                        is_entry,
                        results,
                        params,
                        max_threads,
                        body,
                        line,
                    });
                }
                Kind::Sign(';') => {
                    self.at += 1;
                    return Ok(Function {
                        name,
                        is_entry,
                        results,
                        params,
                        max_threads,
                        body: None,
                        line,
                    });
                }
                Kind::Word(".maxntid" | ".reqntid") => {
                    self.at += 1;
                    max_threads = Some(self.extent()?);
                }
                Kind::Word(".pragma") => while !self.take(';') && self.advance() != Kind::End {},
                Kind::Word(".noreturn") => self.at += 1,
                Kind::Word(
                    ".minnctapersm" | ".maxnctapersm" | ".maxnreg" | ".abi_preserve"
                    | ".explicitcluster" | ".reqnctapercluster" | ".maxclusterrank",
                ) => {
                    self.at += 1;
                    while matches!(self.peek(), Kind::Int(_) | Kind::Sign(',')) {
                        self.at += 1;
                    }
                }
                _ => return self.error("a function's body expected"),
            }
        }
    }

    fn extent(&mut self) -> Parsed<[u32; 3]> {
        let mut extent = [1; 3];
        extent[0] = self.int()? as u32;
        for size in &mut extent[1..] {
            if self.take(',') {
                *size = self.int()? as u32;
            }
        }
        Ok(extent)
    }

    /// `(.param .u64 a, …)`, which may be absent.
    fn parameters(&mut self) -> Parsed<Vec<Variable>> {
        let mut parameters = vec![];
        if !self.take('(') {
            return Ok(parameters);
        }
        while !self.take(')') {
            parameters.push(self.declaration()?.0);
            self.take(',');
        }
        Ok(parameters)
    }

    /// `.shared .align 4 .b8 a[16], b[4];`
    pub(super) fn variables(&mut self) -> Parsed<Vec<Variable>> {
        let (first, template) = self.declaration()?;
        let mut variables = vec![first];
        while self.take(',') {
            variables.push(self.declarator(&template)?);
        }
        self.expect(';')?;
        Ok(variables)
    }

    /// The first variable of a declaration, and the template for its further ones.
    fn declaration(&mut self) -> Parsed<(Variable, Variable)> {
        let mut template = Variable {
            name: String::new(),
            space: VariableSpace::Param,
            scalar: Scalar::Bits(1),
            align: 0,
            bytes: 0,
            initial: vec![],
            line: self.token().line,
        };
        let mut lanes = 1;
        while let Kind::Word(word) = self.peek() {
            if !word.starts_with('.') {
                break;
            }
            self.at += 1;
            match word {
                ".global" => template.space = VariableSpace::Global,
                ".const" => template.space = VariableSpace::Const,
                ".shared" => template.space = VariableSpace::Shared,
                ".local" => template.space = VariableSpace::Local,
                // `.reg` parameters of functions are passed the same way.
                ".param" | ".reg" => template.space = VariableSpace::Param,
                ".align" => template.align = self.int()? as u32,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                // `.param .u64 .ptr .global .align 1 name`: what the pointer points to.
                ".ptr" => {
                    while !matches!(self.peek_after(), Kind::Sign(_) | Kind::End) {
                        self.at += 1;
                    }
                }
                ".attribute" => while !self.take(')') && self.advance() != Kind::End {},
                _ => match Scalar::parse(&word[1..]) {
                    Some(scalar) => template.scalar = scalar,
                    None => return self.error("unknown type"),
                },
            }
        }
        template.bytes = template.scalar.bytes() * lanes;
        template.align = template.align.max(template.bytes.min(16)).max(1);
        Ok((self.declarator(&template)?, template))
    }

    fn declarator(&mut self, template: &Variable) -> Parsed<Variable> {
        let mut variable = template.clone();
        self.word()?.clone_into(&mut variable.name);
        while self.take('[') {
            if self.take(']') {
                variable.bytes = 0;
            } else {
                let count = self.int()?;
                let bytes = u64::from(variable.bytes).checked_mul(count);
                let Some(bytes) = bytes.and_then(|bytes| u32::try_from(bytes).ok()) else {
                    return self.error("an array of 4 GiB and more");
                };
                variable.bytes = bytes;
                self.expect(']')?;
            }
        }
        if self.take('=') {
            self.initializer(&mut variable.initial)?;
            let given = variable.initial.len() as u32 * variable.scalar.bytes();
            variable.bytes = variable.bytes.max(given);
        }
        Ok(variable)
    }

    fn initializer(&mut self, initial: &mut Vec<Initial>) -> Parsed<()> {
        if self.take('{') {
            while !self.take('}') {
                self.initializer(initial)?;
                self.take(',');
            }
            return Ok(());
        }
        let is_negative = self.take('-');
        match self.advance() {
            Kind::Int(value) => {
                let value = if is_negative { value.wrapping_neg() } else { value };
                initial.push(Initial::Value(value));
            }
            Kind::Float32(bits) => initial.push(Initial::Value(u64::from(bits))),
            Kind::Float64(bits) => initial.push(Initial::Value(bits)),
            Kind::Word(word) => {
                let name = if word == "generic" && self.take('(') {
                    let name = self.word()?;
                    self.expect(')')?;
                    name
                } else {
                    word
                };
                let offset = if self.take('+') { self.int()? as i64 } else { 0 };
                initial.push(Initial::Symbol(name.to_owned(), offset));
            }
            _ => return self.error("an initial value expected"),
        }
        Ok(())
    }
}
