//! Bodies of functions: scopes, declarations, labels and instructions.

use super::ast::{Instruction, Operand, Scalar, Statement};
use super::parser::Parser;
use super::token::Kind;
use crate::fault::PtxError;

type Parsed<T> = Result<T, PtxError>;

impl Parser<'_> {
    /// `{ … }`
    pub(super) fn scope(&mut self) -> Parsed<Vec<Statement>> {
        self.expect('{')?;
        let mut statements = vec![];
        while !self.take('}') {
            self.statement(&mut statements)?;
        }
        Ok(statements)
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Parsed<()> {
        match (self.peek(), self.peek_after()) {
            (Kind::Sign('{'), _) => statements.push(Statement::Scope(self.scope()?)),
            (Kind::Sign('@'), _) => statements.push(self.instruction()?),
            (Kind::Word(label), Kind::Sign(':')) => {
                self.at += 2;
                match self.peek() {
                    Kind::Word(".branchtargets") => {
                        self.at += 1;
                        statements.push(self.targets(label)?);
                    }
                    Kind::Word(".callprototype") => {
                        while !self.take(';') && self.advance() != Kind::End {}
                    }
                    _ => statements.push(Statement::Label(label.to_owned())),
                }
            }
            (Kind::Word(word), _) if word == ".reg" || word.starts_with(".reg.") => {
                statements.push(self.registers()?);
            }
            (Kind::Word(".loc" | ".file"), _) => self.skip_line(),
            (Kind::Word(".pragma"), _) => while !self.take(';') && self.advance() != Kind::End {},
            (Kind::Word(".shared" | ".local" | ".param" | ".global" | ".const"), _) => {
                statements.extend(self.variables()?.into_iter().map(Statement::Variable));
            }
            (Kind::Word(".extern") | Kind::Sign(';'), _) => self.at += 1,
            (Kind::Word(word), _) if !word.starts_with('.') => statements.push(self.instruction()?),
            _ => return self.error("a statement expected"),
        }
        Ok(())
    }

    fn targets(&mut self, table: &str) -> Parsed<Statement> {
        let mut labels = vec![self.word()?.to_owned()];
        while self.take(',') {
            labels.push(self.word()?.to_owned());
        }
        self.expect(';')?;
        Ok(Statement::Targets(table.to_owned(), labels))
    }

    /// `.reg .b32 %r<10>, a;`
    fn registers(&mut self) -> Parsed<Statement> {
        // The type may follow without a blank: `.reg.b32`.
        let scalar = match self.word()?.strip_prefix(".reg.") {
            Some(kind) => Scalar::parse(kind),
            None => self.word()?.strip_prefix('.').and_then(Scalar::parse),
        };
        let Some(scalar) = scalar.filter(|scalar| scalar.bytes() <= 8) else {
            self.at -= 1;
            return self.error("unknown type of register");
        };
        let mut names = vec![];
        loop {
            let name = self.word()?;
            if self.take('<') {
                let count = self.int()?;
                self.expect('>')?;
                names.extend((0..count).map(|i| format!("{name}{i}")));
            } else {
                names.push(name.to_owned());
            }
            if !self.take(',') {
                self.expect(';')?;
                return Ok(Statement::Registers(scalar, names));
            }
        }
    }

    fn instruction(&mut self) -> Parsed<Statement> {
        let (line, start) = (self.token().line, self.token().start);
        let guard = if self.take('@') {
            let is_negated = self.take('!');
            Some((self.word()?.to_owned(), is_negated))
        } else {
            None
        };
        let name = self.word()?.to_owned();
        let mut operands = vec![];
        while self.peek() != Kind::Sign(';') {
            operands.push(self.operand()?);
            if !self.take(',') {
                break;
            }
        }
        self.expect(';')?;
        let end = self.tokens[self.at - 1].end;
        Ok(Statement::Instruction(Instruction { guard, name, operands, line, span: start..end }))
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let operand = self.single()?;
        if self.take('|') {
            let second = self.single()?;
            return Ok(Operand::Pair(Box::new(operand), Box::new(second)));
        }
        Ok(operand)
    }

    fn list(&mut self, close: char) -> Parsed<Vec<Operand>> {
        let mut items = vec![];
        while !self.take(close) {
            items.push(self.operand()?);
            self.take(',');
        }
        Ok(items)
    }

    fn single(&mut self) -> Parsed<Operand> {
        match self.advance() {
            Kind::Word("_") => Ok(Operand::Sink),
            Kind::Word(word) => Ok(Operand::Name(word.to_owned(), self.offset()?)),
            Kind::Int(value) => Ok(Operand::Int(value)),
            Kind::Float32(bits) => Ok(Operand::Float32(bits)),
            Kind::Float64(bits) => Ok(Operand::Float64(bits)),
            Kind::Sign('-') => match self.advance() {
                Kind::Int(value) => Ok(Operand::Int(value.wrapping_neg())),
                Kind::Float64(bits) => Ok(Operand::Float64(bits ^ (1 << 63))),
                _ => self.error("a number expected"),
            },
            Kind::Sign('!') => Ok(Operand::Not(self.word()?.to_owned())),
            Kind::Sign('{') => Ok(Operand::Vector(self.list('}')?)),
            Kind::Sign('(') => Ok(Operand::List(self.list(')')?)),
            Kind::Sign('[') => self.address(),
            _ => {
                self.at -= 1;
                self.error("an operand expected")
            }
        }
    }

    /// `+4` or `+-4` after a name.
    fn offset(&mut self) -> Parsed<i64> {
        let is_negative = if self.take('+') {
            self.take('-')
        } else if self.take('-') {
            true
        } else {
            return Ok(0);
        };
        let value = self.int()? as i64;
        Ok(if is_negative { -value } else { value })
    }

    fn address(&mut self) -> Parsed<Operand> {
        let operand = match self.advance() {
            Kind::Word(word) => Operand::Address(Some(word.to_owned()), self.offset()?),
            Kind::Int(value) => Operand::Address(None, value as i64),
            _ => {
                self.at -= 1;
                return self.error("an address expected");
            }
        };
        self.expect(']')?;
        Ok(operand)
    }
}
