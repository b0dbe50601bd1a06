//! Every group of instructions against plain Rust.

mod floats;
mod halves;
mod integers;
pub(crate) mod memory;
mod tensor;
mod warps;

use std::fmt::Write as _;

use crate::harness::{Arg, Device, HEADER, Number, words};

/// Registers that bodies may use.
pub(crate) const REGISTERS: &str = ".reg .pred %p<8>; .reg .b16 %rs<16>; .reg .b32 %r<32>; .reg .b64 %rd<32>; \
                                    .reg .f32 %f<16>; .reg .f64 %fd<16>;\n";

/// A kernel whose threads load an element of each of three arrays, run a body, and store one: `r0` from
/// `r1`, `r2` and `r3`, of 32 or 64 bits.
fn kernel(body: &str, bytes: usize) -> String {
    let (kind, file) = if bytes == 8 { ("b64", "%rd") } else { ("b32", "%r") };
    let mut text = format!(
        "{HEADER}.visible .entry k(.param .u64 d, .param .u64 a, .param .u64 b, .param .u64 c) {{\n{REGISTERS}
        mov.u32 %r30, %tid.x; mov.u32 %r31, %ctaid.x; mad.lo.s32 %r30, %r31, 64, %r30;\n"
    );
    for (index, name) in ["d", "a", "b", "c"].into_iter().enumerate() {
        let address = 20 + index;
        let _ = writeln!(
            text,
            "ld.param.u64 %rd{address}, [{name}]; mad.wide.u32 %rd{address}, %r30, {bytes}, %rd{address};"
        );
        if index > 0 {
            let _ = writeln!(text, "ld.global.{kind} {file}{index}, [%rd{address}];");
        }
    }
    let _ = write!(text, "{body}\nst.global.{kind} [%rd20], {file}0;\nret; }}");
    text
}

/// Numbers that are interesting in any type, then random ones.
fn inputs(seed: u64, len: usize) -> Vec<u32> {
    let mut values =
        vec![0, 1, 2, 31, 32, 33, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff];
    values.extend([
        0x8000_0000,
        0xffff_ffff,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x4f00_0000,
    ]);
    let random = words(seed, len);
    let shift = random[0] as usize % values.len();
    values.rotate_left(shift);
    values.extend(random);
    values.truncate(len);
    values
}

const LEN: usize = 128;

/// Runs a body over three arrays.
pub(crate) fn run<T: Number>(body: &str, arrays: [&[T]; 3]) -> Vec<T> {
    let device = Device::new(&kernel(body, T::BYTES));
    let len = arrays[0].len();
    let d = device.alloc(len * T::BYTES);
    let mut args = vec![Arg::U64(d)];
    args.extend(arrays.iter().map(|array| Arg::U64(device.upload(array))));
    device.launch("k", len as u32 / 64, 64, 0, &args);
    device.download(d, len)
}

/// Compares a body with a function, on words.
pub(crate) fn same(body: &str, expected: impl Fn(u32, u32, u32) -> u32) {
    let arrays = [1, 2, 3].map(|seed| inputs(seed, LEN));
    let result = run(body, [&arrays[0], &arrays[1], &arrays[2]]);
    for (i, &value) in result.iter().enumerate() {
        let (a, b, c) = (arrays[0][i], arrays[1][i], arrays[2][i]);
        assert_eq!(value, expected(a, b, c), "{body} a {a:#x} b {b:#x} c {c:#x}: {value:#x}");
    }
}

/// Compares a body with a function, on 64-bit words.
pub(crate) fn same_wide(body: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    let arrays = [1, 2, 3].map(|seed| -> Vec<u64> {
        let (low, high) = (inputs(seed, LEN), inputs(seed + 7, LEN));
        low.into_iter()
            .zip(high)
            .map(|(low, high)| u64::from(low) | u64::from(high) << 32)
            .collect()
    });
    let result = run(body, [&arrays[0], &arrays[1], &arrays[2]]);
    for (i, &value) in result.iter().enumerate() {
        let (a, b, c) = (arrays[0][i], arrays[1][i], arrays[2][i]);
        assert_eq!(value, expected(a, b, c), "{body} a {a:#x} b {b:#x} c {c:#x}: {value:#x}");
    }
}

/// Compares a body with a function, on floats; any NaN equals any other.
pub(crate) fn same_floats(body: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    let arrays = [1, 2, 3].map(|seed| -> Vec<u32> {
        // Half of them of ordinary size.
        let values = inputs(seed, LEN).into_iter().enumerate();
        values
            .map(|(i, bits)| if i % 2 == 0 { bits } else { 0x3c00_0000 + bits % 0x0700_0000 })
            .collect()
    });
    let result = run(body, [&arrays[0], &arrays[1], &arrays[2]]);
    for (i, &bits) in result.iter().enumerate() {
        let [a, b, c] = [0, 1, 2].map(|array| f32::from_bits(arrays[array][i]));
        let (value, expected) = (f32::from_bits(bits), expected(a, b, c));
        let equal = bits == expected.to_bits() || value.is_nan() && expected.is_nan();
        assert!(equal, "{body} a {a:e} b {b:e} c {c:e}: {value:e}, not {expected:e}");
    }
}
