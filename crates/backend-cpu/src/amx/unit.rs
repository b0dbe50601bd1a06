//! The tile operations that the kernels use. The software model follows Intel's definition of each
//! instruction (Software Developer's Manual, volume 2) and stands in for the hardware in tests.

use std::array::from_fn;

use oarlock_backend::quant::SplitMix;

/// Rows of activations in one tile: those of a full group.
pub(crate) const TILE_ROWS: usize = 8;

/// A unit that multiplies tiles.
pub(crate) trait TileUnit {
    /// `TDPBF16PS`: adds one block of 32 columns to `c`. Words are pairs, the even column low.
    fn bf16(&self, a: &[[u32; 16]; TILE_ROWS], b: &[[u32; 16]; 16], c: &mut [[f32; 16]; TILE_ROWS]);

    /// The same for consecutive blocks: `b` is `[pair][output]`, a row of `a` is `distance` words from
    /// the one before it and has as many pairs as `b`.
    fn bf16_blocks(
        &self,
        a: &[u32],
        distance: usize,
        b: &[[u32; 16]],
        c: &mut [[f32; 16]; TILE_ROWS],
    ) {
        for (block, b) in b.as_chunks::<16>().0.iter().enumerate() {
            let a = from_fn(|row| from_fn(|pair| a[row * distance + block * 16 + pair]));
            self.bf16(&a, b, c);
        }
    }
}

/// The definition, step by step.
pub(crate) struct SoftwareTiles;

impl TileUnit for SoftwareTiles {
    fn bf16(
        &self,
        a: &[[u32; 16]; TILE_ROWS],
        b: &[[u32; 16]; 16],
        c: &mut [[f32; 16]; TILE_ROWS],
    ) {
        /// Denormal operands count as zero, denormal results become zero.
        fn flush(value: f32) -> f32 {
            if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
        }
        let even = |word: u32| flush(f32::from_bits(word << 16));
        let odd = |word: u32| flush(f32::from_bits(word & 0xffff_0000));
        for m in 0..TILE_ROWS {
            for n in 0..16 {
                let mut sums = [0.0_f32; 2];
                for k in 0..16 {
                    sums[0] = flush(even(a[m][k]).mul_add(even(b[k][n]), sums[0]));
                    sums[1] = flush(odd(a[m][k]).mul_add(odd(b[k][n]), sums[1]));
                }
                c[m][n] = flush(flush(c[m][n]) + flush(sums[0] + sums[1]));
            }
        }
    }
}

/// Whether two units give the same bits on tiles that tell every order of sums apart: floats whose
/// exponents differ so much that chains cancel and round.
pub(crate) fn agree(one: &impl TileUnit, other: &impl TileUnit) -> bool {
    let mut random = SplitMix(26);
    (0..16).all(|_| {
        // Sign, an exponent from 2⁻¹² to 2³, seven bits of mantissa.
        let half = |random: u64| {
            (random as u32 & 0x8000)
                | (115 + (random >> 20) as u32 % 16) << 7
                | (random >> 40) as u32 & 127
        };
        let mut word = || half(random.next()) << 16 | half(random.next());
        let a: [[u32; 16]; TILE_ROWS] = from_fn(|_| from_fn(|_| word()));
        let b: [[u32; 16]; 16] = from_fn(|_| from_fn(|_| word()));
        let start: [[f32; 16]; TILE_ROWS] =
            from_fn(|_| from_fn(|_| f32::from_bits(word() & 0xffff_0000)));
        let mut sums = [start; 2];
        one.bf16(&a, &b, &mut sums[0]);
        other.bf16(&a, &b, &mut sums[1]);
        sums[0].map(|row| row.map(f32::to_bits)) == sums[1].map(|row| row.map(f32::to_bits))
    })
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use hardware::HardwareTiles;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware {
    use std::arch::asm;
    use std::marker::PhantomData;

    use super::{TILE_ROWS, TileUnit};

    /// Tiles of this thread, configured while the value lives.
    ///
    /// Tiles 0 to 2 are c, a and b. The compiler never uses tile registers itself.
    pub(crate) struct HardwareTiles {
        /// Tiles belong to a thread.
        thread: PhantomData<*const ()>,
    }

    /// Memory operand of `LDTILECFG`.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        column_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl HardwareTiles {
        /// Configures the tiles.
        ///
        /// # Safety
        /// `request_tiles` gave true, and this thread has no other `HardwareTiles`.
        pub(crate) unsafe fn new() -> Self {
            let mut configuration = Configuration {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                column_bytes: [0; 16],
                rows: [0; 16],
            };
            for (tile, rows) in [TILE_ROWS as u8, TILE_ROWS as u8, 16].into_iter().enumerate() {
                configuration.rows[tile] = rows;
                configuration.column_bytes[tile] = 64;
            }
            // SAFETY: the CPU has tiles by the caller's promise; the operand is 64 bytes long.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly, preserves_flags));
            }
            Self { thread: PhantomData }
        }
    }

    impl Drop for HardwareTiles {
        fn drop(&mut self) {
            let _ = self.thread;
            // SAFETY: `new` configured the tiles of this thread; `Self` does not move to another.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }

    impl TileUnit for HardwareTiles {
        #[inline(always)]
        fn bf16(
            &self,
            a: &[[u32; 16]; TILE_ROWS],
            b: &[[u32; 16]; 16],
            c: &mut [[f32; 16]; TILE_ROWS],
        ) {
            // SAFETY: 8 rows of 64 bytes, 16 rows of 64 bytes, 8 rows of 64 bytes.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{c} + {stride}]",
                    "tileloadd tmm1, [{a} + {stride}]",
                    "tileloadd tmm2, [{b} + {stride}]",
                    "tdpbf16ps tmm0, tmm1, tmm2",
                    "tilestored [{c} + {stride}], tmm0",
                    a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), stride = in(reg) 64_usize,
                    c = in(reg) c.as_mut_ptr(),
                    options(nostack, preserves_flags),
                );
            }
        }

        /// The sums stay in their tile.
        #[inline(always)]
        fn bf16_blocks(
            &self,
            a: &[u32],
            distance: usize,
            b: &[[u32; 16]],
            c: &mut [[f32; 16]; TILE_ROWS],
        ) {
            let blocks = b.len() / 16;
            assert!(blocks > 0 && a.len() >= (TILE_ROWS - 1) * distance + blocks * 16, "pairs");
            // SAFETY: per block 8 rows of 64 bytes `distance` words apart and 16 rows of 64 bytes, inside
            // the slices by the assertion; the sums are 8 rows of 64 bytes.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{c} + {stride}]",
                    "2:",
                    "tileloadd tmm1, [{a} + {a_stride}]",
                    "tileloadd tmm2, [{b} + {stride}]",
                    "tdpbf16ps tmm0, tmm1, tmm2",
                    "add {a}, 64",
                    "add {b}, 1024",
                    "dec {blocks}",
                    "jnz 2b",
                    "tilestored [{c} + {stride}], tmm0",
                    a = inout(reg) a.as_ptr() => _, a_stride = in(reg) distance * 4,
                    b = inout(reg) b.as_ptr() => _, blocks = inout(reg) blocks => _,
                    stride = in(reg) 64_usize, c = in(reg) c.as_mut_ptr(),
                    options(nostack),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit with one mistake.
    struct Wrong {
        /// Sums of bfloat16 in one chain instead of two.
        one_chain: bool,
    }

    impl TileUnit for Wrong {
        fn bf16(
            &self,
            a: &[[u32; 16]; TILE_ROWS],
            b: &[[u32; 16]; 16],
            c: &mut [[f32; 16]; TILE_ROWS],
        ) {
            SoftwareTiles.bf16(a, b, c);
            if self.one_chain {
                let value = |word: u32, odd: bool| {
                    f32::from_bits(if odd { word & 0xffff_0000 } else { word << 16 })
                };
                for (c, a) in c.iter_mut().zip(a) {
                    for (n, c) in c.iter_mut().enumerate() {
                        let terms = (0..32)
                            .map(|k| value(a[k / 2], k % 2 == 1) * value(b[k / 2][n], k % 2 == 1));
                        *c = terms.sum();
                    }
                }
            }
        }
    }

    #[test]
    fn only_a_right_unit_agrees_with_the_definition() {
        assert!(agree(&SoftwareTiles, &SoftwareTiles));
        assert!(!agree(&Wrong { one_chain: true }, &SoftwareTiles));
        assert!(agree(&Wrong { one_chain: false }, &SoftwareTiles));
    }
}
