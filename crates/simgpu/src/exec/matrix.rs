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
        self.count_matrix(env, op, &addresses, pc, false);
        for (index, &row) in op.rows.iter().enumerate() {
            let mut matrix = [[0; ROW_BYTES]; 8];
            for (i, bytes) in matrix.iter_mut().enumerate() {
                let lane = 8 * index + i;
                let touch = self.touch(lane, false, false);
                self.read(env, &op.address, addresses[lane], bytes, touch)
                    .map_err(|what| Stop { lane: lane as u32, what })?;
            }
            let half = |row: usize, column: usize| {
                u32::from(u16::from_le_bytes([
                    matrix[row][2 * column],
                    matrix[row][2 * column + 1],
                ]))
            };
            *self.registers.get_mut::<u32>(row) = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                if op.is_transposed {
                    half(2 * t, g) | half(2 * t + 1, g) << 16
                } else {
                    half(g, 2 * t) | half(g, 2 * t + 1) << 16
                }
            });
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
        self.count_matrix(env, op, &addresses, pc, true);
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

    fn count_matrix(
        &self,
        env: &mut Env<'_>,
        op: &Matrix,
        addresses: &[u64; LANES],
        pc: u32,
        is_write: bool,
    ) {
        if env.tally.counts_memory() {
            let lanes = u32::MAX >> (32 - 8 * op.rows.len());
            env.count(&op.address, addresses, ROW_BYTES as u32, lanes, pc, is_write);
        }
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
    fn float(self, word: u32, part: usize) -> f32 {
        match self {
            Self::F16 => f16_to_f32(word >> (16 * part) & 0xffff),
            Self::Bf16 => bf16_to_f32(word >> (16 * part) & 0xffff),
            _ => f32::from_bits(word & 0xffff_e000),
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
    let mut a = [[0.0; 16]; MAX_K];
    let mut b = [[0.0; 8]; MAX_K];
    let mut c = [[0.0; 8]; 16];
    // Constant for each call: the loops are compiled for each type.
    match op.a_type {
        Factor::F16 => {
            gather(registers, op, &mut a, &mut b, |word, part| Factor::F16.float(word, part))
        }
        Factor::Bf16 => {
            gather(registers, op, &mut a, &mut b, |word, part| Factor::Bf16.float(word, part))
        }
        _ => gather(registers, op, &mut a, &mut b, |word, part| Factor::Tf32.float(word, part)),
    }
    for (index, &row) in op.c.iter().enumerate() {
        let words = registers.get::<u32>(row);
        for (lane, &word) in words.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            if op.is_half {
                c[g + 8 * index][2 * t] = f16_to_f32(word & 0xffff);
                c[g + 8 * index][2 * t + 1] = f16_to_f32(word >> 16);
            } else {
                c[g + 8 * (index / 2)][2 * t + index % 2] = f32::from_bits(word);
            }
        }
    }
    accumulate(&a[..op.k as usize], &b[..op.k as usize], &mut c);
    for (index, &row) in op.d.iter().enumerate() {
        *registers.get_mut::<u32>(row) = std::array::from_fn(|lane| {
            let (g, t) = (lane / 4, lane % 4);
            if op.is_half {
                let row = &c[g + 8 * index];
                f32_to_f16(row[2 * t]) | f32_to_f16(row[2 * t + 1]) << 16
            } else {
                c[g + 8 * (index / 2)][2 * t + index % 2].to_bits()
            }
        });
    }
}

/// Collects both factors, the first one transposed.
#[inline(always)]
fn gather<T: Copy>(
    registers: &Registers,
    op: &Mma,
    a: &mut [[T; 16]; MAX_K],
    b: &mut [[T; 8]; MAX_K],
    value: impl Fn(u32, usize) -> T,
) {
    let n = op.a_type.per_register();
    for (index, &row) in op.a.iter().enumerate() {
        let words = registers.get::<u32>(row);
        for lane in 0..LANES {
            for part in 0..n {
                let k = lane % 4 * n + part + 4 * n * (index / 2);
                a[k % MAX_K][lane / 4 + 8 * (index % 2)] = value(words[lane], part);
            }
        }
    }
    for (index, &row) in op.b.iter().enumerate() {
        let words = registers.get::<u32>(row);
        for lane in 0..LANES {
            for part in 0..n {
                let k = lane % 4 * n + part + 4 * n * index;
                b[k % MAX_K][lane / 4] = value(words[lane], part);
            }
        }
    }
}

fn accumulate(a: &[[f32; 16]], b: &[[f32; 8]], c: &mut [[f32; 8]; 16]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn fused(a: &[[f32; 16]], b: &[[f32; 8]], c: &mut [[f32; 8]; 16]) {
            accumulate_lanes(a, b, c);
        }
        // SAFETY: programs are decoded only on processors with these features (`decode::has_features`).
        unsafe { fused(a, b, c) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    accumulate_lanes(a, b, c);
}

#[inline(always)]
fn accumulate_lanes(a: &[[f32; 16]], b: &[[f32; 8]], c: &mut [[f32; 8]; 16]) {
    for half in [0, 8] {
        let mut sums: [[f32; 8]; 8] = std::array::from_fn(|i| c[half + i]);
        for (a, b) in a.iter().zip(b) {
            for (i, sum) in sums.iter_mut().enumerate() {
                for j in 0..8 {
                    sum[j] = a[half + i].mul_add(b[j], sum[j]);
                }
            }
        }
        c[half..half + 8].copy_from_slice(&sums);
    }
}

fn multiply_ints(registers: &mut Registers, op: &Mma) {
    let mut a = [[0; 16]; MAX_K];
    let mut b = [[0; 8]; MAX_K];
    gather(registers, op, &mut a, &mut [[0; 8]; MAX_K], |word, part| op.a_type.int(word, part));
    gather(registers, op, &mut [[0; 16]; MAX_K], &mut b, |word, part| op.b_type.int(word, part));
    let mut sums = [[0_i32; 8]; 16];
    for k in 0..op.k as usize {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum += a[k][row] * b[k][column];
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
