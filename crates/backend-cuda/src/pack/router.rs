//! Routers, as the linear kernels take them.

use half::bf16;
use oarlock_backend::oracle::check_view;
use oarlock_backend::{BackendError, WeightView};

use crate::kernels::WorkType;

use super::linear::decode_row;

/// A router `[num_experts, hidden]` as matrices that add up to it.
#[derive(Clone, Debug)]
pub struct RouterParts {
    /// How many.
    pub count: usize,
    /// `[count, num_experts, hidden]`, exact in the working type.
    pub values: Vec<f32>,
}

/// Parts of a bfloat16 router at most: each has 8 of a float32's 24 bits.
const MAX_PARTS: usize = 3;

/// Cuts float32 weights into what tensor cores multiply exactly: the nearest bfloat16, then that of what is
/// left, and so on until nothing is (below 2^-133). A router of bfloat16 is one part; so is any for float32.
pub fn router_parts(router: &WeightView<'_>, work: WorkType) -> Result<RouterParts, BackendError> {
    check_view(router)?;
    let (mut rest, mut row) = (Vec::with_capacity(router.rows * router.columns), Vec::new());
    for index in 0..router.rows {
        decode_row(router, index, &mut row)?;
        rest.extend_from_slice(&row);
    }
    if work == WorkType::F32 {
        return Ok(RouterParts { count: 1, values: rest });
    }
    let mut parts = RouterParts { count: 0, values: Vec::with_capacity(rest.len()) };
    while parts.count == 0 || (parts.count < MAX_PARTS && rest.iter().any(|value| *value != 0.0)) {
        for value in &mut rest {
            let part = bf16::from_f32(*value).to_f32();
            parts.values.push(part);
            *value -= part;
        }
        parts.count += 1;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use oarlock_backend::WeightKind;
    use oarlock_backend::quant::random_row;

    use super::*;

    #[test]
    fn parts_add_up_to_the_router() {
        let (rows, columns) = (5, 72);
        for (kind, work, count) in [
            (WeightKind::F32, WorkType::Bf16, 3),
            (WeightKind::F16, WorkType::Bf16, 2),
            (WeightKind::Bf16, WorkType::Bf16, 1),
            (WeightKind::F32, WorkType::F32, 1),
        ] {
            let data: Vec<u8> =
                (0..rows as u64).flat_map(|row| random_row(kind, columns, 0.1, row)).collect();
            let view = WeightView::whole("router", kind, rows, columns, &data);
            let parts = router_parts(&view, work).expect("a good router");
            assert_eq!(parts.count, count, "{kind:?} for {work:?}");
            let mut row = Vec::new();
            for index in 0..rows {
                decode_row(&view, index, &mut row).expect("a row");
                for (column, want) in row.iter().enumerate() {
                    let at = index * columns + column;
                    let values = parts.values.iter().skip(at).step_by(rows * columns);
                    assert_eq!(values.rev().sum::<f32>(), *want, "{kind:?} at {at}");
                }
            }
            for value in parts.values.iter().filter(|_| work == WorkType::Bf16) {
                assert_eq!(bf16::from_f32(*value).to_f32(), *value, "exact in bfloat16");
            }
        }
    }
}
