//! Quantizing floats while they are loaded.

use std::fmt;
use std::str::FromStr;

use oarlock_backend::quant::{dequantize_row, encode_row};
use oarlock_backend::{WeightKind, WeightView};

use crate::ModelError;

/// What linear layers stored as floats are packed as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// As they are stored.
    #[default]
    None,
    /// 8 bits, one scale for 32.
    Q8_0,
    /// 4 bits, one scale for 32; the output layer has 8, whose rounding every logit would show.
    Q4_0,
}

/// Columns that share a scale.
const BLOCK: usize = 32;

impl Quantization {
    /// What a linear layer is packed as that is stored as `kind` with so many columns. One whose inner width is
    /// no multiple of 32 stays as it is, and so does one that is quantized already.
    pub(crate) fn packed(self, kind: WeightKind, columns: usize, is_output: bool) -> WeightKind {
        if kind.is_quantized() || !columns.is_multiple_of(BLOCK) {
            return kind;
        }
        match self {
            Self::None => kind,
            Self::Q4_0 if !is_output => WeightKind::Q4_0,
            Self::Q8_0 | Self::Q4_0 => WeightKind::Q8_0,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::None, Self::Q8_0, Self::Q4_0];
        let found = all.into_iter().find(|one| one.to_string() == name);
        found.ok_or_else(|| "none, q8_0 and q4_0 are possible".to_owned())
    }
}

/// The parts of a layer that were quantized: kind and bytes of each; `None` for one that stays.
pub(crate) struct Quantized(Vec<Option<(WeightKind, Vec<u8>)>>);

impl Quantized {
    /// Quantizes the parts whose kind is to be another one.
    pub(crate) fn new(
        views: &[WeightView<'_>],
        kinds: impl Iterator<Item = WeightKind>,
    ) -> Result<Self, ModelError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let one = |(view, kind): (&WeightView<'_>, WeightKind)| {
            if view.kind == kind {
                return Ok(None);
            }
            Ok::<_, ModelError>(Some((kind, quantize(view, kind, threads)?)))
        };
        Ok(Self(views.iter().zip(kinds).map(one).collect::<Result<_, _>>()?))
    }

    /// What is packed.
    pub(crate) fn views<'v>(&'v self, stored: &[WeightView<'v>]) -> Vec<WeightView<'v>> {
        let one = |(view, own): (&WeightView<'v>, &'v Option<(WeightKind, Vec<u8>)>)| match own {
            None => *view,
            Some((kind, data)) => {
                WeightView::whole(view.name, *kind, view.rows, view.columns, data)
            }
        };
        stored.iter().zip(&self.0).map(one).collect()
    }
}

fn quantize(
    view: &WeightView<'_>,
    kind: WeightKind,
    _threads: usize,
) -> Result<Vec<u8>, oarlock_backend::BackendError> {
    let mut row = vec![0.0; view.stored_columns];
    let mut all = Vec::new();
    for bytes in view.data.chunks(view.row_bytes()) {
        dequantize_row(view.kind, bytes, &mut row).expect("floats");
        all.extend(encode_row(kind, &row[view.first_column..][..view.columns]).expect("a kind"));
    }
    Ok(all)
}
