//! Tensors by name, packed into a backend one after the other.

use std::ops::Range;

use half::{bf16, f16};
use oarlock_backend::{Backend, InnerSplit, WeightKind, WeightView};
use oarlock_types::LoadProgress;

use crate::ModelError;
use crate::checkpoint::Checkpoint;

/// A tensor and the range of its rows that this rank takes.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// Rows of the tensor.
    pub(crate) rows: usize,
    pub(crate) own: Range<usize>,
}

impl Part {
    /// All of `rows` rows.
    pub(crate) fn whole(name: String, rows: usize) -> Self {
        Self { name, rows, own: 0..rows }
    }

    /// A range of `rows` rows.
    pub(crate) fn range(name: String, rows: usize, own: Range<usize>) -> Self {
        Self { name, rows, own }
    }
}

/// Takes tensors out of a checkpoint, packs them, and drops their pages.
pub(crate) struct WeightLoader<'a> {
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(LoadProgress),
    so_far: LoadProgress,
}

impl<'a> WeightLoader<'a> {
    /// `total_bytes` are those that the rank will take.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        total_bytes: u64,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Self {
        let so_far = LoadProgress { loaded_bytes: 0, total_bytes };
        Self { checkpoint, progress, so_far }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// What a linear layer with this tensor is packed as.
    pub(crate) fn kind(&self, name: &str) -> Result<WeightKind, ModelError> {
        let kind = self.checkpoint.packed_kind(name);
        kind.ok_or_else(|| self.checkpoint.missing(name))
    }

    /// The tensor, which must have this shape.
    fn view(&self, name: &str, rows: usize, columns: usize) -> Result<WeightView<'a>, ModelError> {
        let tensor = self.checkpoint.tensor(name).ok_or_else(|| self.checkpoint.missing(name))?;
        Checkpoint::check_shape(&tensor, (rows, columns))?;
        Ok(WeightView::whole(tensor.name, tensor.info.kind, rows, columns, tensor.data))
    }

    fn rows(&self, part: &Part, columns: usize) -> Result<WeightView<'a>, ModelError> {
        Ok(self.view(&part.name, part.rows, columns)?.with_rows(part.own.clone()))
    }

    /// A linear layer made of rows of tensors with a common inner width.
    pub(crate) fn linear<B: Backend>(
        &mut self,
        backend: &mut B,
        parts: &[Part],
        columns: usize,
    ) -> Result<B::Weight, ModelError> {
        let views: Vec<_> =
            parts.iter().map(|part| self.rows(part, columns)).collect::<Result<_, _>>()?;
        let quantized =
            self.checkpoint.quantized(parts.iter().map(|part| &part.name[..]), &views)?;
        let weight = backend.pack_linear(&quantized.views(&views), InnerSplit::WHOLE)?;
        for (part, view) in parts.iter().zip(&views) {
            self.done(&part.name, view, 1, 1);
        }
        Ok(weight)
    }

    /// A row-parallel layer: the rank's range of `columns`, in its own segments.
    pub(crate) fn row_parallel<B: Backend>(
        &mut self,
        backend: &mut B,
        part: &Part,
        (columns, own): (usize, Range<usize>),
        split: InnerSplit,
    ) -> Result<B::Weight, ModelError> {
        let view = self.rows(part, columns)?;
        let views = [view.with_columns(own.clone())];
        let quantized = self.checkpoint.quantized(std::iter::once(&part.name[..]), &views)?;
        let weight = backend.pack_linear(&quantized.views(&views), split)?;
        self.done(&part.name, &view, own.len(), columns);
        Ok(weight)
    }

    /// One expert: gate and up, of `hidden` columns, and a range of the columns of down.
    pub(crate) fn expert<B: Backend>(
        &mut self,
        backend: &mut B,
        experts: &mut B::Experts,
        (gate_up, hidden): (&[Part; 2], usize),
        (down, columns, own): (&Part, usize, Range<usize>),
    ) -> Result<(), ModelError> {
        let [gate, up] = gate_up;
        let whole = [self.rows(gate, hidden)?, self.rows(up, hidden)?, self.rows(down, columns)?];
        let views = [whole[0], whole[1], whole[2].with_columns(own.clone())];
        let names = [gate, up, down].map(|part| &part.name[..]);
        let quantized = self.checkpoint.quantized(names.into_iter(), &views)?;
        let packed = quantized.views(&views);
        backend.pack_expert(experts, &[packed[0], packed[1]], &packed[2])?;
        self.done(names[0], &whole[0], 1, 1);
        self.done(names[1], &whole[1], 1, 1);
        self.done(names[2], &whole[2], own.len(), columns);
        Ok(())
    }

    /// A layer of experts with its router, and as yet none of them.
    pub(crate) fn router<B: Backend>(
        &mut self,
        backend: &mut B,
        shape: &oarlock_backend::ExpertsShape,
        name: &str,
    ) -> Result<B::Experts, ModelError> {
        let view = self.view(name, shape.num_experts, shape.hidden)?;
        let experts = backend.experts(shape, &view)?;
        self.done(name, &view, 1, 1);
        Ok(experts)
    }

    /// Rows of an embedding table.
    pub(crate) fn table<B: Backend>(
        &mut self,
        backend: &mut B,
        part: &Part,
        columns: usize,
    ) -> Result<B::Table, ModelError> {
        let view = self.rows(part, columns)?;
        let table = backend.pack_table(&view, part.own.start as u32)?;
        self.done(&part.name, &view, 1, 1);
        Ok(table)
    }

    /// A vector of floats, from ranges of several tensors one after the other; `offset` is added to each.
    pub(crate) fn vector<B: Backend>(
        &mut self,
        backend: &mut B,
        parts: &[Part],
        offset: f32,
    ) -> Result<B::Vector, ModelError> {
        let mut values = Vec::new();
        for part in parts {
            let view = self.view(&part.name, 1, part.rows)?;
            let mut all = Vec::new();
            floats(view.name, view.kind, view.data, &mut all)?;
            values.extend(all[part.own.clone()].iter().map(|value| value + offset));
            self.done(&part.name, &view, part.own.len(), part.rows);
        }
        Ok(backend.vector(&values)?)
    }

    /// `own` of `whole` of the view's bytes were taken.
    fn done(&mut self, name: &str, view: &WeightView<'_>, own: usize, whole: usize) {
        self.checkpoint.release(name, view.data);
        let bytes = (view.data.len() as u128 * own as u128 / whole as u128) as u64;
        // A tied embedding is taken twice and counts once.
        let loaded = self.so_far.loaded_bytes + bytes;
        self.so_far.loaded_bytes = loaded.min(self.so_far.total_bytes);
        (self.progress)(self.so_far);
    }
}

/// Appends stored floats.
pub(crate) fn floats(
    name: &str,
    kind: WeightKind,
    data: &[u8],
    out: &mut Vec<f32>,
) -> Result<(), ModelError> {
    let pairs = || data.as_chunks::<2>().0.iter();
    match kind {
        WeightKind::F32 => {
            out.extend(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        WeightKind::F16 => out.extend(pairs().map(|pair| f16::from_le_bytes(*pair).to_f32())),
        WeightKind::Bf16 => out.extend(pairs().map(|pair| bf16::from_le_bytes(*pair).to_f32())),
        kind => return Err(ModelError::tensor(name, format!("is {kind:?}, expected floats"))),
    }
    Ok(())
}
