//! Linear layers and embedding tables, packed.

use half::bf16;
use oarlock_backend::oracle::{check_parts, check_view};
use oarlock_backend::quant::{SUB_BLOCK, dequantize_row};
use oarlock_backend::{BackendError, InnerSplit, WeightKind, WeightView};

use crate::kernels::{LinearFormat, WorkType};

use super::tile::{Record, Tiles, bf16_step, q4_k_step, q8_0_step};

/// A linear layer: one launch for each of its parts.
#[derive(Clone, Debug)]
pub struct PackedLinear {
    /// Outputs of all parts.
    pub outputs: usize,
    /// Inner width.
    pub columns: usize,
    /// Equal ranges of the inner width that are summed apart.
    pub segments: usize,
    /// Runs of outputs that are packed alike, in order.
    pub parts: Vec<PackedPart>,
}

/// Outputs of one format.
#[derive(Clone, Debug)]
pub struct PackedPart {
    /// How they are packed.
    pub format: LinearFormat,
    /// The first one's place among the layer's outputs.
    pub first_output: usize,
    /// How many.
    pub outputs: usize,
    /// For [`crate::kernels::LinearParams::first_sub_block`].
    pub first_sub_block: u32,
    /// Values or quants.
    pub weight: Vec<u8>,
    /// Scales of quantized formats.
    pub scales: Vec<u8>,
    /// Sub-scales of Q4_K.
    pub sub_scales: Vec<u8>,
}

impl PackedPart {
    /// Bytes of all planes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.len() + self.scales.len() + self.sub_scales.len()
    }
}

/// Packs a layer whose outputs are those of `parts`, one after the other. Neighbors of one format
/// become one part.
pub fn pack_linear(
    parts: &[WeightView<'_>],
    split: InnerSplit,
    work: WorkType,
) -> Result<PackedLinear, BackendError> {
    let columns = check_parts(parts, split)?;
    let mut packed = Vec::new();
    let mut first_output = 0;
    let mut rest = parts;
    while let Some(first) = rest.first() {
        let format = format_of(first, work);
        let is_alike = |view: &&WeightView<'_>| {
            format_of(view, work) == format
                && (format != LinearFormat::Q4K || view.first_column == first.first_column)
        };
        let count = rest.iter().take_while(is_alike).count();
        let (alike, others) = rest.split_at(count);
        let part = pack_part(alike, format, first_output, split.segments)?;
        first_output += part.outputs;
        packed.push(part);
        rest = others;
    }
    Ok(PackedLinear { outputs: first_output, columns, segments: split.segments, parts: packed })
}

fn format_of(view: &WeightView<'_>, work: WorkType) -> LinearFormat {
    match work.packed_kind(view.kind) {
        WeightKind::F32 => LinearFormat::F32,
        WeightKind::Q8_0 => LinearFormat::Q8_0,
        WeightKind::Q4K => LinearFormat::Q4K,
        _ => LinearFormat::Bf16,
    }
}

fn pack_part(
    views: &[WeightView<'_>],
    format: LinearFormat,
    first_output: usize,
    segments: usize,
) -> Result<PackedPart, BackendError> {
    let first_column = views[0].first_column;
    let mut part = PackedPart {
        format,
        first_output,
        outputs: views.iter().map(|view| view.rows).sum(),
        first_sub_block: 0,
        weight: Vec::new(),
        scales: Vec::new(),
        sub_scales: Vec::new(),
    };
    if format == LinearFormat::F32 {
        part.weight = decoded(views, f32::to_le_bytes)?;
        return Ok(part);
    }
    let tiles = Tiles::new(views, segments);
    match format {
        LinearFormat::Q8_0 => {
            part.weight = tiles.plane(Record::of_halves(1024), |rows, step, out| {
                q8_0_step(rows, step, out, &mut []);
            });
            part.scales = tiles
                .plane(Record::whole(64), |rows, step, out| q8_0_step(rows, step, &mut [], out));
        }
        LinearFormat::Q4K => {
            part.first_sub_block = (first_column / SUB_BLOCK % 8) as u32;
            part.weight = tiles.plane(Record::of_halves(512), |rows, step, out| {
                q4_k_step(rows, step, out, &mut []);
            });
            part.sub_scales = tiles
                .plane(Record::whole(48), |rows, step, out| q4_k_step(rows, step, &mut [], out));
            part.scales = tiles.super_blocks(part.first_sub_block as usize);
        }
        _ => part.weight = tiles.decoded_plane(Record::of_halves(2048), bf16_step)?,
    }
    Ok(part)
}

/// A table `[rows, columns]` of the working type.
pub fn pack_table(table: &WeightView<'_>, work: WorkType) -> Result<Vec<u8>, BackendError> {
    check_view(table)?;
    match work {
        WorkType::F32 => decoded(&[*table], f32::to_le_bytes),
        WorkType::Bf16 => decoded(&[*table], |value| bf16::from_f32(value).to_le_bytes()),
    }
}

/// All rows, decoded, value by value.
fn decoded<const N: usize>(
    views: &[WeightView<'_>],
    encode: impl Fn(f32) -> [u8; N],
) -> Result<Vec<u8>, BackendError> {
    let values: usize = views.iter().map(|view| view.rows * view.columns).sum();
    let mut bytes = Vec::with_capacity(values * N);
    let mut stored = Vec::new();
    for view in views {
        for row in 0..view.rows {
            decode_row(view, row, &mut stored)?;
            bytes.extend(stored.iter().flat_map(|&value| encode(value)));
        }
    }
    Ok(bytes)
}

/// The columns that a view sees of one of its rows.
pub(super) fn decode_row(
    view: &WeightView<'_>,
    row: usize,
    out: &mut Vec<f32>,
) -> Result<(), BackendError> {
    let bytes = view.row_bytes();
    out.resize(view.stored_columns, 0.0);
    dequantize_row(view.kind, &view.data[row * bytes..][..bytes], out).map_err(|error| {
        BackendError::Weight { name: view.name.to_owned(), reason: error.to_string() }
    })?;
    out.copy_within(view.first_column..view.first_column + view.columns, 0);
    out.truncate(view.columns);
    Ok(())
}

#[cfg(test)]
mod tests {
    use oarlock_backend::quant::{SplitMix, random_row};

    use crate::kernels::TILE_OUTPUTS;

    use super::*;

    fn random(kind: WeightKind, rows: usize, columns: usize) -> Vec<u8> {
        (0..rows).flat_map(|row| random_row(kind, columns, 0.05, row as u64 + 1)).collect()
    }

    fn f16_at(bytes: &[u8], at: usize) -> f32 {
        half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
    }

    /// What the kernels read as the weight of one output and column: by the README's words, written
    /// down apart from the packer.
    fn unpack(part: &PackedPart, layer: &PackedLinear, output: usize, column: usize) -> f32 {
        let width = layer.columns / layer.segments;
        let steps = width.div_ceil(64);
        let (segment, inside) = (column / width, column % width);
        let (step, at) = (inside / 64, inside % 64);
        let (tile, row) = (output / 16, output % 16);
        let record = (tile * layer.segments + segment) * steps + step;
        // Where a record of weights or quants of so many bytes begins: some segments end in the middle of one.
        let cut = |bytes: usize| {
            let missing = if steps * 64 - width >= 32 { bytes / 2 } else { 0 };
            (tile * layer.segments + segment) * (steps * bytes - missing) + step * bytes
        };
        let (half, q, mma) = (at / 32, at % 32 / 8, at % 8 / 4);
        let lane = row % 8 * 4 + q;
        match part.format {
            LinearFormat::F32 => {
                let at = (output * layer.columns + column) * 4;
                f32::from_le_bytes(part.weight[at..at + 4].try_into().expect("four bytes"))
            }
            LinearFormat::Bf16 => {
                let register = row / 8 + at % 4 / 2 * 2;
                let at = cut(2048) + (half * 2 + mma) * 512 + lane * 16 + register * 4 + at % 2 * 2;
                bf16::from_le_bytes([part.weight[at], part.weight[at + 1]]).to_f32()
            }
            LinearFormat::Q8_0 => {
                let quant = part.weight[cut(1024) + half * 512 + lane * 16 + row / 8 * 8 + at % 8];
                let scale = f16_at(&part.scales, record * 64 + row * 4 + half * 2);
                f32::from(quant.cast_signed()) * scale
            }
            LinearFormat::Q4K => {
                let byte = part.weight[cut(512) + half * 256 + lane * 8 + row / 8 * 4 + at % 4];
                let quant = if mma == 0 { byte & 15 } else { byte >> 4 };
                let bits = (0..3).fold(0_u32, |bits, plane| {
                    bits | u32::from(part.sub_scales[record * 48 + plane * 16 + row]) << (8 * plane)
                });
                let scale = (bits >> (6 * half) & 63) as f32;
                let minimum = (bits >> (12 + 6 * half) & 63) as f32;
                let first = part.first_sub_block as usize;
                let supers = (first + layer.columns / 32).div_ceil(8);
                let super_block = (first + column / 32) / 8;
                let at = ((tile * supers + super_block) * 16 + row) * 4;
                f16_at(&part.scales, at) * scale * f32::from(quant)
                    - f16_at(&part.scales, at + 2) * minimum
            }
        }
    }

    #[test]
    fn every_weight_is_where_the_kernels_look() {
        let mut random_at = SplitMix(1);
        for (kind, stored, seen, segments) in [
            (WeightKind::F32, 100, 3..93, 2),
            (WeightKind::Q6K, 512, 32..512, 1),
            (WeightKind::Q8_0, 768, 64..704, 4),
            (WeightKind::Q8_0, 768, 0..768, 8),
            (WeightKind::Bf16, 160, 0..160, 2),
            (WeightKind::Q4K, 2816, 0..2816, 8),
            (WeightKind::Q4K, 2816, 352..2816, 1),
        ] {
            let data = random(kind, 37, stored);
            let view =
                WeightView::whole("test", kind, 37, stored, &data).with_columns(seen.clone());
            for work in [WorkType::Bf16, WorkType::F32] {
                let layer = pack_linear(&[view], InnerSplit { segments }, work).unwrap();
                let part = &layer.parts[0];
                for _ in 0..2000 {
                    let output = random_at.next() as usize % 37;
                    let column = random_at.next() as usize % layer.columns;
                    let mut row = Vec::new();
                    decode_row(&view, output, &mut row).unwrap();
                    let is_rounded = part.format == LinearFormat::Bf16;
                    let round =
                        |value| if is_rounded { bf16::from_f32(value).to_f32() } else { value };
                    let got = unpack(part, &layer, output, column);
                    assert_eq!(got, round(row[column]), "{kind:?} {output} {column}");
                }
            }
        }
    }

    #[test]
    fn packed_weights_are_no_larger_than_stored_ones() {
        for kind in [WeightKind::Q8_0, WeightKind::Q4K, WeightKind::Bf16] {
            let data = random(kind, 64, 4096);
            let view = WeightView::whole("test", kind, 64, 4096, &data);
            for segments in [1, 8] {
                let layer = pack_linear(&[view], InnerSplit { segments }, WorkType::Bf16).unwrap();
                assert_eq!(layer.parts[0].bytes(), data.len(), "{kind:?} in {segments}");
            }
        }
        // Segments of 43 and of 3 sub-blocks: scales of half a step are padding.
        for (kind, columns, most) in [
            (WeightKind::Q4K, 11008, 1.002),
            (WeightKind::Q4K, 768, 1.03),
            (WeightKind::Q8_0, 768, 1.02),
            (WeightKind::Bf16, 768, 1.0),
        ] {
            let data = random(kind, 16, columns);
            let view = WeightView::whole("test", kind, 16, columns, &data);
            let layer = pack_linear(&[view], InnerSplit { segments: 8 }, WorkType::Bf16).unwrap();
            let ratio = layer.parts[0].bytes() as f64 / data.len() as f64;
            assert!(ratio <= most, "{kind:?} of {columns}: {ratio}");
        }
    }

    #[test]
    fn parts_of_one_format_are_one() {
        let (q4, q6) = (random(WeightKind::Q4K, 20, 256), random(WeightKind::Q6K, 8, 256));
        let [a, b] = [(WeightKind::Q4K, 20, &q4), (WeightKind::Q6K, 8, &q6)]
            .map(|(kind, rows, data)| WeightView::whole("test", kind, rows, 256, data));
        let layer = pack_linear(&[a, a, b], InnerSplit::WHOLE, WorkType::Bf16).unwrap();
        let places: Vec<_> =
            layer.parts.iter().map(|p| (p.format, p.first_output, p.outputs)).collect();
        assert_eq!(places, [(LinearFormat::Q4K, 0, 40), (LinearFormat::Bf16, 40, 8)]);
        assert_eq!(layer.outputs, 48);
        assert_eq!(layer.parts[0].weight.len(), 40_usize.div_ceil(TILE_OUTPUTS) * 4 * 512);
    }
}
