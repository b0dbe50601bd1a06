//! Every packer against its layout written down value by value, on every instruction set.

use oarlock_backend::quant::{SplitMix, dequantize_row, random_row, sub_block};
use oarlock_backend::{InnerSplit, WeightKind, WeightView};

use crate::isa::Isa;
use crate::threads::ThreadPool;
use crate::{Dtype, InstructionSet};

use super::{BLOCK, CpuWeight, Format, PartValues, TILE, round_to_bf16, with_format};

/// A row with numbers of all sizes, NaNs (quiet or not), infinities, zeros of both signs.
fn wild_row(kind: WeightKind, columns: usize, seed: u64) -> Vec<u8> {
    let mut random = SplitMix(seed);
    let bytes = kind.block_bytes();
    let mut row = random_row(kind, columns, 0.1, seed);
    match kind {
        WeightKind::F32 | WeightKind::F16 | WeightKind::Bf16 => {
            for value in row.chunks_exact_mut(bytes) {
                let high = match random.next() % 4 {
                    0 => [0x7f, 0xff, 0x00, 0x80, 0x7c][random.next() as usize % 5],
                    1 => (random.next() % 64) as u8,
                    _ => continue,
                };
                value[bytes - 1] = high;
                value[bytes - 2] = [0x00, 0x80, random.next() as u8][random.next() as usize % 3];
            }
        }
        // Any byte is a quant or a scale.
        _ => row.fill_with(|| random.next() as u8),
    }
    row
}

/// The values that a view sees of a row.
fn seen(view: &WeightView<'_>, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; view.stored_columns];
    let bytes = &view.data[row * view.row_bytes()..][..view.row_bytes()];
    dequantize_row(view.kind, bytes, &mut values).unwrap();
    values[view.first_column..][..view.columns].to_vec()
}

/// Bits that are equal where both are NaN.
fn f32_bits(value: f32) -> u32 {
    if value.is_nan() { u32::MAX } else { value.to_bits() }
}

fn check_bf16(view: &WeightView<'_>, segments: usize, weight: &CpuWeight, what: &str) {
    let PartValues::Bf16(part) = &weight.parts[0].values else { panic!("{what}: not bfloat16") };
    let width = view.columns / segments;
    let padded = width.next_multiple_of(BLOCK);
    for row in 0..view.rows.next_multiple_of(TILE) {
        let values = if row < view.rows { seen(view, row) } else { vec![0.0; view.columns] };
        let mut want = vec![0_u16; segments * padded];
        for (column, value) in values.into_iter().enumerate() {
            want[column / width * padded + column % width] = round_to_bf16(value).to_bits();
        }
        for (pair, word) in part.tile(row / TILE).iter().enumerate() {
            let got = [word[row % TILE] as u16, (word[row % TILE] >> 16) as u16];
            for (got, want) in got.into_iter().zip(&want[2 * pair..]) {
                let both_nan = got & 0x7fff > 0x7f80 && want & 0x7fff > 0x7f80;
                assert!(got == *want || both_nan, "{what}: row {row}, pair {pair}");
            }
        }
    }
}

fn check_f32(view: &WeightView<'_>, weight: &CpuWeight, what: &str) {
    let PartValues::F32(part) = &weight.parts[0].values else { panic!("{what}: not float32") };
    for row in 0..view.rows {
        for (column, value) in seen(view, row).into_iter().enumerate() {
            let got = part.tile(row / TILE)[column][row % TILE];
            assert_eq!(f32_bits(got), f32_bits(value), "{what}: row {row}, column {column}");
        }
    }
}

/// Reads a tile as [`Format`] describes it.
fn check_quantized<F: Format>(view: &WeightView<'_>, weight: &CpuWeight, what: &str) {
    let PartValues::Quantized(part) = &weight.parts[0].values else {
        panic!("{what}: not quantized")
    };
    for row in 0..view.rows {
        let (tile, output) = (part.tile(row / TILE), row % TILE);
        let bytes = &view.data[row * view.row_bytes()..][..view.row_bytes()];
        for block in 0..view.columns / BLOCK {
            let want = sub_block(F::KIND, bytes, view.first_column / BLOCK + block);
            let quants = &tile.quants[block * F::QUANT_BYTES..][..F::QUANT_BYTES];
            let got: [u8; BLOCK] = std::array::from_fn(|column| {
                let (group, i) = (column / 4, column % 4);
                let place = 4 * output + i;
                if F::BITS == 8 {
                    return quants[64 * group + place];
                }
                let low = quants[group % 4 * 64 + place] >> (group / 4 * 4) & 15;
                let high = match F::BITS {
                    5 => quants[256 + place] >> group & 1,
                    6 => quants[256 + group / 4 * 64 + place] >> (2 * (group % 4)) & 3,
                    _ => 0,
                };
                low | high << 4
            });
            assert_eq!(got, want.quants, "{what}: row {row}, block {block}");
            let half =
                |plane: &[u8]| u16::from_le_bytes([plane[2 * output], plane[2 * output + 1]]);
            let scales = &tile.scales[block * F::SCALE_BYTES..][..F::SCALE_BYTES];
            let supers = &tile.supers[tile.super_block(block) * F::SUPER_BYTES..][..F::SUPER_BYTES];
            if F::SUPER_BYTES == 0 {
                assert_eq!(half(scales), want.scale, "{what}: row {row}, block {block}");
                continue;
            }
            let [first, second] = want.sub_scales.map(i8::cast_unsigned);
            let second = if F::MINIMUM { want.minimums[0] } else { second };
            assert_eq!([scales[output], scales[TILE + output]], [first, second], "{what}");
            assert_eq!(half(supers), want.scale, "{what}: row {row}, block {block}");
            if F::MINIMUM {
                assert_eq!(half(&supers[32..]), want.minimum_scale, "{what}");
            }
        }
    }
}

/// A view of `stored` columns of which it sees `first..first + columns`, packed in every way.
fn check(kind: WeightKind, rows: usize, stored: usize, first: usize, columns: usize) {
    let data: Vec<u8> =
        (0..rows).flat_map(|row| wild_row(kind, stored, (row * stored + first) as u64)).collect();
    let view = WeightView::whole("w", kind, rows, stored, &data);
    let view = view.with_columns(first..first + columns);
    let segments = InnerSplit::of_units(columns / if kind.is_quantized() { BLOCK } else { 1 });
    for set in InstructionSet::available() {
        let isa = Isa::new(set).unwrap();
        for dtype in [Dtype::Auto, Dtype::Bfloat16, Dtype::Float32] {
            for (threads, split) in [(1, segments), (3, InnerSplit::WHOLE)] {
                let what =
                    format!("{kind:?} {rows} x {first}+{columns}/{stored} {split:?} {dtype} {set}");
                let mut pool = ThreadPool::new(threads).unwrap();
                let weight = CpuWeight::pack(&[view], split, dtype, isa, &mut pool).unwrap();
                match (&weight.parts[0].values, dtype) {
                    (PartValues::Quantized(part), Dtype::Auto) => {
                        with_format!(part.format(), F => check_quantized::<F>(&view, &weight, &what));
                    }
                    (_, Dtype::Float32) => check_f32(&view, &weight, &what),
                    _ => check_bf16(&view, split.segments, &weight, &what),
                }
            }
        }
    }
}

#[test]
fn float_weights_of_odd_shapes() {
    for kind in [WeightKind::F32, WeightKind::F16, WeightKind::Bf16] {
        for (rows, stored, first, columns) in [
            (1, 1, 0, 1),
            (16, 128, 0, 128),
            (37, 64, 0, 64),
            (17, 301, 0, 301),
            (40, 8 * 33, 0, 8 * 33),
            (5, 600, 33, 129),
            (33, 1024, 512, 512),
            (18, 1030, 1, 1028),
        ] {
            check(kind, rows, stored, first, columns);
        }
    }
}

#[test]
fn quantized_weights_of_odd_shapes() {
    for kind in [WeightKind::Q4_0, WeightKind::Q5_0, WeightKind::Q8_0] {
        for (rows, stored, first, columns) in
            [(1, 32, 0, 32), (16, 256, 0, 256), (37, 288, 0, 288), (20, 1376, 96, 1184)]
        {
            check(kind, rows, stored, first, columns);
        }
    }
    for kind in [WeightKind::Q4K, WeightKind::Q5K, WeightKind::Q6K] {
        for (rows, stored, first, columns) in
            [(1, 256, 0, 256), (37, 768, 0, 768), (16, 1280, 96, 32), (20, 1536, 416, 1024)]
        {
            check(kind, rows, stored, first, columns);
        }
    }
}
