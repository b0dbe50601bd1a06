//! Random programs with branches and loops inside each other: every schedule gives what plain Rust gives.

use std::fmt::Write as _;

use crate::harness::{Arg, Device, HEADER};

/// Variables that live through the whole program.
const VARIABLES: usize = 5;
const THREADS: u32 = 64;

/// An operand: a variable or a number.
#[derive(Debug, Clone, Copy)]
enum Value {
    Variable(usize),
    Number(u32),
}

#[derive(Debug)]
enum Statement {
    /// `v = (a op b) op c`, through a temporary register.
    Assign(usize, [Value; 3], [usize; 2]),
    If(Value, Value, Vec<Statement>, Vec<Statement>),
    /// As many rounds as the variable's lowest bits say.
    Repeat(usize, Vec<Statement>),
    /// Lanes exchange a variable.
    Exchange(usize),
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % bound
    }

    fn value(&mut self) -> Value {
        if self.below(4) == 0 {
            Value::Number(self.below(100))
        } else {
            Value::Variable(self.below(VARIABLES as u32) as usize)
        }
    }

    /// Exchanges only where all lanes come: not inside of branches and loops.
    fn block(&mut self, depth: u32, is_top: bool) -> Vec<Statement> {
        let count = 1 + self.below(if is_top { 8 } else { 4 });
        (0..count).map(|_| self.statement(depth, is_top)).collect()
    }

    fn statement(&mut self, depth: u32, is_top: bool) -> Statement {
        let variable = self.below(VARIABLES as u32) as usize;
        match self.below(if depth == 0 { 3 } else { 7 }) {
            0 if is_top => Statement::Exchange(variable),
            3 | 4 => {
                let (a, b) = (self.value(), self.value());
                Statement::If(a, b, self.block(depth - 1, false), self.block(depth - 1, false))
            }
            5 => Statement::Repeat(variable, self.block(depth - 1, false)),
            _ => {
                let values = [self.value(), self.value(), self.value()];
                Statement::Assign(
                    variable,
                    values,
                    [self.below(5) as usize, self.below(5) as usize],
                )
            }
        }
    }
}

const OPS: [&str; 5] = ["add.u32", "sub.u32", "xor.b32", "mul.lo.u32", "min.u32"];

fn apply(op: usize, a: u32, b: u32) -> u32 {
    match op {
        0 => a.wrapping_add(b),
        1 => a.wrapping_sub(b),
        2 => a ^ b,
        3 => a.wrapping_mul(b),
        _ => a.min(b),
    }
}

/// Writes PTX; every temporary has a register of its own.
#[derive(Default)]
struct Writer {
    text: String,
    next: usize,
}

impl Writer {
    fn fresh(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn value(value: Value) -> String {
        match value {
            Value::Variable(variable) => format!("%v{variable}"),
            Value::Number(number) => number.to_string(),
        }
    }

    fn block(&mut self, statements: &[Statement]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        let id = self.fresh();
        let _ = match statement {
            Statement::Assign(variable, [a, b, c], [first, second]) => {
                let [a, b, c] = [*a, *b, *c].map(Self::value);
                // The first operand of an instruction may not be a number in both places.
                let (first, second) = (OPS[*first], OPS[*second]);
                writeln!(
                    self.text,
                    "mov.u32 %a{id}, {a}; {first} %t{id}, %a{id}, {b}; {second} %v{variable}, %t{id}, {c};"
                )
            }
            Statement::If(a, b, yes, no) => {
                let (a, b) = (Self::value(*a), Self::value(*b));
                let _ = writeln!(
                    self.text,
                    "mov.u32 %a{id}, {a}; setp.lt.u32 %p{id}, %a{id}, {b}; @!%p{id} bra ELSE{id};"
                );
                self.block(yes);
                let _ = writeln!(self.text, "bra END{id};\nELSE{id}:");
                self.block(no);
                writeln!(self.text, "END{id}:")
            }
            Statement::Repeat(variable, body) => {
                let _ = writeln!(
                    self.text,
                    "and.b32 %t{id}, %v{variable}, 3;\nLOOP{id}: setp.eq.u32 %p{id}, %t{id}, 0; @%p{id} bra END{id};"
                );
                self.block(body);
                writeln!(self.text, "sub.u32 %t{id}, %t{id}, 1; bra LOOP{id};\nEND{id}:")
            }
            Statement::Exchange(variable) => {
                writeln!(self.text, "shfl.sync.bfly.b32 %v{variable}, %v{variable}, 5, 31, -1;")
            }
        };
    }

    fn kernel(program: &[Statement]) -> String {
        let mut writer = Self::default();
        writer.block(program);
        let count = writer.next + 1;
        let mut text = format!(
            "{HEADER}.visible .entry k(.param .u64 p) {{ .reg .pred %p<{count}>; .reg .b32 %a<{count}>; .reg .b32 %t<{count}>;
            .reg .b32 %v<{VARIABLES}>; .reg .b64 %d<4>; .reg .b32 %x; ld.param.u64 %d1, [p]; mov.u32 %x, %tid.x;\n"
        );
        for variable in 0..VARIABLES {
            let _ =
                writeln!(text, "mad.lo.u32 %v{variable}, %x, {}, {variable};", 7 * variable + 1);
        }
        text += &writer.text;
        let _ = writeln!(text, "mad.wide.u32 %d2, %x, {}, %d1;", 4 * VARIABLES);
        for variable in 0..VARIABLES {
            let _ = writeln!(text, "st.global.u32 [%d2+{}], %v{variable};", 4 * variable);
        }
        text + "ret; }\n"
    }
}

type State = [u32; VARIABLES];

fn run(statements: &[Statement], state: &mut State) {
    for statement in statements {
        let value = |value: Value, state: &State| match value {
            Value::Variable(variable) => state[variable],
            Value::Number(number) => number,
        };
        match statement {
            Statement::Assign(variable, [a, b, c], [first, second]) => {
                let inner = apply(*first, value(*a, state), value(*b, state));
                state[*variable] = apply(*second, inner, value(*c, state));
            }
            Statement::If(a, b, yes, no) => {
                run(if value(*a, state) < value(*b, state) { yes } else { no }, state);
            }
            Statement::Repeat(variable, body) => {
                for _ in 0..state[*variable] & 3 {
                    run(body, state);
                }
            }
            Statement::Exchange(_) => unreachable!("only at the top"),
        }
    }
}

/// What all threads end with.
fn expected(program: &[Statement]) -> Vec<State> {
    let first = |thread: u32| -> State {
        std::array::from_fn(|variable| {
            thread.wrapping_mul(7 * variable as u32 + 1) + variable as u32
        })
    };
    let mut states: Vec<State> = (0..THREADS).map(first).collect();
    for statement in program {
        if let Statement::Exchange(variable) = statement {
            let old = states.clone();
            for (thread, state) in states.iter_mut().enumerate() {
                state[*variable] = old[thread ^ 5][*variable];
            }
        } else {
            for state in &mut states {
                run(std::slice::from_ref(statement), state);
            }
        }
    }
    states
}

#[test]
fn every_schedule_gives_the_same() {
    for seed in 0..400 {
        let program = Random(seed).block(4, true);
        let text = Writer::kernel(&program);
        let expected: Vec<u32> = expected(&program).concat();
        let mut device = Device::new(&text);
        for schedule in 0..4 {
            device.options.seed = schedule;
            device.options.hostile_schedule = schedule > 0;
            let buffer = device.alloc(4 * VARIABLES * THREADS as usize);
            device.launch("k", 1, THREADS, 0, &[Arg::U64(buffer)]);
            let result = device.download::<u32>(buffer, VARIABLES * THREADS as usize);
            assert_eq!(result, expected, "program {seed}, schedule {schedule}:\n{text}");
        }
    }
}
