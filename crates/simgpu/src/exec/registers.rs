//! The registers of a warp: a row of 32 lanes per register, a mask per predicate.

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// Slots of an instruction: the destination first.
pub(crate) type Slots = [u32; 6];

/// A pure operation: reads and writes rows and predicates, for the lanes of a mask.
pub(crate) type Alu = fn(&mut Registers, &Slots, u32);

/// How an operand is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// One row.
    Word,
    /// Two rows.
    Double,
    Pred,
}

/// One 32-bit register of a warp.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Row([u32; LANES]);

/// A value in a lane: 32 bits in one row, or 64 in two.
pub(crate) trait Lane: Copy + Default + sealed::Sealed {
    const CODE: Code;
    const ROWS: usize = if matches!(Self::CODE, Code::Double) { 2 } else { 1 };
}

mod sealed {
    /// Plain numbers of 4 or 8 bytes.
    pub(crate) trait Sealed {}
}

macro_rules! lanes {
    ($($number:ty => $code:ident),*) => {
        $(impl sealed::Sealed for $number {}
        impl Lane for $number {
            const CODE: Code = Code::$code;
        })*
    };
}

lanes!(u32 => Word, i32 => Word, f32 => Word, u64 => Double, i64 => Double, f64 => Double);

/// A warp's registers.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    rows: Vec<Row>,
    pub(crate) preds: Vec<u32>,
}

impl Registers {
    /// Room for a program, with values that no program relies on.
    pub(crate) fn reset(&mut self, num_rows: u32, num_preds: u32) {
        self.rows.clear();
        self.rows.resize(num_rows as usize, Row([0xdead_beef; LANES]));
        self.preds.clear();
        self.preds.resize(num_preds as usize, 0xa5a5_5a5a);
        self.preds[0] = 0;
    }

    /// The lanes of a register.
    #[inline(always)]
    pub(crate) fn get<T: Lane>(&self, slot: u32) -> &[T; LANES] {
        let rows = &self.rows[slot as usize..slot as usize + T::ROWS];
        // SAFETY: `rows` are ROWS × 128 bytes of plain numbers, aligned to 64; `Lane` is sealed to
        // numbers of 4 × ROWS bytes, for which every bit pattern is valid.
        unsafe { &*rows.as_ptr().cast::<[T; LANES]>() }
    }

    /// The lanes of a register, to be written.
    #[inline(always)]
    pub(crate) fn get_mut<T: Lane>(&mut self, slot: u32) -> &mut [T; LANES] {
        let rows = &mut self.rows[slot as usize..slot as usize + T::ROWS];
        // SAFETY: as in `get`, and the borrow is unique.
        unsafe { &mut *rows.as_mut_ptr().cast::<[T; LANES]>() }
    }

    /// Writes the lanes of the mask.
    #[inline(always)]
    pub(crate) fn put<T: Lane>(&mut self, slot: u32, values: &[T; LANES], mask: u32) {
        let row = self.get_mut::<T>(slot);
        if mask == u32::MAX {
            *row = *values;
        } else {
            for lane in 0..LANES {
                row[lane] = if mask >> lane & 1 != 0 { values[lane] } else { row[lane] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, pred: u32, bits: u32, mask: u32) {
        let old = &mut self.preds[pred as usize];
        *old = (*old & !mask) | (bits & mask);
    }

    #[inline(always)]
    pub(crate) fn map1<A: Lane, D: Lane>(&mut self, o: &Slots, mask: u32, f: impl Fn(A) -> D) {
        let a = self.get::<A>(o[1]);
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane]);
        }
        self.put(o[0], &out, mask);
    }

    #[inline(always)]
    pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(
        &mut self,
        o: &Slots,
        mask: u32,
        f: impl Fn(A, B) -> D,
    ) {
        let (a, b) = (self.get::<A>(o[1]), self.get::<B>(o[2]));
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane]);
        }
        self.put(o[0], &out, mask);
    }

    #[inline(always)]
    pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        o: &Slots,
        mask: u32,
        f: impl Fn(A, B, C) -> D,
    ) {
        let (a, b, c) = (self.get::<A>(o[1]), self.get::<B>(o[2]), self.get::<C>(o[3]));
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane], c[lane]);
        }
        self.put(o[0], &out, mask);
    }

    #[inline(always)]
    pub(crate) fn map4<A: Lane, B: Lane, C: Lane, E: Lane, D: Lane>(
        &mut self,
        o: &Slots,
        mask: u32,
        f: impl Fn(A, B, C, E) -> D,
    ) {
        let (a, b, c) = (self.get::<A>(o[1]), self.get::<B>(o[2]), self.get::<C>(o[3]));
        let e = self.get::<E>(o[4]);
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane], c[lane], e[lane]);
        }
        self.put(o[0], &out, mask);
    }

    /// Lanes for which a comparison holds.
    #[inline(always)]
    pub(crate) fn test<A: Lane>(&self, a: u32, b: u32, f: impl Fn(A, A) -> bool) -> u32 {
        let (a, b) = (self.get::<A>(a), self.get::<A>(b));
        let mut bytes = [0_u8; LANES];
        for lane in 0..LANES {
            bytes[lane] = u8::from(f(a[lane], b[lane]));
        }
        pack(&bytes)
    }
}

/// One bit per byte of 0 or 1.
#[inline(always)]
fn pack(bytes: &[u8; LANES]) -> u32 {
    let mut mask = 0;
    for (part, chunk) in bytes.chunks_exact(8).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        // Each product's top byte gathers the eight low bits.
        let bits = u64::from_le_bytes(word).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        mask |= (bits as u32) << (8 * part);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_give_one_bit_per_lane() {
        let mut registers = Registers::default();
        registers.reset(4, 1);
        for lane in 0..LANES {
            registers.get_mut::<u32>(0)[lane] = lane as u32;
            registers.get_mut::<u32>(1)[lane] = 17;
        }
        assert_eq!(registers.test::<u32>(0, 1, |a, b| a < b), (1 << 17) - 1);
        assert_eq!(registers.test::<u32>(0, 1, |a, b| a == b), 1 << 17);
    }
}
