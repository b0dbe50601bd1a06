//! Matrices of 8 × 8 halves in shared memory, and multiplication on tensor cores.
//!
//! Lane `4g + t` holds row `g`, and of it the columns that `t` chooses, in every fragment.

use super::kernel::Stop;
use super::program::{Factor, Matrix, Mma};
use super::registers::{LANES, Registers};
use super::warp::{Env, Warp};
use crate::numbers::{bf16_to_f32, f16_to_f32, f32_to_f16};

/// Bytes of a matrix's row.
const ROW_BYTES: usize = 16;

impl Warp {
    pub(crate) fn load_matrix(
        &mut self,
        env: &mut Env<'_>,
        op: &Matrix,
        pc: u32,
    ) -> Result<(), Stop> {
        let addresses = op.address.all(&self.registers);
        count_matrix(env, op, &addresses, pc, false);
        for (index, &row) in op.rows.iter().enumerate() {
            let mut matrix = [[0; ROW_BYTES]; 8];
            for (i, bytes) in matrix.iter_mut().enumerate() {
                let lane = 8 * index + i;
                let touch = self.touch(lane, false, false);
                *bytes = env
                    .shared
                    .read_fixed(op.address.resolve(addresses[lane]).1, touch)
                    .map_err(|what| Stop { lane: lane as u32, what })?;
            }
            let half = |row: usize, column: usize| {
                u32::from(u16::from_le_bytes([
                    matrix[row][2 * column],
                    matrix[row][2 * column + 1],
                ]))
            };
            for (lane, word) in self.registers.get_mut::<u32>(row).iter_mut().enumerate() {
                let (g, t) = (lane / 4, lane % 4);
                *word = if op.is_transposed {
                    half(2 * t, g) | half(2 * t + 1, g) << 16
                } else {
                    half(g, 2 * t) | half(g, 2 * t + 1) << 16
                };
            }
        }
        Ok(())
    }

    pub(crate) fn store_matrix(
        &mut self,
        env: &mut Env<'_>,
        op: &Matrix,
        pc: u32,
    ) -> Result<(), Stop> {
        let addresses = op.address.all(&self.registers);
        count_matrix(env, op, &addresses, pc, true);
        for (index, &row) in op.rows.iter().enumerate() {
            let values = *self.registers.get::<u32>(row);
            let mut matrix = [[0; ROW_BYTES]; 8];
            for (lane, value) in values.into_iter().enumerate() {
                let (g, t) = (lane / 4, lane % 4);
                for (part, half) in [value as u16, (value >> 16) as u16].into_iter().enumerate() {
                    let (row, column) =
                        if op.is_transposed { (2 * t + part, g) } else { (g, 2 * t + part) };
                    matrix[row][2 * column..2 * column + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
            for (i, bytes) in matrix.iter().enumerate() {
                let lane = 8 * index + i;
                let touch = self.touch(lane, true, false);
                let at = op.address.resolve(addresses[lane]).1;
                env.shared
                    .write(at, bytes, touch)
                    .map_err(|what| Stop { lane: lane as u32, what })?;
            }
        }
        Ok(())
    }

    pub(crate) fn transpose_matrix(&mut self, to: u32, from: u32) {
        let values = *self.registers.get::<u32>(from);
        let half = |row: usize, column: usize| {
            values[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff
        };
        *self.registers.get_mut::<u32>(to) = std::array::from_fn(|lane| {
            let (g, t) = (lane / 4, lane % 4);
            half(2 * t, g) | half(2 * t + 1, g) << 16
        });
    }
}

fn count_matrix(env: &mut Env<'_>, op: &Matrix, addresses: &[u64; LANES], pc: u32, is_write: bool) {
    if env.tally.counts_memory() {
        let lanes = u32::MAX >> (32 - 8 * op.rows.len());
        env.count(&op.address, addresses, ROW_BYTES as u32, lanes, pc, is_write);
    }
}

impl Factor {
    /// Numbers in a register.
    fn per_register(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Tf32 => 1,
            Self::S8 | Self::U8 => 4,
        }
    }

    #[inline(always)]
    fn int(self, word: u32, part: usize) -> i32 {
        let byte = (word >> (8 * part)) as u8;
        if self == Self::S8 { i32::from(byte as i8) } else { i32::from(byte) }
    }
}

/// Most columns of the first factor.
const MAX_K: usize = 32;

/// `d = a × b + c`. The products of f16, bf16 and tf32 numbers are exact; an element's sum begins with
/// `c` and adds them in ascending order of the inner index, rounding to f32 after each (one chain of
/// fused multiply-adds); f16 accumulators are rounded once more, at the end. Hardware sums in an order
/// of its own that is not documented. Integers are summed exactly.
pub(crate) fn multiply(registers: &mut Registers, op: &Mma) {
    if matches!(op.a_type, Factor::S8 | Factor::U8) {
        return multiply_ints(registers, op);
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn fused(registers: &mut Registers, op: &Mma) {
            multiply_floats(registers, op);
        }
        // SAFETY: programs are decoded only on processors with these features (`decode::has_features`).
        unsafe { fused(registers, op) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    multiply_floats(registers, op);
}

/// The inner function, compiled for each type and each `k`: constants make its loops fixed.
#[inline(always)]
fn multiply_floats(registers: &mut Registers, op: &Mma) {
    match (op.a_type, op.k) {
        (Factor::F16, 16) => float_product::<16>(registers, op, &|words| f16_row(words)),
        (Factor::F16, _) => float_product::<8>(registers, op, &|words| f16_row(words)),
        (Factor::Bf16, 16) => float_product::<16>(registers, op, &|words| bf16_row(words)),
        (Factor::Bf16, _) => float_product::<8>(registers, op, &|words| bf16_row(words)),
        (_, 8) => float_product::<8>(registers, op, &|words| tf32_row(words)),
        _ => float_product::<4>(registers, op, &|words| tf32_row(words)),
    }
}

/// Numbers of a register: those of lane 0 first, in each lane the lowest bits first.
type Row = [f32; 2 * LANES];

// Loops, not `array::from_fn`: its closure is not inlined into the function with the features.
#[inline(always)]
fn halves_row(words: &[u32; LANES], convert: impl Fn(u32) -> f32) -> Row {
    let mut row = [0.0; 2 * LANES];
    for (pair, &word) in row.chunks_exact_mut(2).zip(words) {
        pair[0] = convert(word & 0xffff);
        pair[1] = convert(word >> 16);
    }
    row
}

#[inline(always)]
fn f16_row(words: &[u32; LANES]) -> Row {
    halves_row(words, f16_to_f32)
}

#[inline(always)]
fn bf16_row(words: &[u32; LANES]) -> Row {
    halves_row(words, bf16_to_f32)
}

#[inline(always)]
fn tf32_row(words: &[u32; LANES]) -> Row {
    let mut row = [0.0; 2 * LANES];
    for (number, &word) in row.iter_mut().zip(words) {
        *number = f32::from_bits(word & 0xffff_e000);
    }
    row
}

#[inline(always)]
fn float_product<const K: usize>(
    registers: &mut Registers,
    op: &Mma,
    convert: &impl Fn(&[u32; LANES]) -> Row,
) {
    // Columns that the four lanes of a group hold in one register.
    let step = 4 * op.a_type.per_register();
    let mut a = [[0.0; K]; 16];
    let mut b = [[0.0; 8]; K];
    for (index, &row) in op.a.iter().enumerate() {
        let numbers = convert(registers.get(row));
        for g in 0..8 {
            let start = step * (index / 2);
            a[g + 8 * (index % 2)][start..start + step]
                .copy_from_slice(&numbers[step * g..step * (g + 1)]);
        }
    }
    for (index, &row) in op.b.iter().enumerate() {
        let numbers = convert(registers.get(row));
        for k in 0..step {
            for g in 0..8 {
                b[step * index + k][g] = numbers[step * g + k];
            }
        }
    }
    let mut c = if op.is_half { half_sums(registers, op) } else { single_sums(registers, op) };
    for half in [0, 8] {
        let mut sums = [[0.0; 8]; 8];
        sums.copy_from_slice(&c[half..half + 8]);
        for (k, b) in b.iter().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                for j in 0..8 {
                    sum[j] = a[half + i][k].mul_add(b[j], sum[j]);
                }
            }
        }
        c[half..half + 8].copy_from_slice(&sums);
    }
    for (index, &row) in op.d.iter().enumerate() {
        let row = registers.get_mut::<u32>(row);
        for (lane, word) in row.iter_mut().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            *word = if op.is_half {
                let sums = &c[g + 8 * index];
                f32_to_f16(sums[2 * t]) | f32_to_f16(sums[2 * t + 1]) << 16
            } else {
                c[g + 8 * (index / 2)][2 * t + index % 2].to_bits()
            };
        }
    }
}

#[inline(always)]
fn single_sums(registers: &Registers, op: &Mma) -> [[f32; 8]; 16] {
    let mut c = [[0.0; 8]; 16];
    for half in 0..2 {
        let (even, odd) =
            (registers.get::<f32>(op.c[2 * half]), registers.get::<f32>(op.c[2 * half + 1]));
        for g in 0..8 {
            for t in 0..4 {
                c[8 * half + g][2 * t] = even[4 * g + t];
                c[8 * half + g][2 * t + 1] = odd[4 * g + t];
            }
        }
    }
    c
}

#[inline(always)]
fn half_sums(registers: &Registers, op: &Mma) -> [[f32; 8]; 16] {
    let rows = [f16_row(registers.get(op.c[0])), f16_row(registers.get(op.c[1]))];
    std::array::from_fn(|row| std::array::from_fn(|column| rows[row / 8][8 * (row % 8) + column]))
}

fn multiply_ints(registers: &mut Registers, op: &Mma) {
    let mut a = [[0_i32; MAX_K]; 16];
    let mut b = [[0_i32; 8]; MAX_K];
    for (index, &row) in op.a.iter().enumerate() {
        let words = registers.get::<u32>(row);
        for (lane, &word) in words.iter().enumerate() {
            for part in 0..4 {
                let k = lane % 4 * 4 + part + 16 * (index / 2);
                a[lane / 4 + 8 * (index % 2)][k] = op.a_type.int(word, part);
            }
        }
    }
    for (index, &row) in op.b.iter().enumerate() {
        let words = registers.get::<u32>(row);
        for (lane, &word) in words.iter().enumerate() {
            for part in 0..4 {
                b[lane % 4 * 4 + part + 16 * index][lane / 4] = op.b_type.int(word, part);
            }
        }
    }
    let mut sums = [[0_i32; 8]; 16];
    for (row, sums) in sums.iter_mut().enumerate() {
        for k in 0..op.k as usize {
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum += a[row][k] * b[k][column];
            }
        }
    }
    for (index, (&d, &c)) in op.d.iter().zip(&op.c).enumerate() {
        let c = *registers.get::<i32>(c);
        *registers.get_mut::<i32>(d) = std::array::from_fn(|lane| {
            let sum = sums[lane / 4 + 8 * (index / 2)][lane % 4 * 2 + index % 2];
            if op.saturates { c[lane].saturating_add(sum) } else { c[lane].wrapping_add(sum) }
        });
    }
}
